"""What watching a run costs: training steps with all that a run records by default, and the same steps with none of it.

One run of the real loop; blocks of steps with and without in turn, so that both see the same machine, model and data. A block of ten has one logged step;
every tenth block with has the step whose collectives are timed. Without: no logged step (and so no sums of the routers),
no phases, no timed collectives. A block's time scatters by a tenth, so there are many, and the ratio is of their means
without the slowest and fastest tenth, with the standard error that resampling gives it.

    deepspeed --num_gpus 2 benchmarks/instrumentation.py --config recipe/configs/runs/quickstart.yaml \\
        --deepspeed_config ds_configs/cpu_2.json > result.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from random import Random

import torch.distributed as dist

from recipe.base.errors import exit_on_user_error
from recipe.base.ranks import leave, required_world_size
from recipe.base.settings import Logging, RunConfig, Watch
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.engine.build import build_engine
from recipe.engine.collectives import from_first_rank
from recipe.engine.session import session
from recipe.model import RecipeMoeConfig
from recipe.run.folder import RunFolder
from recipe.run.job import Job, check_job
from recipe.safety.watchdog import Watchdog
from recipe.telemetry.phases import PhaseClock
from recipe.training.loop import Training

NEVER = 10**9


class NoClock(PhaseClock):
    """Phases that nobody times."""

    def enter(self, phase: str) -> None:
        pass


def settings_of(run: RunConfig, watched: bool) -> RunConfig:
    """The run with the default logging and watching, or without any."""
    logging = Logging() if watched else Logging(every_steps=NEVER)
    watch = Watch() if watched else Watch(stragglers_every_steps=None)
    checkpoint = run.checkpoint.model_copy(update={"every_steps": NEVER})
    schedule = run.schedule.model_copy(update={"total_tokens": 10**12})
    return run.model_copy(update={"logging": logging, "watch": watch, "checkpoint": checkpoint, "schedule": schedule})


def measure(launch: Job, folder: Path, blocks: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each block, with and without."""
    run = launch.run
    launches = {name: dataclasses.replace(launch, run=settings_of(run, name == "with")) for name in ("with", "without")}
    engine = build_engine(
        RecipeMoeConfig.from_shape(launch.shape), launch.ds_raw, seed=0, optimizer=run.optimizer, compute=run.compute
    )
    run_folder = RunFolder(folder, 1)
    store = CheckpointStore(folder / "checkpoints", launches["with"].run.checkpoint)
    found: dict[str, list[float]] = {"with": [], "without": []}
    with Watchdog(run_folder, launches["with"].run.watch) as watchdog:
        training = Training(engine, launches["with"], store, TrainState(), run_folder, watchdog)
        clocks = {"with": training.throughput.phases, "without": NoClock.__new__(NoClock)}
        engine.train()
        for block in range(-1, blocks):  # the first pair warms up
            for name in ("with", "without") if block % 2 else ("without", "with"):
                training.job, training.throughput.phases = launches[name], clocks[name]
                training.after_step = training.hooks()
                dist.barrier()
                begun = time.perf_counter()
                for _ in range(steps):
                    training._step()
                dist.barrier()
                if block >= 0:
                    found[name].append(time.perf_counter() - begun)
    return found


def trimmed(values: Sequence[float]) -> float:
    """Mean without the fastest and slowest tenth."""
    cut = len(values) // 10
    return statistics.mean(sorted(values)[cut : len(values) - cut])


def ratio_of(found: dict[str, list[float]]) -> dict[str, float]:
    """With over without, and its standard error from 1,000 resamplings of the pairs."""
    random, pairs = Random(0), list(zip(found["with"], found["without"], strict=True))
    ratio = lambda of: trimmed([a for a, _ in of]) / trimmed([b for _, b in of])  # noqa: E731
    return {
        "with_over_without": ratio(pairs),
        "standard_error": statistics.stdev(ratio(random.choices(pairs, k=len(pairs))) for _ in range(1000)),
    }


@exit_on_user_error
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--deepspeed_config", required=True, type=Path)
    parser.add_argument("--blocks", type=int, default=70, help="of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of a block (default: %(default)s)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    launch = check_job(args.config, [], args.deepspeed_config, required_world_size())
    with session():
        folder = Path(from_first_rank(tempfile.mkdtemp))
        with redirect_stdout(sys.stderr):
            found = measure(launch, folder, args.blocks, args.steps)
        if dist.get_rank() == 0:
            result = {
                "ranks": dist.get_world_size(),
                "steps_of_a_block": args.steps,
                "step_s": {name: trimmed(seconds) / args.steps for name, seconds in found.items()},
                **ratio_of(found),
                "blocks_s": {name: [round(s, 3) for s in seconds] for name, seconds in found.items()},
            }
            print(json.dumps(result))
    return 0


if __name__ == "__main__":
    leave(main())
