#!/usr/bin/env python3
"""A live view of a run in the terminal: alarms first, then where it stands, how fast it is, and what it learned."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recipe.base.arguments import positive_seconds
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.tables import duration, ratio
from recipe.reading.alarms import alarms, heartbeat_ages
from recipe.reading.events import state_of
from recipe.reading.phases import phase_now
from recipe.run.folder import LOCK, SUPERVISOR_LOCK
from recipe.run.heartbeats import read_heartbeats
from recipe.run.locks import lock_holder
from recipe.run.records import (
    ATTEMPTS,
    HEARTBEATS,
    a_run_of,
    last_metrics,
    read_attempts,
    read_evaluations,
    read_events,
    read_starts,
)

EXAMPLE = """examples:
  python recipe/watch.py runs/a           until the run is finished; also before it begins and while it waits for a restart
  python recipe/watch.py runs/a --once

exit code: 0 the run is finished, or ctrl-C; 2 it is no run folder."""
EVENTS = 8  # the newest
WAITING_EVERY_S = 1.0  # for the first start


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
    state = state_of(events)
    parts: list[Any] = [line(f"{run_dir}  {state}, start {len(starts)}", style="bold")]
    raised = alarms(starts[-1], events, last, ages, beats)
    parts += [line(f"! {alarm.message}", style="bold red" if alarm.serious else "yellow") for alarm in raised]
    if not raised:
        parts.append(line("no alarms", style="green"))
    if state != "finished" and _holder(run_dir) is None:
        parts.append(
            line(
                "no process trains in this folder now; start it again with --resume auto (launch/train.sh and the next Slurm job do)"
            )
        )
    if last is None:
        parts.append(line("no step logged yet"))
    else:
        parts.append(_numbers(run_dir, starts[-1]["run_config"], last, phase_now(events)[0]))
    if beats and state == "running":
        slowest = max(ages.values())
        phases = sorted({beat.phase for beat in beats.values()})
        parts.append(
            line(f"{len(beats)} ranks, oldest heartbeat {slowest:.0f} s, in: {', '.join(phases)}", style="dim")
        )
    for event in events[-EVENTS:]:
        when = time.strftime("%m-%d %H:%M:%S", time.gmtime(event["time"]))
        parts.append(line(f"{when}  step {event['step']:>8,}  {event.get('message', event['event'])}", style="dim"))
    return Group(*parts)


def _numbers(run_dir: Path, run: dict[str, Any], last: dict[str, Any], phase: int) -> Table:
    total, tokens, rate = run["schedule"]["total_tokens"], last["tokens"], last["tokens_per_s"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = [
        ("step", f"{last['step']:,}", f"{tokens:,} of {total:,} tokens ({tokens / total:.1%})"),
        ("left", duration(ratio(max(0, total - tokens), rate)), f"at {rate:,.0f} tokens/s"),
        ("loss", f"{last['loss']:.4f}", f"gradient norm {last['grad_norm']:.3f}, lr {last['lr']:.3e}, {last['skipped_steps']} updates left out"),
        ("step time", f"{last['step_time_s']:.3f} s", ", ".join(f"{k} {v:.3f}" for k, v in last["phase_s"].items())),
    ]  # fmt: skip
    if phases := run.get("phases"):
        names = [settings["name"] for settings in phases]
        rows.insert(1, ("phase", names[phase] if phase < len(names) else str(phase), f"{phase} of {', '.join(names)}; the time left is at its speed"))  # fmt: skip
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


def has_begun(run_dir: Path) -> bool:
    """Whether a start of a run is recorded here.

    Raises:
        UserError: it is a file or a folder of something else.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; give the run_dir of a training run")
    if read_attempts(run_dir):
        return True
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    if names and not names & {LOCK, SUPERVISOR_LOCK}:  # a launch takes a lock first
        raise UserError(f"{run_dir} holds other files and no run (no {ATTEMPTS}); {a_run_of(run_dir)}")
    return False


def waiting(run_dir: Path, waited_s: float) -> str:
    """What is known of a run whose first start is not recorded yet."""
    return f"waiting {duration(waited_s)} for the first start in {run_dir}: {_not_yet(run_dir)} (ctrl-C ends this view)"


def _not_yet(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return "the folder does not exist"
    if (holder := _holder(run_dir)) is not None:
        return f"{holder} starts its ranks"
    return "no process trains in the folder"


def _holder(run_dir: Path) -> str | None:
    """The supervisor or the rank 0 that runs in a folder."""
    with suppress(UserError, OSError):  # no locks on this file system: nobody knows
        for name in (SUPERVISOR_LOCK, LOCK):
            if (holder := lock_holder(run_dir / name)) is not None:
                return holder
    return None


def print_once(run_dir: Path, console: Console) -> None:
    """Print the view.

    Raises:
        UserError: there is no run in the folder, or none yet.
    """
    if not has_begun(run_dir):
        raise UserError(
            f"{run_dir} holds no run: {_not_yet(run_dir)}; give the run_dir of a training run, or run this again after its start"
        )
    console.print(view(run_dir))


def follow(run_dir: Path, every_s: float, console: Console) -> None:
    """Show a run until its schedule is done; before its first start, and between starts, wait.

    Raises:
        UserError: it is no run folder, and cannot become the one that is waited for.
    """
    began = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while not has_begun(run_dir):
            live.update(line(waiting(run_dir, time.monotonic() - began)), refresh=True)
            time.sleep(min(every_s, WAITING_EVERY_S))
        while True:
            over = state_of(read_events(run_dir)) == "finished" and _holder(run_dir) is None
            live.update(view(run_dir), refresh=True)
            if over:
                break
            time.sleep(every_s)
    console.print(line(f"the run is finished, and so is this view; python recipe/report.py {run_dir} draws all of it"))


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run_dir of a training run; on a terminal it may begin later")
    parser.add_argument(
        "--every",
        type=positive_seconds,
        default=5.0,
        metavar="SECONDS",
        help="between two looks (default: %(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="print it once and end, as it does without a terminal")
    args = parser.parse_args(argv)
    console = Console()
    try:
        if console.is_terminal and not args.once:
            follow(args.run, args.every, console)
        else:
            print_once(args.run, console)
    except KeyboardInterrupt:
        console.print("the view is ended; the run itself is not touched")
    return 0


if __name__ == "__main__":
    sys.exit(main())
