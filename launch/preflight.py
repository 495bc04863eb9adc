#!/usr/bin/env python3
"""Look at every host before a run: GPUs, versions, clocks, disks, limits, links and the speed of each GPU; write a hostfile without the bad ones."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.cluster.allocation import Allocation, add_allocation_arguments, allocation_of, run
from launch.cluster.checks import judge, median
from launch.cluster.hosts import write_hostfile
from recipe.base.arguments import positive_int
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.hardware import GIB, Cluster, accelerator_of, network_bytes_per_s
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import load_run_config
from recipe.base.strict import load_json
from recipe.base.tables import markdown_table
from recipe.planner.links import Group, Links

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = """examples:
  python launch/preflight.py --hostfile hosts --folder /shared/run --write good_hosts \\
      --config recipe/configs/runs/X.yaml --deepspeed_config ds_configs/Y.json --interconnect 400g
  python launch/preflight.py --num_gpus 2 --folder work

exit code: 0 every host is good; 1 some are not, and are not in the hostfile that is written; 2 something that you must change."""

# Of the median of all; of two, neither is the slow one.
MATMUL_SHARE, LINK_SHARE = 0.93, 0.8
FACTS_S = 300.0  # that a host may take to answer


@dataclass
class Report:
    """What is known of all hosts."""

    facts: dict[str, dict[str, Any]]
    bad: dict[str, list[str]]  # host -> reasons
    links: dict[str, Any] = field(default_factory=dict)  # of `launch/preflight_ranks.py`, with names for numbers


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_allocation_arguments(parser)
    parser.add_argument("--folder", required=True, type=Path, help="on the file system that the run will use")
    parser.add_argument("--config", type=Path, help="run config: the room that its checkpoints need is asked for")
    parser.add_argument("--deepspeed_config", type=Path, help="ds_config: its ranks are compared with the hosts'")
    parser.add_argument("--interconnect", help="Gb/s between nodes as for launch/plan.py (default: the vendor's node)")
    parser.add_argument(
        "--burn-seconds", type=float, default=30.0, help="of matmuls on every GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--mib", type=positive_int, default=256, help="that files and collectives have (default: %(default)s)"
    )
    parser.add_argument("--write", type=Path, help="hostfile of the good hosts")
    parser.add_argument("--json", type=Path, help="all that was measured")
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    args.launcher = words[at + 1 :]
    return args


def ask(allocation: Allocation, folder: Path, mib: int) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The facts of the hosts that answer, and why others do not."""
    with ThreadPoolExecutor(max_workers=64) as pool:
        answers = dict(pool.map(lambda host: (host, _ask_host(allocation, host, folder, mib)), allocation.hosts))
    facts = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    return facts, {host: [answer] for host, answer in answers.items() if isinstance(answer, str)}


def _ask_host(allocation: Allocation, host: str, folder: Path, mib: int) -> dict[str, Any] | str:
    """The facts of a host, or why there are none."""
    script = [sys.executable, str(ROOT / "launch/cluster/host_facts.py")]
    begun = time.time()
    done = allocation.run_on(host, [*script, "--folder", str(folder), "--mib", str(mib), "--host", host], FACTS_S)
    ended = time.time()
    if done.returncode:
        return f"cannot be asked: {(done.stderr.strip() or f'code {done.returncode}').splitlines()[-1]}"
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    # The host's clock was read in between; what lies outside is a difference of clocks.
    facts["clock_s"] = max(0.0, begun - facts["time"], facts["time"] - ended)
    facts["seen_here"] = (folder / f"preflight.{host}").exists()
    return facts


def judge_links(links: dict[str, Any], slots: Mapping[str, int]) -> dict[str, list[str]]:
    """What is wrong with each host by what its ranks measured: a slow GPU, slow links inside, slow links to all others."""
    bad: dict[str, list[str]] = {}
    usual_tflops = median(links["tflops"])
    numbers = iter(links["tflops"])
    for host, count in slots.items():
        for gpu in range(count):
            if (rate := next(numbers)) < MATMUL_SHARE * usual_tflops and len(links["tflops"]) > 2:
                bad.setdefault(host, []).append(
                    f"GPU {gpu} multiplies at {rate:.3g} TFLOP/s, {rate / usual_tflops:.0%} of the median; look at its clocks and heat"
                )
    for op in ("all_reduce", "all_to_all"):
        inside = {host: values[op] for host, values in links["inside"].items()}
        between = {host: median(rates) for host in slots if (rates := rates_of(links, host, op))}
        for where, rate_of in (("inside", inside), ("to the other hosts", between)):
            usual = median(list(rate_of.values()))
            for host, rate in rate_of.items():
                if len(rate_of) > 2 and rate < LINK_SHARE * usual:
                    bad.setdefault(host, []).append(
                        f"{op} {where} at {rate:.3g} GB/s, {rate / usual:.0%} of the median; look at its NICs and cables"
                    )
    return bad


def rates_of(links: dict[str, Any], host: str, op: str) -> list[float]:
    """GB/s of a collective between a host and each of the others."""
    return [values[op] for pair, values in links["between"].items() if host in pair.split(" ")]


def measure(allocation: Allocation, slots: dict[str, int], folder: Path, seconds: float, mib: int) -> dict[str, Any]:
    """Run launch/preflight_ranks.py on these hosts; raises UserError if it fails."""
    output = folder / "preflight.links.json"
    words = allocation.command(sum(slots.values()))
    script: list[object] = [ROOT / "launch/preflight_ranks.py", "--output", output]
    script += ["--burn-seconds", seconds, "--mib", mib]
    words += allocation.typed([str(word) for word in script])
    done = run(words)
    if done.returncode:
        raise UserError(f"the hosts could not measure together (code {done.returncode}):\n{done.stderr[-2000:]}")
    links = load_json(output)
    output.unlink()
    names = list(slots)
    links["inside"] = {names[int(number)]: values for number, values in links["inside"].items()}
    links["between"] = {
        " ".join(names[int(number)] for number in pair.split("-")): values for pair, values in links["between"].items()
    }
    return links


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
    config, (ds, _) = load_run_config(args.config), load_ds_config(args.deepspeed_config)
    ranks = sum(allocation.hosts.values())
    if ranks < ds.world_size:
        raise UserError(f"the hosts have {ranks} ranks, but {args.deepspeed_config} is for {ds.world_size}; add hosts")
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
        cells = [host, "BAD" if host in report.bad else "good"]
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


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    folder = args.folder.resolve()
    allocation = allocation_of(args, args.launcher, folder / "preflight")
    needed = needed_gib(args, allocation)
    facts, bad = ask(allocation, folder, args.mib)
    for host in allocation.hosts:
        (folder / f"preflight.{host}").unlink(missing_ok=True)
    report = Report(facts, bad | judge(facts, allocation.hosts, needed))
    allocation.leave_out(set(report.bad))
    good = {host: slots for host, slots in allocation.hosts.items() if host not in report.bad}
    expected: dict[str, float] = {}
    if good:
        report.links = {**measure(allocation, good, folder, args.burn_seconds, args.mib), "slots": good}
        report.bad |= judge_links(report.links, good)
        expected = planned(report.links, good, args.interconnect, args.mib)
    print(table(report, allocation.hosts))
    for name, rate in expected.items():
        print(f"planned {name}: {rate:.3g} GB/s")
    for host, reasons in report.bad.items():
        for reason in reasons:
            print(f"{host}: {reason}")
    good = {host: slots for host, slots in good.items() if host not in report.bad}
    if args.json is not None:
        write_json(args.json, {"facts": facts, "links": report.links, "planned_gb_per_s": expected, "bad": report.bad})
    if not good:
        raise UserError("no host is good; see above")
    if args.write is not None:
        write_hostfile(args.write, good)
        print(f"wrote {args.write}: {len(good)} of {len(allocation.hosts)} hosts")
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
