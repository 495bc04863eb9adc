#!/usr/bin/env python3
"""What a GPU says of this recipe within ten minutes: is it right, how fast is it, where is the plan wrong.

    python benchmarks/gpu.py                     or `make gpu`; writes work/gpu/GPU_DATE.json
    python benchmarks/gpu.py --wheels FOLDER     without network: packages that this Python lacks, from wheels
    python benchmarks/gpu.py --table             the committed results as Markdown

What matters most comes first: the checks of tests/gpu, then kernels and whole training steps beside other programs, then
constants for `plan.py --calibration`. Each finding is written at once, so that an end at any time leaves all until then.
One GPU is used. Exit code 0: each check that is possible here has passed. 1: something has failed or was not done. 2: it
could not start.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

# Of the standard library alone: other packages may come with --wheels.
from benchmarks.gpu_run import machine, result, sections, tables  # noqa: E402
from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.output_paths import check_output_folder  # noqa: E402

FULL_GIB = 78.0  # of a GPU of 80 GB, for which the sizes are chosen; CUDA reports 79.3 GiB and more


def say(line: str) -> None:
    with suppress(OSError):  # a terminal or a pipe that has gone ends no measurement
        print(line, file=sys.stderr, flush=True)


@contextmanager
def ends_in_order() -> Iterator[None]:
    """Have SIGTERM, as of Slurm, and the end of a terminal do what ctrl-C does; while it ends, further ones change nothing."""

    def interrupt(*_: object) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    # One that is ignored, as nohup has it, stays so.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def checked_facts(args: argparse.Namespace, env: dict[str, str]) -> dict[str, Any]:
    """Raises UserError if there is no GPU and --small is not given."""
    facts = machine.facts_of(sections.COMMANDS["facts"], env)
    if not args.small and not facts["gpus"]:
        raise UserError(
            f"torch {facts['packages'].get('torch')} finds no GPU here: {facts['no_gpu']}; start it where there is one, on a "
            "cluster with srun --gpus 1 make gpu, or rehearse it on CPU with --small"
        )
    command = " ".join(["python", "benchmarks/gpu.py", *args.words])
    return {**facts, **machine.source(), "date": date.today().isoformat(), "command": command, "small": args.small}


def tell_machine(run: sections.Run, facts: dict[str, Any]) -> None:
    """What the user must know of this GPU before its figures come."""
    run.say(tables.heading(run.result.values).replace("; ", "\n    "))
    if facts["gpus"] > 1:
        run.say(f"1 of the {facts['gpus']} GPUs is used, the first; CUDA_VISIBLE_DEVICES=3 would take another")
    if not facts["gpus"]:
        return
    if not machine.has_compiler():
        run.note("no C compiler (gcc, clang or $CC) is here: Triton needs one, and what is compiled fails")
    taken = facts["memory_gib"] - facts["free_gib"]
    if taken > 0.05 * facts["memory_gib"]:
        run.note(f"other processes had {taken:.0f} GiB of this GPU: times and memory are not those of a free one")
    if facts["memory_gib"] < FULL_GIB:
        run.note(
            f"this GPU has {facts['memory_gib']:.0f} GiB, and the sizes are chosen for 80 GB: the training step has fewer layers and "
            "sequences, and what does not fit fails as out of memory"
        )


def measure(args: argparse.Namespace, began_s: float) -> int:
    check_output_folder("--output", args.output)
    machine.check_started_once()
    with ends_in_order(), machine.packages_of(args.wheels) as target:
        machine.check_packages()
        env = machine.environment(args.output, target, args.small)
        facts = checked_facts(args, env)
        budget_s = 60.0 * args.minutes
        found = result.new_result(args.output, facts, budget_s)
        run = sections.Run(found, env, args.small, budget_s, began_s + budget_s, say)
        found.write()
        tell_machine(run, facts)
        try:
            sections.measure(run, [args.only] if args.only else list(sections.PROCESSES))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what was measured until then is in {found.path}") from None
        tell_files(found)
        print(tables.markdown(found.values, again=False), flush=True)
    return int(run.failed)


def tell_files(found: result.Result) -> None:
    say(f"\nresult: {found.path}\nas tables: python benchmarks/gpu.py --table {found.path}")
    say(f"what its processes have printed: {found.folder}/*.log")
    if found.calibration_path.exists():
        say(f"calibration: {found.calibration_path}, for launch/plan.py --calibration")
    if not found.values["small"]:
        say(
            f"for docs/performance.md: copy both into {result.COMMITTED.relative_to(ROOT)}, then python -m tests.printed"
        )


def calibrate_again(output: Path) -> int:
    """The calibration of the newest result of a folder, by what is measured in it; it takes no GPU."""
    earlier = result.results_in(output) if output.is_dir() else []
    if not earlier:
        raise UserError(
            f"--only calibrated reads the newest result in {output}, and there is none; measure first, without --only"
        )
    found = max(earlier, key=lambda one: one.path.stat().st_mtime)
    run = sections.Run(found, {}, found.values["small"], 0.0, 0.0, say)
    sections.measure(run, ["calibrated"])
    tell_files(found)
    return int(run.failed)


def print_tables(files: list[Path]) -> int:
    results = [result.load_result(file) for file in files] if files else result.results_in(result.COMMITTED)
    print("\n\n".join(tables.markdown(each.values) for each in results) or tables.NONE_YET)
    return 0


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("work/gpu"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=positive_int, default=10, help="that all of it may take (default: %(default)s)"
    )
    parser.add_argument("--only", choices=list(sections.PROCESSES),
                        help="one part; calibrated: from the newest result in --output, without a GPU")  # fmt: skip
    parser.add_argument("--wheels", type=Path, metavar="FOLDER",
                        help="with .whl files, which are installed for this run alone, without network and dependencies")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="rehearse all of it on CPU, with small sizes")
    parser.add_argument("--table", type=Path, nargs="*", metavar="FILE",
                        help="print results as Markdown, without a file those of benchmarks/results/gpu; measure nothing")  # fmt: skip
    args = parser.parse_args(argv)
    args.words = argv if argv is not None else sys.argv[1:]
    args.output = args.output.absolute()  # its processes work in the project's folder
    return args


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    began_s = time.monotonic()
    args = parsed(argv)
    if args.table is not None:
        return print_tables(args.table)
    if args.only == "calibrated":
        return calibrate_again(args.output)
    return measure(args, began_s)


if __name__ == "__main__":
    sys.exit(main())
