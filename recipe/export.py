#!/usr/bin/env python3
"""Export a training checkpoint as a HuggingFace folder, under the DeepSpeed launcher with the run's ranks."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.model_shape import RopeParameters
from recipe.base.output_paths import check_export_folder
from recipe.base.ranks import is_first_rank, leave, required_world_size, say
from recipe.data.token_folder import special_tokens, tokenizer_facts
from recipe.evaluation.display import progress_line
from recipe.reading.model_card import ExportFacts, model_card
from recipe.reading.origin import Origin, origin_of
from recipe.run.records import read_starts

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


EXAMPLE = """example, of a run of 2 ranks, and what may follow:
  deepspeed --num_gpus 2 recipe/export.py --run runs/a --output exports/a
  python launch/generate.py --model exports/a --prompt "Once upon a time"
  python recipe/evaluate_model.py downstream --model exports/a --data work/downstream --output scores.json

The folder holds weights (safetensors), config.json, tokenizer and a model card; transformers reads it as it is. In bf16 it
takes 2 bytes a parameter."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, type=Path, help="the run folder: run_dir of its run config")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write; it must not exist yet")
    parser.add_argument("--checkpoint", help="the checkpoint to export, such as step_1000 (default: the newest)")
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        help="only where the ranks are not as many as the run's: the ds_config for them; reshard the checkpoint before, with "
        "launch/reshard.py",
    )
    parser.add_argument(
        "--no-card",
        action="store_true",
        help="write no model card (README.md); it lists the data, and needs the run's data.tokens",
    )
    parser.add_argument(
        "--max-positions",
        type=positive_int,
        metavar="N",
        help="tokens of context that config.json states as max_position_embeddings; the card says that more than the training had "
        "was not trained (default: the longest sequences of the training, or of the imported model)",
    )
    parser.add_argument(
        "--chat-template",
        action="store_true",
        help="give the tokenizer a simple chat template, with roles as plain text, so that chat programs accept the base model "
        "(default: no template, also where the run's tokenizer has one)",
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
            f"--max-positions {asked:,} is less than the {origin.context:,} tokens that the model was trained on; leave the option out"
        )
    if origin.unrecorded is not None and asked is None and is_first_rank():
        print(
            f"note: how long sequences {origin.unrecorded}, from which the run began, was trained on was not recorded; config.json "
            f"states this run's own {origin.context:,} positions, or give --max-positions",
            flush=True,
        )
    return asked or origin.context


def check_reach(rope: RopeParameters, asked: int | None) -> None:
    """Refuse to state more positions than YaRN is scaled for.

    Raises:
        UserError: how many it is scaled for.
    """
    if asked is not None and rope.reach is not None and asked > rope.reach:
        raise UserError(
            f"--max-positions {asked:,} is beyond the {rope.reach:,} tokens that the model's YaRN is scaled for (factor {rope.factor:g} "
            f"times original_max_position_embeddings {rope.original_max_position_embeddings:,}); state no more than these"
        )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    read_starts(args.run)  # what needs no torch is refused before the seconds that its import takes
    required_world_size()
    check_export_folder(args.output)

    from recipe.checkpoints.export import Export, check_bias_has_place, check_exportable, export_hf, number_of_files
    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session

    source = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    architecture = check_exportable(source.shape, source.run.tokenizer, args.output)
    check_bias_has_place(architecture, source.routing, source.train_state.step)
    check_reach(source.shape.rope_parameters, args.max_positions)
    origin = origin_of(args.run, source.number)
    export = Export(
        args.output,
        source.shape,
        source.run.tokenizer,
        max_positions(origin, args.max_positions),
        CHAT_TEMPLATE if args.chat_template else None,
    )
    if not args.no_card:
        export = replace(export, card=card_of(source, export, architecture, origin))
    say(
        f"exports step {source.train_state.step:,} of {args.run} as {architecture.model_type} to {args.output}: loads the checkpoint, "
        "writes the weights layer by layer and reads them again"
    )
    with session(source.run.watch):
        engine, state = source.restore()
        assert state == source.train_state
        with progress_line("files of weights", number_of_files(source.shape)) as progress:
            export_hf(engine, export, progress.advance)
        if is_first_rank():
            print(conclusion(args.run, args.output, state.step, architecture.model_type), flush=True)


def conclusion(run: Path, output: Path, step: int, model_type: str) -> str:
    """What was exported, and how to use it."""
    files = [path for path in output.iterdir() if path.is_file()]
    gib = sum(path.stat().st_size for path in files) / 2**30
    folder = str(output)
    return "\n".join(
        (
            f"exported step {step:,} of {run} as {model_type} -> {folder} ({len(files)} files, {gib:,.2f} GiB)",
            "load it with transformers:",
            f"  model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype='auto')",
            f"  tokenizer = AutoTokenizer.from_pretrained({folder!r})",
            "or let it continue a text:",
            f"  python launch/generate.py --model {shlex.quote(folder)} --prompt 'Once upon a time'",
        )
    )


def card_of(source: RestorableRun, export: Export, architecture: Architecture, origin: Origin) -> str:
    """The model card.

    Raises:
        UserError: the run's tokens, of which it tells, are not there.
    """
    run, state = source.run, source.train_state
    tokens = source.tokens("restore them, or export with --no-card")
    facts = ExportFacts(
        model_type=architecture.model_type,
        class_name=architecture.class_name,
        max_positions=export.max_position_embeddings,
        origin=origin,
        eos_token=special_tokens(run.tokenizer)["eos_token"],
        eos_token_id=tokenizer_facts(run.tokenizer)["eod_id"],
        has_chat_template=export.chat_template is not None,
    )
    read = source.tokens_read()
    return model_card(run, source.shape, tokens.manifest, facts, step=state.step, tokens=state.tokens, read=read)


if __name__ == "__main__":
    leave(main())
