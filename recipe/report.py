#!/usr/bin/env python3
"""One HTML file of a run: held-out loss, faults and recoveries, speed, routing, goodput, plan and measured. Needs no network."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.output_paths import check_output_file
from recipe.base.pages.palette import LOST, RUN, TIMES, source_styles, time_style
from recipe.base.pages.template import write_page
from recipe.base.tables import duration, ratio
from recipe.reading.charts import Curve, Mark, area_chart, heatmap, line_chart
from recipe.reading.downstream import counted_downstream, gap_rows, score_rows
from recipe.reading.events import Happened, happened
from recipe.reading.goodput import goodput
from recipe.reading.headline import HeldOut, facts, held_out, held_out_cards, held_out_note, why_ended
from recipe.reading.history import DRAWABLE, History, median, read_history
from recipe.reading.planned import planned_and_measured
from recipe.run.records import DOWNSTREAM_RESULTS, METRICS, read_events, read_record, read_starts, run_name

TEMPLATE = Path(__file__).parent / "reading" / "report.html.j2"
MOST_HAPPENED, MOST_STARTS = 60, 20  # rows of the tables; the newest
MOST_MARKS = 12  # of the events that are one row


def report(run_dir: Path, interconnect: str | None) -> str:
    """The page.

    Raises:
        UserError: no run, or one without a logged step.
    """
    starts, events = read_starts(run_dir), read_events(run_dir)
    if not (run_dir / METRICS).exists():
        raise UserError(f"{run_dir} has no metrics.jsonl yet; wait for the first logged step")
    history = read_history(run_dir)
    if not len(history.steps):
        raise UserError(f"{run_dir}/metrics.jsonl holds no whole line yet; wait for the first logged step")
    results = held_out(run_dir, events)
    of_data = history.under("source_tokens")
    styles = source_styles([*(results.names if results else ()), *of_data])
    spent = goodput(starts, events, history)
    groups = happened(events)
    shown = list(enumerate(groups, start=1))[-MOST_HAPPENED:]
    plan, no_plan = planned_and_measured(starts, events, history, interconnect)
    now = time.time()
    return write_page(
        TEMPLATE,
        {"percent": lambda share: f"{share:.1%}"},
        name=run_name(run_dir),
        where=run_dir.resolve(),
        written=_when(now),
        cards=held_out_cards(results, styles) if results else [],
        held_out_note=held_out_note(results) if results else "",
        during_training=results is not None and results.during_training,
        why_ended=why_ended(events),
        facts=facts(starts, events, history, spent, now),
        charts=_charts(history, results, styles, [mark for number, group in shown for mark in _marks(number, group)]),
        lost=_lost(history),
        happened=[_row(number, group) for number, group in shown],
        left_out=len(groups) - len(shown),
        goodput=_parts(spent),
        waits=_waits(history),
        data=_data(history, styles),
        plan=plan,
        no_plan=no_plan,
        downstream=_downstream(run_dir, events),
        starts=[
            {"number": number, "when": _when(start["time"]), "command": " ".join(start["command"])}
            for number, start in list(enumerate(starts, start=1))[-MOST_STARTS:]
        ],
        configs=json.dumps(
            {k: starts[-1][k] for k in ("run_config", "ds_config", "packages")}, indent=1, ensure_ascii=False
        ),
    )


def _charts(
    history: History, results: HeldOut | None, styles: dict[str, str], marks: list[Mark]
) -> dict[str, Markup | None]:
    def of_run(column: str, name: str = "") -> Curve:
        return Curve(name, history.steps, history[column], RUN)

    lost = [Curve("", stretch["step"], stretch["loss"], LOST) for stretch in history.lost]
    if lost:
        lost[0] = Curve("lost, and done again", lost[0].x, lost[0].y, LOST)
    held = (
        [Curve(name, results.steps, values, styles[name]) for name, values in results.sources.items()]
        if results
        else []
    )
    phases = {name.replace("_", " "): values for name, values in history.under("phase_s").items()}
    known = [name for name in TIMES if name in phases]
    ordered = [*known, *(name for name in phases if name not in TIMES)]
    return {
        "held_out": line_chart(held, y="held-out loss, bits per byte", until=float(history.steps[-1])) if results and results.during_training else None,
        "loss": line_chart([of_run("loss", "training" if lost else ""), *lost], marks, y="training loss, nats per token", cut=True),
        "speed": line_chart([of_run("tokens_per_s")], marks, y="speed, tokens per second", from_zero=True),
        "phases": area_chart([Curve(name, history.steps, phases[name], time_style(name)) for name in ordered], y="time of a step, s"),
        "loads": _loads(history),
        "grad_norm": line_chart([of_run("grad_norm")], y="gradient norm before clipping", from_zero=True, cut=True),
    }  # fmt: skip


def _loads(history: History) -> Markup:
    loads = history.layer_loads_TL[np.abs(history.layer_loads_TL) < DRAWABLE]
    most = max(float(np.percentile(loads, 99)) if loads.size else 1.0, 1.5)
    ends = ("1.0: every expert has the same load", f"{most:.1f} or more times the mean load")
    return heatmap(history.steps, history.layer_loads_TL, least=1.0, most=most, y="MoE layer", scale=ends)


def _marks(number: int, group: Happened) -> list[Mark]:
    """Of a fault each time, of warnings in a row the first."""
    events = group.events[-MOST_MARKS:] if group.serious else [group.first]
    message = f"{number}: {group.title}"
    return [Mark(e["step"], number, f"{message}, {e.get('message', '')}", group.style) for e in events]


def _row(number: int, group: Happened) -> dict[str, Any]:
    first, last = group.first["step"], group.last["step"]
    return {
        "number": number,
        "style": group.style,
        "when": _when(group.first["time"]),
        "step": f"{first:,}" if first == last else f"{first:,} to {last:,}",
        "title": group.title,
        "count": group.count,
        "sentences": group.sentences,
        "message": group.last.get("message", ""),
    }


def _lost(history: History) -> str:
    steps = sum(len(stretch["step"]) for stretch in history.lost)
    return f"{steps:,} logged step{'s' if steps > 1 else ''}" if steps else ""


def _parts(spent: dict[str, float]) -> list[dict[str, Any]]:
    whole = sum(spent.values()) or 1.0
    return [
        {"name": name, "time": duration(seconds), "share": seconds / whole, "style": time_style(name)}
        for name, seconds in spent.items()
    ]


def _waits(history: History) -> list[tuple[str, str, str]]:
    """Of each kind of collective the median wait of a sampled step, and its share of the step."""
    step_s = median(history["step_time_s"])
    waits = {name.replace("_", "-"): median(values) for name, values in history.under("comm_waited_s").items()}
    return [
        (name, f"{seconds:.3g}", f"{ratio(seconds, step_s):.1%}")
        for name, seconds in sorted(waits.items(), key=lambda item: -item[1])
    ]


def _data(history: History, styles: dict[str, str]) -> list[dict[str, Any]]:
    read = {name: float(values[-1]) for name, values in history.under("source_tokens").items()}
    epochs = {name: float(values[-1]) for name, values in history.under("source_epochs").items()}
    whole = sum(read.values()) or 1.0
    return [
        {
            "name": name,
            "style": styles[name],
            "tokens": tokens,
            "share": tokens / whole,
            "passes": f"{epochs[name]:.2f}" if name in epochs else "",
        }
        for name, tokens in read.items()
    ]


def _downstream(run_dir: Path, events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the newest results during training, else of those that recipe/evaluate_model.py downstream has written."""
    during = counted_downstream(run_dir, events)
    later = read_record(run_dir / DOWNSTREAM_RESULTS)
    if during and (later is None or later.get("step", 0) <= during[-1]["step"]):
        return {"scores": score_rows(during), "gaps": gap_rows(during[-1])}
    return {"scores": score_rows([{"step": math.nan, **later}]), "gaps": gap_rows(later)} if later is not None else {}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example:\n  python recipe/report.py runs/a", formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="run_dir of a training run")
    parser.add_argument("--output", type=Path, help="(default: report.html in the run_dir)")
    parser.add_argument("--interconnect", help="Gb/s between nodes for the plan, as for launch/plan.py")
    args = parser.parse_args(argv)
    output = args.output or args.run / "report.html"
    check_output_file("--output", output)
    write_text(output, report(args.run, args.interconnect))
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main())
