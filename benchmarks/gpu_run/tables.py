"""What a result says: Markdown for the documentation, and a line of a terminal for each finding."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any

from recipe.base.tables import markdown_table

NONE_YET = (
    "No result of `make gpu` on a GPU is in `benchmarks/results/gpu/` yet. What this documentation says of its checks, kernels "
    "and calibration is planned or tested on CPU."
)

LONGEST = 100  # characters of a measured text
WIDTH = 100  # of a terminal
FIGURES = 2  # of a check in a table; the result has all
OUTCOMES = ("passed", "failed", "not done", "not possible")


def figure(value: Any) -> str:
    """A measured value as a cell: four digits of a number, the beginning of a text."""
    if isinstance(value, (list, tuple)):
        return _cell(" ".join(figure(each) for each in value))[:LONGEST]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _cell(str(value))[:LONGEST]
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def figures(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figure(value)}" for name, value in values.items())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _reason(line: dict[str, Any]) -> str | None:
    """Why there is no figure, by one of the names that the scripts have for it."""
    return next((str(line[key]) for key in ("failed", "cut") if line.get(key)), None)


def named(line: dict[str, Any]) -> tuple[str, str]:
    """What a check says, and which case of it a line is; cases of one test say the same."""
    what, _, case = _cell(line.get("what") or line["check"]).partition(" [")
    return what, case.removesuffix("]")


def _why(line: dict[str, Any]) -> str:
    return _cell(line.get("why") or "").removeprefix("not possible here: ")


def check_line(line: dict[str, Any]) -> str:
    what, case = named(line)
    return _shown(
        f"{line['outcome']:<12} {line.get('seconds', 0):>6.1f} s", what, f" [{case}]" if case else "", _why(line)
    )


def kernel_line(line: dict[str, Any]) -> str:
    rates = (
        f"{line[key] / 1e12:.4g} {unit}"
        for key, unit in (("flops_per_s", "TFLOP/s"), ("bytes_per_s", "TB/s"))
        if line.get(key)
    )
    spent = "" if line.get("seconds") is None else f"{1e3 * line['seconds']:.4g} ms"
    return _shown(f"{spent:>12} {next(rates, ''):>15}", kernel_name(line), "", _reason(line))


def kernel_name(line: dict[str, Any]) -> str:
    return ", ".join(
        part for part in (line["kernel"], line.get("case"), line.get("pass"), figures(line.get("shape") or {})) if part
    )


def contender_line(name: str, contender: dict[str, Any]) -> str:
    measured = contender.get("tokens_per_s")
    return _shown("" if measured is None else f"{measured:>12,.0f} tokens/s", name, "", _reason(contender))


def _shown(figures: str, name: str, case: str, why: str | None) -> str:
    """A finding in a line of a terminal; where it has none or is none, why follows in lines of its own."""
    room = WIDTH - len(figures) - 2 - len(case)
    line = f"{figures}  {name if len(name) <= room else name[: room - 1] + '…'}{case}"
    if not why:
        return line
    indent = " " * 4
    return f"{line}\n{textwrap.fill(_cell(why)[:300], WIDTH, initial_indent=indent, subsequent_indent=indent)}"


def heading(values: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in values["packages"].items())
    known = [
        f"{name} {values[key]}"
        for name, key in (("CUDA", "cuda"), ("driver", "driver"), ("NCCL", "nccl"))
        if values[key]
    ]
    commit = "commit not known" if values["commit"] is None else f"commit {values['commit'][:12]}"
    parts = [
        packages,
        ", ".join(known),
        f"Python {values['python']}",
        commit + (" with changes" if values["dirty"] else ""),
    ]
    small = " (small mode on CPU: no figure of a GPU)" if values["small"] else ""
    return f"{values['device']}{small}, {values['date']}; {'; '.join(part for part in parts if part)}."


def markdown(values: dict[str, Any], *, again: bool = True) -> str:
    """The tables of one result.

    Args:
        again: also what a terminal has shown line by line: kernels, steps, and checks that have not failed.
    """
    blocks = [heading(values)]
    if values["right"]:
        blocks.append(f"Checks: {_counts(values['right'])}.")
        shown = (
            values["right"]
            if again
            else [line for line in values["right"] if line["outcome"] in ("failed", "not done")]
        )
        if shown:
            blocks.append(markdown_table(["check", "outcome", "reason", "measured"], _check_rows(shown), left=4))
    # Modules that import torch know their figures.
    if values["kernels"] and again:
        from benchmarks.kernel_times import markdown as of_kernels

        blocks.append(of_kernels(values["kernels"]))
    if values["train_step"] is not None and values["train_step"]["contenders"] and again:
        from benchmarks.step_run.tables import markdown as of_train_step

        blocks.append(of_train_step(values["train_step"]))
    if values["calibration"] is not None:
        from benchmarks.calibration import markdown as of_calibration

        blocks.append(of_calibration(values["calibration"]))
    if values["unfinished"]:
        blocks.append(
            "Not in this result:\n\n" + "\n".join(f"- {_cell(sentence)}" for sentence in values["unfinished"])
        )
    return "\n\n".join(blocks)


def _check_rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """A row for all cases of a check: of each that has not passed the reason, of each the first figures."""
    checks: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        checks.setdefault(named(line)[0], []).append(line)
    return [
        [what, _counts(of_one) if len(of_one) > 1 else of_one[0]["outcome"],
         _by_case(of_one, lambda line: "" if line["outcome"] == "passed" else _why(line)[:200]),
         _by_case(of_one, lambda line: figures(dict([*(line.get("measured") or {}).items()][:FIGURES])))]
        for what, of_one in checks.items()
    ]  # fmt: skip


def _by_case(lines: list[dict[str, Any]], text_of: Callable[[dict[str, Any]], str]) -> str:
    """The texts with their cases; of several cases that say the same, once."""
    cases: dict[str, list[str]] = {}
    for line in lines:
        if text := text_of(line):
            cases.setdefault(text, []).append(named(line)[1])
    return "; ".join(f"{', '.join(of)}: {text}" if any(of) and len(lines) > 1 else text for text, of in cases.items())


def _counts(lines: list[dict[str, Any]]) -> str:
    """Such as 2 passed, 1 failed."""
    counts = Counter(line["outcome"] for line in lines)
    return ", ".join(
        f"{counts.pop(outcome)} {outcome}"
        for outcome in (*OUTCOMES, *sorted({*counts} - {*OUTCOMES}))
        if outcome in counts
    )
