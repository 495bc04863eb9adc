"""The tables of docs/performance.md from a result of benchmarks/train_step.py."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import FLAGSHIP
from recipe.base.tables import markdown_table


def case_sentence(result: dict[str, Any]) -> str:
    case = result["case"]
    names = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    ceiling = result.get("matmul_flops_per_s")
    return (
        f"{result['device']}, {result['date']}; {names}. {case['layers']} layers of {case['model']} "
        f"({case['parameters']:,} parameters, {case['active']:,} active, "
        f"{case['head_share_of_flops']:.1%} of the FLOPs in the head), {case['micro_batch']} sequences of "
        f"{case['seq_length']:,}, {case['precision']}"
        + (f"; matmul ceiling {ceiling / 1e12:,.2f} TFLOP/s." if ceiling is not None else ".")
    )


def window_sentence(window: dict[str, Any]) -> str:
    uniform, text = window["uniform"], window["text"]
    return (
        f"Medians, and smallest to largest, of {uniform['measured']} steps on uniform tokens after {uniform['warm_up']} of warm-up, "
        f"then of {text['measured']} on tokens as text has them after {text['warm_up']}; load: assignments of the busiest expert "
        "over the mean, of the worst layer."
    )


def row_of(found: dict[str, Any], first: dict[str, Any] | None, *, window: bool) -> list[str]:
    """The cells of a contender's figures; those of `text` only where the result has a window."""
    idle = found.get("breakdown", {}).get("idle_share")
    cells = [
        f"{found['tokens_per_s']:,.0f}", f"{found['tokens_per_s'] / first['tokens_per_s']:.2f}" if first else "",
        f"{found['mfu_of_matmul']:.1%}", f"{found['mfu']:.1%}" if "mfu" in found else "", f"{found['peak_gib']:.1f}",
        f"{1e3 * found['step_s']:,.0f}",
    ]  # fmt: skip
    if window:
        text = found.get("text")
        cells += [
            "{:,.0f} to {:,.0f}".format(*(1e3 * s for s in found["step_s_range"])), f"{found['load']:.2f}" if "load" in found else "",
            f"{1e3 * text['step_s']:,.0f}" if text else "",
            "{:,.0f} to {:,.0f}".format(*(1e3 * s for s in text["step_s_range"])) if text else "",
            f"{text['load']:.2f}" if text and "load" in text else "",
        ]  # fmt: skip
    return [*cells, "" if idle is None else f"{idle:.1%}"]


def plan_table(plans: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in plans.items():
        at = found["planned_at_load"]
        cells = [f"{1e3 * at['step_s']['planned']:,.0f}", f"{at['step_s']['measured_over_planned'] - 1:+.1%}"]
        if "text" in found:
            cells.append(f"{found['text']['planned_at_load']['step_s']['measured_over_planned'] - 1:+.1%}")
        else:
            cells.append("")
        rows.append(
            [name, *cells, f"{at['peak_gib']['planned']:.1f}", f"{at['peak_gib']['measured_over_planned'] - 1:+.1%}"]
        )
    return markdown_table(["plan", "ms", "measured, uniform", "measured, text", "peak GiB", "measured"], rows)


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/performance.md from a result, also from one that an older version of this script wrote."""
    contenders, window = result["contenders"], result.get("window")
    first = next(iter(contenders.values()), None)
    first = first if first is not None and "tokens_per_s" in first else None
    lines = [case_sentence(result), ""]
    if window is not None:
        lines += [window_sentence(window), ""]
    head = ["training step", "tokens/s", "over the first", "MFU of matmul", "MFU of datasheet", "peak GiB", "ms"]
    head += ["ms, range", "load", "text: ms", "text: range", "text: load"] if window is not None else []
    head += ["idle"]
    rows = []
    for name, found in contenders.items():
        if "failed" in found:
            rows.append([name, found["failed"].replace("|", "/")[:80], *[""] * (len(head) - 2)])
        else:
            rows.append([name, *row_of(found, first, window=window is not None)])
    lines += [markdown_table(head, rows), ""]
    for name, found in contenders.items():
        if "as_installed" in found:
            lines += [f"{name} as installed: {found['as_installed']}.", ""]
        if "cut" in found:
            lines += [f"{name} is not whole: {found['cut']}.", ""]
    if (slice_ := result.get("flagship")) is not None:
        lines += [f"{FLAGSHIP} ({slice_['case']['layers']} layers, {slice_['case']['micro_batch']} sequences of "
                  f"{slice_['case']['seq_length']:,}, recompute {slice_['case']['recompute']}): "
                  + (slice_["failed"] if "failed" in slice_ else f"{slice_['tokens_per_s']:,.0f} tokens/s, {slice_['mfu_of_matmul']:.1%} "
                     f"MFU of matmul, {slice_['peak_gib']:.1f} GiB") + ".", ""]  # fmt: skip
    measured = {**contenders, FLAGSHIP: slice_ or {}}
    if plans := {name: found for name, found in measured.items() if "planned_at_load" in found}:
        lines += [plan_table(plans), ""]
    apart = {name: found["breakdown"] for name, found in contenders.items() if "breakdown" in found}
    parts = list(dict.fromkeys(part for found in apart.values() for part in found["part_s"]))
    rows = []
    for name, found in apart.items():
        spent, wall = found["part_s"], found["wall_s"]
        rows.append([name, *(f"{sum(spent[p].values()) / wall:.1%}" if p in spent else "" for p in parts)])
    if rows:
        lines.append(markdown_table(["share of the profiled step", *parts], rows))
    return "\n".join(lines).strip()
