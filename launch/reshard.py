#!/usr/bin/env python3
"""Turn a checkpoint into DeepSpeed's universal form, which any number of ranks and any expert-parallel size can load."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from recipe.base.arguments import positive_int
from recipe.base.errors import exit_on_user_error
from recipe.base.hardware import GIB
from recipe.base.tables import duration
from recipe.run.checkpoint_files import find, read_manifest


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python launch/reshard.py --run runs/a\n  launch/train.sh --num_gpus 8 ...        (launch/train.sh also reshards by itself)",
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

    manifest, begun = read_manifest(checkpoint), time.monotonic()
    gib = sum(file["bytes"] for file in manifest["files"].values()) / GIB
    # DeepSpeed 0.19.8 loads the optimizer's files of all ranks in one process and copies the experts out of them.
    memory = f"; one process holds up to {2 * gib:.2f} GiB" if manifest["topology"]["zero_stage"] == 3 else ""
    print(
        f"reshard: {checkpoint} ({gib:.2f} GiB, of {manifest['topology']['world_size']} ranks), {args.workers} processes; "
        f"it is read and checked, written once more in the universal form, and read again for checksums{memory}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    universal = make_universal(checkpoint, args.workers)
    print(f"universal checkpoint {universal}")
    print(
        f"reshard: done after {duration(time.monotonic() - begun)}; start the run with the ds_config of the new ranks, "
        "launch/train.sh or --resume auto takes it from here",
        file=sys.stderr, flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
