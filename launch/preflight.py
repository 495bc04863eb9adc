#!/usr/bin/env python3
"""Look at every host before a run: GPUs, versions, clocks, disks, limits, links and the speed of each GPU; write a hostfile without the bad ones."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.cluster.allocation import Allocation, add_allocation_arguments, allocation_of, end_running
from launch.cluster.checks import judge, median
from launch.cluster.hosts import write_hostfile
from launch.cluster.process_groups import signal_group
from launch.cluster.speeds import CPU, DISK_SPEEDS, PROGRESS, best_of, judge_links, rates_of, slow_disks
from recipe.base.arguments import positive_int, positive_seconds
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import UserError, exit_on_user_error, read_all
from recipe.base.files import write_json
from recipe.base.hardware import GIB, Cluster, accelerator_of, network_bytes_per_s
from recipe.base.model_shape import load_model_shape
from recipe.base.output_paths import check_output_file, check_output_folder
from recipe.base.ranks import located, other_name
from recipe.base.settings import load_run_config
from recipe.base.strict import load_json
from recipe.base.tables import ProgressLine, duration, markdown_table
from recipe.planner.timing.links import Group, Links

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = """examples:
  python launch/preflight.py --hostfile hosts --folder /shared/run --write good_hosts \\
      --config recipe/configs/runs/X.yaml --deepspeed_config ds_configs/Y.json --interconnect 400g
  python launch/preflight.py --num_gpus 2 --folder work

exit code: 0 every host is good; 1 some are not, and are not in the hostfile that is written; 2 something that you must change."""

FACTS_S = 300.0  # that a host may take to answer
ASKED_EVERY_S = 30.0  # between two lines about hosts that have not answered
MEASUREMENTS = 3  # at most, where hosts are slow
BURN_S, CPU_BURN_S = 30.0, 5.0  # a GPU's clocks settle as it gets warm
END_S = 15.0  # for the launcher to end ranks on other hosts


@dataclass
class Report:
    """What is known of all hosts."""

    facts: dict[str, dict[str, Any]]
    bad: dict[str, list[str]]  # host -> reasons
    notes: dict[str, list[str]] = field(
        default_factory=dict
    )  # host -> what is worth a look, and no reason to leave it out
    links: dict[str, Any] = field(default_factory=dict)  # of `launch/preflight_ranks.py`, with names for numbers
    planned: dict[str, float] = field(default_factory=dict)  # GB/s, see `planned`

    def add_slow(self, slow: dict[str, list[str]], with_gpus: bool) -> None:
        """Hosts that are slower than the others are bad; without GPUs, where other work on a host is usual, worth a look."""
        for host, reasons in slow.items():
            (self.bad if with_gpus else self.notes).setdefault(host, []).extend(reasons)

    def good_of(self, slots: Mapping[str, int]) -> dict[str, int]:
        """Those of the hosts that nothing speaks against so far."""
        return {host: ranks for host, ranks in slots.items() if host not in self.bad}

    def as_dict(self) -> dict[str, Any]:
        measured = {"facts": self.facts, "links": self.links, "planned_gb_per_s": self.planned}
        return {**measured, "bad": self.bad, "notes": self.notes}


def print_reasons(report: Report) -> None:
    for host, reasons in report.bad.items():
        for reason in reasons:
            print(f"{host}: {reason}")
    for host, reasons in report.notes.items():
        for reason in reasons:
            print(f"note: {host}: {reason}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_allocation_arguments(parser)
    parser.add_argument(
        "--folder",
        required=True,
        type=Path,
        help="on the file system that the run will use; a test file is written there and removed",
    )
    parser.add_argument("--config", type=Path, help="run config: the room that its checkpoints need is asked for")
    parser.add_argument("--deepspeed_config", type=Path, help="ds_config: its ranks are compared with the hosts'")
    parser.add_argument("--interconnect", help="Gb/s between nodes as for launch/plan.py (default: the vendor's node)")
    parser.add_argument(
        "--burn-seconds",
        type=positive_seconds,
        help=f"of matmuls on every rank (default: {BURN_S:.0f}, without GPUs {CPU_BURN_S:.0f})",
    )
    parser.add_argument(
        "--mib",
        type=positive_int,
        default=256,
        help="size of the test file and of the buffers that ranks exchange (default: %(default)s)",
    )
    parser.add_argument("--write", type=Path, help="write a hostfile of the good hosts here")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    args.launcher = words[at + 1 :]
    return args


def tell(message: str) -> None:
    """Say on standard error what is being done; the result goes to standard output."""
    print(f"preflight: {message}", file=sys.stderr, flush=True)


def ask(allocation: Allocation, folder: Path, mib: int) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The facts of the hosts that answer, and why others do not."""
    answers = _answers(allocation, list(allocation.hosts), folder, mib)
    facts = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    return facts, {host: [answer] for host, answer in answers.items() if isinstance(answer, str)}


def _answers(
    allocation: Allocation, hosts: list[str], folder: Path, mib: int, why: str = ""
) -> dict[str, dict[str, Any] | str]:
    """Facts or the reason that there are none, by host; tells how far it is."""
    tell(f"asking {counted(hosts)}{why} for GPUs, versions, limits and the speed of --folder; about 20 s")
    begun = time.monotonic()
    with ThreadPoolExecutor(max_workers=64) as pool, ProgressLine("hosts that were asked", len(hosts)) as progress:
        asked = {pool.submit(_ask_host, allocation, host, folder, mib): host for host in hosts}
        try:
            _wait_for(asked, progress)
        except BaseException:  # such as ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            end_running()
            raise
    answers = {host: future.result() for future, host in asked.items()}
    good = sum(isinstance(answer, dict) for answer in answers.values())
    tell(f"{good} of {counted(hosts)} answered, {duration(time.monotonic() - begun)}")
    return answers


def _wait_for(asked: Mapping[Future[Any], str], progress: ProgressLine) -> None:
    """Until all hosts have answered; names those that have not, at times."""
    begun = told = time.monotonic()
    left = set(asked)
    while left:
        done, left = wait(left, timeout=ASKED_EVERY_S, return_when=FIRST_COMPLETED)
        for _ in done:
            progress.advance()
        if left and time.monotonic() - told > ASKED_EVERY_S:
            told = time.monotonic()
            progress.clear()
            silent = _first(sorted(asked[future] for future in left))
            tell(f"no answer from {silent} after {told - begun:.0f} s; each host has {FACTS_S:.0f} s")


def _first(hosts: list[str]) -> str:
    return ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


def counted(hosts: Sized) -> str:
    return f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}"


def _ask_host(allocation: Allocation, host: str, folder: Path, mib: int) -> dict[str, Any] | str:
    """The facts of a host, or why there are none."""
    script = [sys.executable, str(ROOT / "launch/cluster/host_facts.py")]
    begun = time.time()
    done = allocation.run_on(host, [*script, "--folder", str(folder), "--mib", str(mib), "--host", host], FACTS_S)
    ended = time.time()
    reason = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
    try:
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if not done.returncode else {}
    except (ValueError, IndexError):
        facts, reason = {}, f"it printed {done.stdout[-80:]!r} and no facts"
    if not facts:
        return f"cannot be asked: {reason}; try by hand: {allocation.by_hand(host)}"
    # The host's clock was read in between; what lies outside is a difference of clocks.
    facts["clock_s"] = max(0.0, begun - facts["time"], facts["time"] - ended)
    facts["seen_here"] = (folder / f"preflight.{host}").exists()
    return facts


def ask_slow_disks_again(allocation: Allocation, facts: dict[str, dict[str, Any]], folder: Path, mib: int) -> None:
    """Have hosts whose disks are slow beside the others' try once more, into `facts`: the better of two counts."""
    if not (slow := list(slow_disks(facts))):
        return
    again = _answers(allocation, slow, folder, mib, f", slow at {_first(slow)}, once more")
    for host, answer in again.items():
        if isinstance(answer, dict):
            facts[host] |= {name: max(facts[host][name], answer[name]) for name in DISK_SPEEDS}


def measure_well(
    allocation: Allocation, slots: dict[str, int], folder: Path, seconds: float, mib: int
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What ranks measure of each other, and the hosts that are slow by it; on GPUs the best of several times.

    Raises:
        UserError: they cannot.
    """
    links = measure(allocation, slots, folder, seconds, mib)
    for _ in range(MEASUREMENTS - 1):
        slow = judge_links(links, slots)
        if not slow or links["device"] == CPU:
            return links, slow
        tell(f"slow beside the others: {_first(list(slow))}; measuring once more, since the best time counts")
        links = best_of(links, measure(allocation, slots, folder, seconds, mib))
    return links, judge_links(links, slots)


def measure(allocation: Allocation, slots: dict[str, int], folder: Path, seconds: float, mib: int) -> dict[str, Any]:
    """Run launch/preflight_ranks.py on these hosts; raises UserError if it fails."""
    pairs = len(slots) * (len(slots) - 1) // 2
    between = f", then each of {pairs} pairs of hosts" if pairs else ""
    tell(f"measuring {counted(slots)} together: the ranks start (about 20 s), {seconds:.0f} s of matmuls{between}")
    begun = time.monotonic()
    output = folder / "preflight.links.json"
    words = allocation.command(sum(slots.values()))
    script: list[object] = [ROOT / "launch/preflight_ranks.py", "--output", output]
    script += ["--burn-seconds", seconds, "--mib", mib]
    words += allocation.typed([str(word) for word in script])
    code, text = run_telling(words)
    if code:
        raise UserError(
            f"{counted(slots)} could not measure together (exit code {code}); the end of what the ranks and the launcher printed:\n"
            f"{text[-2000:]}"
        )
    tell(f"{counted(slots)} measured together, {duration(time.monotonic() - begun)}")
    links = load_json(output)
    output.unlink()
    names = list(slots)
    links["inside"] = {names[int(number)]: values for number, values in links["inside"].items()}
    links["between"] = {
        " ".join(names[int(number)] for number in pair.split("-")): values for pair, values in links["between"].items()
    }
    return links


def run_telling(words: list[str]) -> tuple[int, str]:
    """Run a command to its end, telling the lines of progress that its ranks print; its exit code and all else that it printed."""
    begun, printed = time.monotonic(), []
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
        start_new_session=True,  # a terminal's ctrl-C comes to this process, which ends the launcher in order
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            _, mark, message = line.partition(PROGRESS)  # pdsh writes the host before it
            if mark:
                tell(f"{message.strip()}, {duration(time.monotonic() - begun)} since the start")
            else:
                printed.append(line)
        return process.wait(), "".join(printed)
    finally:
        if process.poll() is None:
            tell("ending the ranks")
            process.terminate()  # the launcher ends its ranks, on other hosts too
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            signal_group(process.pid, signal.SIGKILL)  # its ranks of this host too


def planned(links: dict[str, Any], slots: Mapping[str, int], interconnect: str | None, mib: int) -> dict[str, float]:
    """GB/s that the planner expects of the same collectives; nothing for a GPU that it does not know."""
    accelerator, each = accelerator_of(links["device"]), next(iter(slots.values()))
    if accelerator is None:
        return {}
    network = network_bytes_per_s(interconnect or accelerator.network)
    model, size = Links(Cluster(accelerator, 2 * each, network)), mib * 2**20
    both = {"inside": Group(each, each), "between": Group(2 * each, each)}
    rates = {}
    for where, group in both.items():
        rates[f"{where} all_reduce"] = size / model.ring_s("all_reduce", size, group) / 1e9 if group.ranks > 1 else 0.0
        rates[f"{where} all_to_all"] = size / model.all_to_all_s(size, group) / 1e9 if group.ranks > 1 else 0.0
    return rates


def needed_gib(args: argparse.Namespace, allocation: Allocation) -> float:
    """GiB of the checkpoints that a run keeps, one of them being written; checks that the ranks are enough.

    Raises:
        UserError: only one of the two configs, an unreadable one, or fewer ranks than the ds_config is for.
    """
    if (args.config is None) != (args.deepspeed_config is None):
        raise UserError("give both --config and --deepspeed_config, or neither")
    if args.config is None:
        return 0.0
    config, (ds, _) = read_all(lambda: load_run_config(args.config), lambda: load_ds_config(args.deepspeed_config))
    ranks = sum(allocation.hosts.values())
    if ranks < ds.world_size:
        raise UserError(
            f"the hosts have {ranks} rank{'s' * (ranks != 1)}, but {args.deepspeed_config} is for {ds.world_size}; add hosts"
        )
    # Weights in their precision, and two moments and the weights in fp32: 14 bytes, or 12 where the weights are fp32.
    per_parameter = 14 if ds.bf16_enabled else 12
    size = per_parameter * sum(load_model_shape(config.model).parameters().values())
    return (config.checkpoint.keep_last + 1) * size / GIB


def table(report: Report, slots: Mapping[str, int]) -> str:
    """A line per host."""
    rows = []
    number = 0
    for host, count in slots.items():
        f, links = report.facts.get(host), report.links
        measured = bool(links) and host in links["slots"]
        rate = f"{min(links['tflops'][number : number + count]):.3g}" if measured else "-"
        number += count if measured else 0
        cells = [located(host, other_name(host, f["hostname"])) if f else host, "BAD" if host in report.bad else "good"]
        cells += [f"{len(f['gpus'])}", f"{f['clock_s'] * 1000:.0f}", f"{f['write_mb_per_s']:,.0f}", f"{f['read_mb_per_s']:,.0f}",
                  f"{f['free_gib']:,.0f}"] if f else ["-"] * 5  # fmt: skip
        cells.append(rate)
        for op in ("all_reduce", "all_to_all"):
            cells.append(f"{links['inside'][host][op]:.3g}" if measured and host in links["inside"] else "-")
            rates = rates_of(links, host, op) if measured else []
            cells.append(f"{median(rates):.3g} / {min(rates):.3g}" if rates else "-")
        rows.append(cells)
    head = ["host", "", "GPUs", "clock ms", "write MB/s", "read MB/s", "free GiB", "TFLOP/s",
            "all-reduce inside", "between (median / least)", "all-to-all inside", "between"]  # fmt: skip
    return markdown_table(head, rows, left=2)


def prepared(args: argparse.Namespace) -> tuple[Allocation, float]:
    """The hosts to look at, and the GiB that a run needs.

    Raises:
        UserError: arguments with which nothing can be measured or written.
    """
    check_output_folder("--folder", args.folder)
    for name in ("write", "json"):
        if (path := getattr(args, name)) is not None:
            check_output_file(f"--{name}", path)
    if args.interconnect is not None:
        network_bytes_per_s(args.interconnect)  # refused now, and not after the measurement
    args.folder = args.folder.resolve()
    allocation = allocation_of(args, args.launcher, args.folder / "preflight")
    needed = needed_gib(args, allocation)
    allocation.check_programs()
    return allocation, needed


def looked_at(args: argparse.Namespace, allocation: Allocation, needed: float) -> Report:
    """Each host alone, then together those that are good until then."""
    facts, bad = ask(allocation, args.folder, args.mib)
    ask_slow_disks_again(allocation, facts, args.folder, args.mib)
    for host in allocation.hosts:
        (args.folder / f"preflight.{host}").unlink(missing_ok=True)
    report = Report(facts, bad | judge(facts, allocation.hosts, needed))
    with_gpus = any(f["gpus"] for f in facts.values())
    report.add_slow(slow_disks(facts), with_gpus)
    allocation.leave_out(set(report.bad))
    if good := report.good_of(allocation.hosts):
        burn_s = args.burn_seconds or (BURN_S if with_gpus else CPU_BURN_S)
        links, slow = measure_well(allocation, good, args.folder, burn_s, args.mib)
        report.links = {**links, "slots": good}
        report.add_slow(slow, with_gpus)
        report.planned = planned(links, good, args.interconnect, args.mib)
    return report


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    allocation, needed = prepared(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    report = looked_at(args, allocation, needed)
    print(table(report, allocation.hosts))
    for name, rate in report.planned.items():
        print(f"planned {name}: {rate:.3g} GB/s")
    print_reasons(report)
    if args.json is not None:
        write_json(args.json, report.as_dict())
    good = report.good_of(allocation.hosts)
    if not good:
        raise UserError("no host is good; correct the problems named above and run this again")
    if args.write is not None:
        write_hostfile(args.write, good)
        print(f"wrote {args.write}: {len(good)} of {counted(allocation.hosts)}")
    elif report.bad:
        print(f"{len(good)} of {counted(allocation.hosts)} are good; --write FILE writes a hostfile of those")
    else:
        print(f"all {counted(allocation.hosts)} are good" if len(good) > 1 else "the host is good")
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
