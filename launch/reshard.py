#!/usr/bin/env python3
"""Turn a checkpoint into DeepSpeed's universal form, which any number of ranks and any expert-parallel size can load."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from recipe.base.arguments import positive_int
from recipe.base.errors import exit_on_user_error
from recipe.run.checkpoint_files import find


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python launch/reshard.py --run runs/a\n  deepspeed --num_gpus 8 recipe/train.py ... --resume auto",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=Path, help="run_dir of a training run")
    parser.add_argument("--checkpoint", help="name such as step_00001000 (default: the newest)")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count() or 1, help="processes; each holds one rank's states"
    )
    args = parser.parse_args(argv)
    checkpoint = find(args.run / "checkpoints", args.checkpoint)
    # Imported late: refusing needs neither torch nor DeepSpeed.
    from recipe.checkpoints.universal import make_universal

    print(f"universal checkpoint {make_universal(checkpoint, args.workers)}")


if __name__ == "__main__":
    sys.exit(main())
