#!/usr/bin/env python3
"""Train a model, under the DeepSpeed launcher."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipe.base.errors import exit_on_user_error
from recipe.base.ranks import is_first_rank, launched_world_size, leave, required_world_size
from recipe.run.startup import check_launch, describe

EXAMPLE = """example:
  deepspeed --num_gpus 2 recipe/train.py --config recipe/configs/runs/quickstart.yaml \\
      --deepspeed_config ds_configs/cpu_2.json --set schedule.peak_lr=1e-3"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, help="run config, YAML")
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="ds_config, JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
    )
    parser.add_argument(
        "--resume", choices=("never", "auto"), default="never", help="auto: from the newest checkpoint, if any"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    world_size = launched_world_size() if args.dry_run else required_world_size()
    launch = check_launch(args.config, args.set, args.deepspeed_config, world_size)
    if args.dry_run:
        if is_first_rank():
            print(describe(launch))
        return

    # Imported late: refusing a configuration or a dry run needs neither torch nor DeepSpeed.
    from recipe.model import RecipeMoeConfig
    from recipe.run.checkpoint import CheckpointStore, TrainState
    from recipe.run.engine import build_engine, check_attention
    from recipe.run.loop import train
    from recipe.run.run_folder import check_run_folder, record_start
    from recipe.run.session import session

    run = launch.run
    check_attention(run.compute)
    changed = check_run_folder(run, args.resume)
    with session():
        if is_first_rank():
            print(describe(launch), flush=True)
            if changed:
                print(f"changed since the last start: {', '.join(changed)}", flush=True)
            record_start(run, launch.ds_raw)
        engine = build_engine(
            RecipeMoeConfig.from_shape(launch.shape),
            launch.ds_raw,
            seed=run.seed,
            optimizer=run.optimizer,
            compute=run.compute,
        )
        store = CheckpointStore(run.run_dir / "checkpoints", run.checkpoint.keep_last)
        state = TrainState()
        if args.resume == "auto" and store.complete():
            state = store.load(engine, store.complete()[-1])
            if is_first_rank():
                print(f"resumed after step {state.step:,}, {state.tokens:,} tokens", flush=True)
        finished = train(engine, launch, store, state)
        if is_first_rank():
            print(
                "training finished"
                if finished
                else f"stopped by a signal after step {state.step:,}; --resume auto goes on",
                flush=True,
            )


if __name__ == "__main__":
    leave(main())
