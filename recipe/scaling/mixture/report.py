"""What a finished mixture.json says, as tables: how the laws predict, and the proposed mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from recipe.base.tables import markdown_table


def proposal_tables(record: Mapping[str, Any]) -> str:
    """The proposed shares, what they are predicted to reach, and the lines for a run config."""
    natural, proposal = record["natural"], record["proposal"]
    shares = [
        [name, f"{natural['shares'][name]:.3f}", _interval(share, 3), f"{record['sources'][name]['cap']:.3f}"]
        for name, share in proposal["shares"].items()
    ]
    bits = [
        [source, _interval(natural["bits_per_byte"][source], 4), _interval(proposal["bits_per_byte"][source], 4)]
        for source in proposal["bits_per_byte"]
    ]
    gain, sure = proposal["gain"], proposal["gain"]["low"] > 0
    verdict = "" if sure else "; the interval holds 0: the proxies do not tell it from the natural mixture"
    weights = {name: round(share["value"], 4) for name, share in proposal["shares"].items()}
    limit = {} if record["target_tokens"] is None else {"max_epochs": record["max_epochs"]}
    return "\n\n".join(
        [
            markdown_table(["source", "natural share", "proposed share, 90%", "at most"], shares),
            markdown_table(["held-out source", "natural: bits per byte, 90%", "proposed"], bits),
            f"gain of the objective: {_interval(gain, 4)} bits per byte of a proxy{verdict}",
            "for the run config:\n\n" + yaml.safe_dump({"data": {"mixture": {"weights": weights, **limit}}}, sort_keys=False),
        ]
    )  # fmt: skip


def _interval(values: Mapping[str, float], digits: int) -> str:
    return f"{values['value']:.{digits}f} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def quality_tables(record: Mapping[str, Any]) -> str:
    """How the laws predict: the held-out runs before they ran, and each run by the others."""
    rows = [
        [run["name"], source, _interval(bits, 4), f"{run['bits_per_byte'][source]:.4f} ({run['bits_per_byte'][source] / bits['value'] - 1:+.1%})"]
        for run in record["held_out"]
        for source, bits in run["prediction"].items()
    ]  # fmt: skip
    left_out = {s: law["left_out"] for s, law in record["regression"].items()} | {"objective": record["left_out"]}
    quality = [
        [name, f"{q['rank_correlation']:.3f}", f"{q['error']:.2%}", f"{q['error_of_mean']:.2%}"] for name, q in left_out.items()
    ]  # fmt: skip
    head = ["each run by the others", "rank correlation", "error", "error of the mean"]
    return f"{markdown_table(['run', 'source', 'predicted, 90%', 'measured'], rows, left=2)}\n\n{markdown_table(head, quality)}"
