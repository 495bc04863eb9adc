#!/usr/bin/env python3
"""A live view of a run in the terminal: alarms first, then where it stands, how fast it is, and what it learned."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recipe.base.arguments import positive_seconds
from recipe.base.errors import exit_on_user_error
from recipe.base.tables import duration, ratio
from recipe.reading.alarms import alarms, heartbeat_ages
from recipe.reading.events import state_of
from recipe.run.heartbeats import read_heartbeats
from recipe.run.records import HEARTBEATS, last_metrics, read_evaluations, read_events, read_starts

EVENTS = 8  # the newest


def line(text: str, style: str = "") -> Text:
    """A line of the view. What a run folder holds may come from anywhere, and a terminal obeys control characters:
    escapes, new lines and those that turn the direction of text are left out, and rich's markup is not read.
    """
    return Text("".join(c if c.isprintable() else " " if c.isspace() else "" for c in text), style=style)


def view(run_dir: Path) -> Group:
    """What there is to see of a run now.

    Raises:
        UserError: not a run folder.
    """
    starts, events, last = read_starts(run_dir), read_events(run_dir), last_metrics(run_dir)
    beats = read_heartbeats(run_dir / HEARTBEATS, len(starts))
    ages = heartbeat_ages(run_dir / HEARTBEATS, beats) if beats else {}
    parts: list[Any] = [line(f"{run_dir}  {state_of(events)}, start {len(starts)}", style="bold")]
    raised = alarms(starts[-1], events, last, ages, beats)
    parts += [line(f"! {alarm.message}", style="bold red" if alarm.serious else "yellow") for alarm in raised]
    if not raised:
        parts.append(line("no alarms", style="green"))
    if last is None:
        parts.append(line("no step logged yet"))
    else:
        parts.append(_numbers(run_dir, starts[-1]["run_config"], last))
    if beats and state_of(events) == "running":
        slowest = max(ages.values())
        phases = sorted({beat.phase for beat in beats.values()})
        parts.append(
            line(f"{len(beats)} ranks, oldest heartbeat {slowest:.0f} s, in: {', '.join(phases)}", style="dim")
        )
    for event in events[-EVENTS:]:
        when = time.strftime("%m-%d %H:%M:%S", time.gmtime(event["time"]))
        parts.append(line(f"{when}  step {event['step']:>8,}  {event.get('message', event['event'])}", style="dim"))
    return Group(*parts)


def _numbers(run_dir: Path, run: dict[str, Any], last: dict[str, Any]) -> Table:
    total, tokens, rate = run["schedule"]["total_tokens"], last["tokens"], last["tokens_per_s"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = [
        ("step", f"{last['step']:,}", f"{tokens:,} of {total:,} tokens ({tokens / total:.1%})"),
        ("left", duration(ratio(max(0, total - tokens), rate)), f"at {rate:,.0f} tokens/s"),
        ("loss", f"{last['loss']:.4f}", f"gradient norm {last['grad_norm']:.3f}, lr {last['lr']:.3e}, {last['skipped_steps']} updates left out"),
        ("step time", f"{last['step_time_s']:.3f} s", ", ".join(f"{k} {v:.3f}" for k, v in last["phase_s"].items())),
    ]  # fmt: skip
    if "mfu" in last:
        rows.append(("MFU", f"{last['mfu']:.1%}", f"HFU {last['hfu']:.1%}"))
    if "comm_waited_s" in last:
        waits = ", ".join(f"{name} {seconds:.3f}" for name, seconds in last["comm_waited_s"].items())
        rows.append(("waits", f"{last['waited_median_s']:.3f} s", f"{waits}; slowest rank {last['slowest_rank']} on {last['slowest_host']}, {last['slowest_over_median']:.2f} of the median"))  # fmt: skip
    rows.append(("memory", f"{last['memory_gib']:.1f} GiB", "the most of rank 0"))
    rows.append(("experts", f"{last['expert_load_max_over_mean']:.2f}", "busiest over the mean, worst layer"))
    rows.append(("data", "", ", ".join(f"{name} {n:,.0f} tokens" for name, n in last["source_tokens"].items())))
    evaluations = read_evaluations(run_dir)
    if evaluations:
        newest = evaluations[-1]
        rows.append(("held-out", f"step {newest['step']:,}", ", ".join(f"{name} {result['bits_per_byte']:.4f} bits/byte" for name, result in newest["sources"].items())))  # fmt: skip
    for row in rows:
        table.add_row(*map(line, row))
    return table


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example:\n  python recipe/watch.py runs/a", formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="run_dir of a training run")
    parser.add_argument("--every", type=positive_seconds, default=5.0, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print it once; the way it is without a terminal")
    args = parser.parse_args(argv)
    console = Console()
    if args.once or not console.is_terminal:
        console.print(view(args.run))
        return 0
    try:
        with Live(view(args.run), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(args.every)
                live.update(view(args.run), refresh=True)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
