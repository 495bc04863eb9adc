#!/usr/bin/env python3
"""Export a training checkpoint as a HuggingFace folder, under the DeepSpeed launcher with the run's ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipe.base.errors import exit_on_user_error
from recipe.base.ranks import is_first_rank, leave


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  deepspeed --num_gpus 2 recipe/export.py --run runs/a --output exports/a",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=Path, help="run_dir of a training run")
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    parser.add_argument("--checkpoint", help="name such as step_00001000 (default: the newest)")
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        help="ds_config for another number of ranks than the run's, of a resharded checkpoint",
    )
    parser.add_argument(
        "--no-card",
        action="store_true",
        help="no README.md, which lists the data; for where the run's data.tokens are not",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from recipe.model import RecipeMoeConfig
    from recipe.reading.model_card import model_card
    from recipe.run.export import check_exportable, export_hf
    from recipe.run.restore import RestorableRun
    from recipe.run.session import session
    from recipe.run.startup import batch_order

    source = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    config = RecipeMoeConfig.from_shape(source.shape)
    check_exportable(config, args.output)
    tokens = None if args.no_card else source.tokens("restore them, or export with --no-card")
    order = None if tokens is None else batch_order(source.run, tokens)
    with session(source.run.watch):
        engine, state = source.restore()
        card = None
        if tokens is not None and order is not None:
            read = {name: count * source.run.data.seq_length for name, count in order.read(state.sequences).items()}
            card = model_card(
                source.run, source.shape, tokens.manifest, step=state.step, tokens=state.tokens, read=read
            )
        export_hf(engine, config, source.run.tokenizer, args.output, card)
        if is_first_rank():
            print(f"exported step {state.step:,} as glm4_moe -> {args.output}", flush=True)


if __name__ == "__main__":
    leave(main())
