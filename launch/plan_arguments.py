"""The words of launch/plan.py, and which of them go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from recipe.base.arguments import binary_count, count, positive_int
from recipe.base.errors import UserError
from recipe.base.hardware import ACCELERATORS
from recipe.base.reliability import GB, OwnCluster
from recipe.base.settings import RECOMPUTES
from recipe.planner.search.search import STAGES

DEFAULT_GPU = "a100-80gb"
SEQ_LENGTH, TOKENS, GLOBAL_BATCH_TOKENS = 4096, 1e12, 8 * 2**20  # where no flag says others
EXAMPLE = """examples:
  python launch/plan.py --config recipe/configs/runs/pretrain_30b.yaml --ds-config ds_configs/a100_256.json \\
      --interconnect 400g
  python launch/plan.py --model recipe/configs/models/30b-a3b --ds-config ds_configs/a100_256.json \\
      --gpu a100-80gb --interconnect 400g
  python launch/plan.py --model recipe/configs/models/30b-a3b --gpus 256 --gpu a100-80gb --interconnect 8x200g \\
      --search --global-batch-tokens 8M --write mine.json
  python launch/plan.py --model recipe/configs/models/1b-a0.3b --ds-config ds_configs/h200_1.json \\
      --calibration h200_calibration.json
  python launch/plan.py --model recipe/configs/models/7b-a1b recipe/configs/models/30b-a3b --gpus 256 1024 \\
      --global-batch-tokens 8M 32M --search --loss work/ladder/ladder.json --target-bits-per-byte en=0.7 zh=0.9
  python launch/plan.py --model recipe/configs/models/tiny --cpu-ranks 4 --write work/cpu_4.json"""


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        help="folder with the model's config.json, such as recipe/configs/models/30b-a3b; required, but with --config; "
        "several with --target-bits-per-byte",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="run config: plans its phases with --ds-config, or the run as its one phase",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --config: override a key of it; may be repeated",
    )
    parser.add_argument(
        "--phase",
        metavar="NAME",
        help="with --config: everything of this phase, with each term of its memory (default: a table of all)",
    )
    parser.add_argument(
        "--document-tokens",
        type=positive_int,
        metavar="N",
        help="with --config: length of the document that a token is in on the average, where data.document_attention keeps attention "
        "inside (default: of the sequence, the most time)",
    )
    parser.add_argument(
        "--gpus",
        type=positive_int,
        nargs="+",
        help="GPUs of the cluster (default: what the ds_config is written for); several with --target-bits-per-byte",
    )
    parser.add_argument(
        "--gpu",
        help=f"of the cluster: {', '.join(a.name for a in ACCELERATORS)} (default: the calibration's, or {DEFAULT_GPU})",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="constants of this kind of GPU as benchmarks/calibration.py wrote them from a measurement; "
        "those that it lacks stay the planner's (default: all are the planner's)",
    )
    parser.add_argument(
        "--interconnect",
        help="Gb/s between nodes: 400g for a whole node, 8x200g for 8 NICs (default: the vendor's node)",
    )
    parser.add_argument("--ds-config", type=Path, help="the ds_config to plan")
    parser.add_argument(
        "--search",
        action="store_true",
        default=None,
        help="look for the fastest ds_config that fits, of all choices (seconds)",
    )
    parser.add_argument(
        "--zero",
        type=int,
        choices=STAGES,
        action="append",
        help="only this stage; may be repeated (default: 3; with --search: all)",
    )
    parser.add_argument(
        "--ep",
        type=positive_int,
        action="append",
        help="only this expert-parallel size; may be repeated (default: the node; with --search: all)",
    )
    parser.add_argument(
        "--recompute",
        choices=RECOMPUTES,
        help="compute.recompute of the run (default: selective, with the ds_config's recipe.kept_gib; without --ds-config: the faster)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute.compile of the run (default: on, as in recipe/configs/runs/pretrain_30b.yaml)",
    )
    parser.add_argument("--seq", type=positive_int, help=f"tokens of a sequence (default: {SEQ_LENGTH})")
    parser.add_argument(
        "--global-batch-tokens",
        type=binary_count,
        nargs="+",
        help="tokens of a step, without --ds-config; M is 2**20 (default: 8M); several with --target-bits-per-byte",
    )
    parser.add_argument(
        "--imbalance",
        type=count,
        help="assignments of the busiest rank over the mean, as a run has measured it (default: a range of values)",
    )
    parser.add_argument("--tokens", type=count, help="tokens of the run (default: 1T)")
    parser.add_argument(
        "--usd-per-gpu-hour",
        type=count,
        help="price of a GPU-hour in USD (default: a list price, see recipe/base/hardware.py)",
    )
    parser.add_argument(
        "--failures-per-gpu-day",
        type=float,
        metavar="RATE",
        help="failures of your cluster that end a run, over GPUs and days (default: a published range, recipe/base/reliability.py)",
    )
    parser.add_argument(
        "--restart-s",
        type=float,
        metavar="S",
        help="seconds from a failure to the next step on your cluster, without reading the checkpoint (default: a published range)",
    )
    parser.add_argument(
        "--node-storage-gb-per-s",
        type=float,
        metavar="GB",
        help="GB/s that a node of your cluster writes and reads while all nodes do (default: a published range)",
    )
    parser.add_argument(
        "--loss",
        type=Path,
        metavar="LADDER_JSON",
        help="print the loss that the law of this ladder (launch/ladder.py) gives the run; with --model",
    )
    parser.add_argument(
        "--target-bits-per-byte",
        nargs="+",
        metavar="X",
        help="with --search and --loss: rank models, GPUs and batches by what this held-out loss costs; a number for all sources of the "
        "ladder, or one each for some, such as en=0.9 zh=1.1",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, help="file to write the chosen ds_config to; without --ds-config")
    parser.add_argument(
        "--cpu-ranks",
        type=positive_int,
        metavar="N",
        help="write a ds_config for trying a small model on N CPU processes, as ds_configs/cpu_2.json is for 2; plans nothing",
    )
    return parser.parse_args(argv)  # fmt: skip


def set_defaults(args: argparse.Namespace) -> None:
    """What a run config would say, where none does."""
    defaults = {"seq": SEQ_LENGTH, "tokens": TOKENS, "compile": True, "global_batch_tokens": [GLOBAL_BATCH_TOKENS]}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


SEVERAL = ("model", "gpus", "global_batch_tokens")  # of each one value, but where a loss is priced


def take_one_each(args: argparse.Namespace) -> None:
    """In place of lists their one value, for all that plans one run.

    Raises:
        UserError: a list has several.
    """
    several = [_flag(name) for name in SEVERAL if len(getattr(args, name) or ()) > 1]
    if several:
        raise UserError(
            f"several values of {', '.join(several)} go with --search --loss --target-bits-per-byte; give one"
        )
    for name in SEVERAL:
        if getattr(args, name) is not None:
            (value,) = getattr(args, name)
            setattr(args, name, value)


def check_target(args: argparse.Namespace) -> None:
    """Raises UserError for what --target-bits-per-byte lacks, and what does not go with it."""
    lacking = [_flag(name) for name in ("search", "loss", "model", "gpus") if not getattr(args, name)]
    unfit = [
        _flag(name)
        for name in ("config", "ds_config", "tokens", "write", "cpu_ranks")
        if getattr(args, name) is not None
    ]
    problems = [f"--target-bits-per-byte needs {', '.join(lacking)}; give it"] if lacking else []
    if unfit:
        problems.append(f"{', '.join(unfit)}: not with --target-bits-per-byte; remove it")
    if problems:
        raise UserError("; ".join(problems))


def targets_of(words: Sequence[str], sources: Collection[str]) -> dict[str, float]:
    """The target of each source that has one.

    Raises:
        UserError: no number, a source that is not there or twice, or a number for all beside others.
    """
    targets: dict[str, float] = {}
    for word in words:
        source, equals, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"--target-bits-per-byte {word} is no number above 0; give one such as 0.9, or en=0.9")
        if not equals and len(words) > 1:
            raise UserError(f"--target-bits-per-byte {word} is for all sources; give it alone, or SOURCE=X for each")
        if equals and (source not in sources or source in targets):
            raise UserError(
                f"--target-bits-per-byte {word}: give each source once; the ladder has {', '.join(sources)}"
            )
        targets |= dict.fromkeys([source] if equals else sources, value)
    return targets


# What the run config says, and what looks for a ds_config.
NOT_WITH_CONFIG = (
    "model",
    "seq",
    "recompute",
    "compile",
    "tokens",
    "gpus",
    "search",
    "zero",
    "ep",
    "global_batch_tokens",
    "write",
)
WITH_CONFIG = ("set", "phase", "document_tokens")


def own_cluster(args: argparse.Namespace) -> OwnCluster:
    speed = args.node_storage_gb_per_s
    return OwnCluster(args.failures_per_gpu_day, args.restart_s, None if speed is None else speed * GB)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_arguments(args: argparse.Namespace) -> None:
    if args.config is not None:
        given = [_flag(name) for name in NOT_WITH_CONFIG if getattr(args, name) is not None]
        problems = (
            [f"{', '.join(given)}: not with --config, which says this of each phase; remove it or use --set"]
            if given
            else []
        )
        if args.loss is not None:
            problems.append(
                "--loss goes with --model, whose tokens are all trained on alike; give --model and --tokens"
            )
        if args.ds_config is None:
            problems.append("--ds-config is missing; give the one that the run config is to be launched with")
    else:
        problems = [
            f"{_flag(name)} goes with --config; give the run config" for name in WITH_CONFIG if getattr(args, name)
        ]
        problems += _problems_without_config(args)
    if args.imbalance is not None and args.imbalance < 1:
        problems.append(f"--imbalance {args.imbalance:g} is below 1; the busiest rank has at least the mean")
    problems += own_cluster(args).problems()
    if problems:
        raise UserError("; ".join(problems))


def _problems_without_config(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.model is None:
        problems.append("--model is missing; give a folder with config.json, such as recipe/configs/models/30b-a3b")
    given = args.ds_config is not None
    if given and args.search:
        problems.append("give either --ds-config or --search: a search makes a ds_config")
    if not given and args.gpus is None:
        problems.append("--gpus is missing; give the number of GPUs, or a ds_config as --ds-config")
    if given and args.write is not None:
        problems.append("--write is for a ds_config that is looked for; the given one is already written")
    if given and (args.zero or args.ep):
        problems.append("--zero and --ep narrow what is looked for; the ds_config has its own")
    return problems
