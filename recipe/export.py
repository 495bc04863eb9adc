#!/usr/bin/env python3
"""Export a training checkpoint as a HuggingFace folder, under the DeepSpeed launcher with the run's ranks."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.ranks import is_first_rank, leave
from recipe.data.token_folder import special_tokens, tokenizer_facts
from recipe.reading.model_card import ExportFacts, model_card
from recipe.reading.origin import Origin, origin_of

if TYPE_CHECKING:
    from recipe.checkpoints.export import Export
    from recipe.checkpoints.restore import RestorableRun
    from recipe.huggingface.architectures import Architecture

# Plain text and the token that ends documents, which every tokenizer here has; a marker such as <|im_start|> would be cut into
# pieces that no model was trained on.
CHAT_TEMPLATE = """{%- for message in messages %}
    {{- message.role | capitalize + ": " + message.content | trim + (eos_token if message.role == "assistant" else "\n\n") }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "Assistant:" }}
{%- endif %}
"""


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
    parser.add_argument(
        "--max-positions",
        type=positive_int,
        metavar="N",
        help="max_position_embeddings to state, tokens; the card tells that it was not trained (default: the longest sequences of "
        "the training, or of the imported model)",
    )
    parser.add_argument(
        "--chat-template",
        action="store_true",
        help="give the tokenizer a neutral chat template, roles as plain text, so that chat tools take the base model (default: none, "
        "also where the run's tokenizer has one)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def max_positions(origin: Origin, asked: int | None) -> int:
    """The max_position_embeddings to state.

    Raises:
        UserError: less than was trained was asked for.
    """
    if asked is not None and asked < origin.context:
        raise UserError(
            f"--max-positions {asked:,} is less than the {origin.context:,} tokens that the model was trained on; leave it out"
        )
    if origin.unrecorded is not None and asked is None and is_first_rank():
        print(
            f"note: how long sequences {origin.unrecorded}, from which the run began, was trained on was not recorded; config.json "
            f"states this run's own {origin.context:,} positions, or give --max-positions",
            flush=True,
        )
    return asked or origin.context


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from recipe.checkpoints.export import Export, check_bias_has_place, check_exportable, export_hf
    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session

    source = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    architecture = check_exportable(source.shape, source.run.tokenizer, args.output)
    check_bias_has_place(architecture, source.routing, source.train_state.step)
    origin = origin_of(args.run)
    export = Export(
        args.output,
        source.shape,
        source.run.tokenizer,
        max_positions(origin, args.max_positions),
        CHAT_TEMPLATE if args.chat_template else None,
    )
    if not args.no_card:
        export = replace(export, card=card_of(source, export, architecture, origin))
    with session(source.run.watch):
        engine, state = source.restore()
        assert state == source.train_state
        export_hf(engine, export)
        if is_first_rank():
            print(f"exported step {state.step:,} as {architecture.model_type} -> {args.output}", flush=True)


def card_of(source: RestorableRun, export: Export, architecture: Architecture, origin: Origin) -> str:
    """The model card.

    Raises:
        UserError: the run's tokens, of which it tells, are not there.
    """
    from recipe.run.job import batch_order

    run, state = source.run, source.train_state
    tokens = source.tokens("restore them, or export with --no-card")
    read = batch_order(run, tokens).read(state.sequences)
    facts = ExportFacts(
        model_type=architecture.model_type,
        class_name=architecture.class_name,
        max_positions=export.max_position_embeddings,
        origin=origin,
        eos_token=special_tokens(run.tokenizer)["eos_token"],
        eos_token_id=tokenizer_facts(run.tokenizer)["eod_id"],
        has_chat_template=export.chat_template is not None,
    )
    of_source = {name: sequences * run.data.seq_length for name, sequences in read.items()}
    return model_card(run, source.shape, tokens.manifest, facts, step=state.step, tokens=state.tokens, read=of_source)


if __name__ == "__main__":
    leave(main())
