#!/usr/bin/env python3
"""One HTML file of a run: loss, faults and recoveries, speed, routing, goodput, plan against measured. Needs no network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.output_paths import check_output_file
from recipe.base.tables import duration, ratio
from recipe.reading import charts
from recipe.reading.charts import Curve, Mark
from recipe.reading.events import Happened, faults, state_of
from recipe.reading.goodput import goodput
from recipe.reading.history import DRAWABLE, History, read_history
from recipe.reading.planned import planned_and_measured
from recipe.run.records import DOWNSTREAM_RESULTS, METRICS, read_evaluations, read_events, read_record, read_starts

MOST_HAPPENED, MOST_STARTS = 60, 20  # rows of the tables; the newest
STYLES = ("c0", "c1", "c2", "c3", "c4", "c5")
TITLES = {
    "attempt_ended": "run ended",
    "rewind": "went back",
    "step_skipped": "update left out",
    "straggler": "slow rank",
    "data_skipped": "damaged data",
    "checkpoint_failed": "no checkpoint",
    "checkpoint_damaged": "damaged checkpoint",
    "fired": "remedy",
}


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
    evaluations = read_evaluations(run_dir)
    happened = faults(events)
    shown = happened[-MOST_HAPPENED:]
    first = len(happened) - len(shown) + 1
    marks = [_mark(number, fault) for number, fault in enumerate(shown, start=first)]
    spent = goodput(starts, events, history)
    plan, no_plan = planned_and_measured(starts[-1], events, history, interconnect)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "reading"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["thousands"] = lambda n: f"{n:,.0f}"
    loads = history.layer_loads_TL[np.abs(history.layer_loads_TL) < DRAWABLE]
    hottest = float(np.percentile(loads, 99)) if loads.size else 1.0
    page = environment.get_template("report.html.j2").render(
        name=run_dir.resolve().name,
        where=run_dir.resolve(),
        written=_when(time.time()),
        facts=_facts(starts, events, history, evaluations, spent),
        charts=_charts(history, evaluations, marks, max(hottest, 1.5)),
        hottest=max(hottest, 1.5),
        lost=_lost(history),
        happened=[_row(number, fault) for number, fault in enumerate(shown, start=first)],
        left_out=len(happened) - len(shown),
        goodput=_parts(spent),
        data=_data(history),
        plan=plan,
        no_plan=no_plan,
        downstream=_downstream(run_dir / DOWNSTREAM_RESULTS),
        starts=[
            {"number": number, "when": _when(start["time"]), "command": " ".join(start["command"])}
            for number, start in list(enumerate(starts, start=1))[-MOST_STARTS:]
        ],
        configs=json.dumps(
            {k: starts[-1][k] for k in ("run_config", "ds_config", "packages")}, indent=1, ensure_ascii=False
        ),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # names of files need not be UTF-8


def _charts(history: History, evaluations: list[dict[str, Any]], marks: list[Mark], hottest: float) -> dict[str, Any]:
    steps = history.steps
    lost = [Curve("", stretch["step"], stretch["loss"], "lost") for stretch in history.lost]
    if lost:
        lost[0] = Curve("done again", lost[0].x, lost[0].y, "lost")
    held_out = [
        Curve(name, np.array([e["step"] for e in evaluations]), np.array([e["sources"][name]["bits_per_byte"] for e in evaluations]), style)
        for name, style in zip(evaluations[-1]["sources"] if evaluations else (), STYLES * 9, strict=False)
    ]  # fmt: skip
    of = lambda mapping: [  # noqa: E731
        Curve(name.replace("_", " "), steps, values, style)
        for (name, values), style in zip(sorted(history.under(mapping).items()), STYLES * 9, strict=False)
    ]
    waits = of("comm_waited_s")
    return {
        "loss": charts.line_chart([Curve("training", steps, history["loss"], "c0"), *lost], marks, unit="nats per token"),
        "held_out": charts.line_chart(held_out, unit="bits per byte") if held_out else None,
        "speed": charts.line_chart([Curve("tokens per second", steps, history["tokens_per_s"], "c2")], marks, unit="tokens/s", from_zero=True),
        "phases": charts.line_chart(of("phase_s"), unit="s", from_zero=True),
        "waits": charts.line_chart(waits, unit="s", from_zero=True) if waits else None,
        "loads": charts.heatmap(steps, history.layer_loads_TL, least=1.0, most=hottest),
        "grad_norm": charts.line_chart([Curve("", steps, history["grad_norm"], "c3")], unit="norm before clipping", from_zero=True),
    }  # fmt: skip


def _facts(starts: list[Any], events: list[Any], history: History, evaluations: list[Any], spent: dict[str, float]) -> list[tuple[str, str]]:  # fmt: skip
    run, tokens = starts[-1]["run_config"], history["tokens"][-1]
    total = run["schedule"]["total_tokens"]
    rate = float(np.nanmedian(history["tokens_per_s"][-50:]))
    facts = [
        ("state", state_of(events)),
        ("step", f"{history.steps[-1]:,}"),
        ("tokens", f"{charts.short(tokens)} of {charts.short(total)}"),
        ("loss", f"{history['loss'][-1]:.4f}"),
        ("tokens/s", f"{rate:,.0f}"),
    ]
    if np.isfinite(history["mfu"][-1]):
        facts.append(("MFU", f"{history['mfu'][-1]:.1%}"))
    if tokens < total:
        facts.append(("left", duration(ratio(total - tokens, rate))))
    if evaluations:
        newest = evaluations[-1]["sources"]
        facts += [(f"held-out {name}", f"{result['bits_per_byte']:.4f} bits/byte") for name, result in newest.items()]
    whole = sum(spent.values())
    facts.append(("goodput", f"{spent['training'] / whole:.1%}" if whole else "-"))
    facts.append(("starts", f"{len(starts)}"))
    return facts


def _mark(number: int, fault: Happened) -> Mark:
    message = f"{number}: {TITLES.get(fault.kind, fault.kind)}, {fault.first.get('message', '')}"
    return Mark(fault.first["step"], str(number), message, "bad" if fault.serious else "warn")


def _row(number: int, fault: Happened) -> dict[str, Any]:
    return {
        "label": number,
        "style": "bad" if fault.serious else "warn",
        "when": _when(fault.first["time"]),
        "step": fault.first["step"],
        "title": TITLES.get(fault.kind, fault.kind.replace("_", " ")),
        "count": fault.count,
        "message": fault.last.get("message", ""),
    }


def _lost(history: History) -> str:
    steps = sum(len(stretch["step"]) for stretch in history.lost)
    return f"{steps:,} logged step{'s' if steps > 1 else ''}" if steps else ""


def _parts(spent: dict[str, float]) -> list[dict[str, Any]]:
    whole = sum(spent.values()) or 1.0
    styles = ("c2", "c4", "c0", "c3", "lost", "c1", "c5")
    return [
        {"name": name, "time": duration(seconds), "share": seconds / whole, "style": style}
        for (name, seconds), style in zip(spent.items(), styles, strict=True)
    ]


def _data(history: History) -> list[dict[str, Any]]:
    read = {name: float(values[-1]) for name, values in history.under("source_tokens").items()}
    whole = sum(read.values()) or 1.0
    return [{"name": name, "tokens": tokens, "share": tokens / whole} for name, tokens in read.items()]


def _downstream(path: Path) -> list[dict[str, Any]]:
    """Rows of the results that recipe/evaluate_model.py downstream has written, if any."""
    results = read_record(path) or {"tasks": {}}
    return [
        {
            "task": task,
            "metric": metric,
            "score": score["value"],
            "stderr": "" if score["stderr"] is None else f"{score['stderr']:.4f}",
            "step": results.get("step", ""),
        }
        for task, metrics in results["tasks"].items()
        for metric, score in metrics.items()
    ]


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
