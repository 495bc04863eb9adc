"""`recipe/evaluate_model.py held-out`: of a run's checkpoint on its engine, or of an exported HuggingFace folder."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.base.arguments import add_subject, check_exported, check_results, positive_int
from recipe.base.errors import UserError
from recipe.base.ranks import required_world_size, say
from recipe.base.tables import ProgressLine
from recipe.data.token_folder import Source, check_vocabulary, held_out_sources, vocabulary_end
from recipe.evaluation.display import aligned_table, progress_line, where_results_are, write_scalars
from recipe.run.records import HELD_OUT_RESULTS, read_starts, write_record

DESCRIPTION = "Held-out loss and bits per byte per source: of a run's checkpoint, or of an exported HuggingFace folder."
EXAMPLE = """examples:
  deepspeed --num_gpus 2 recipe/evaluate_model.py held-out --run runs/a
  python recipe/evaluate_model.py held-out --model exports/a --tokens work/tokens --output eval.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_subject(parser)
    parser.add_argument("--tokens", type=Path, help="output of tokenize_corpus.py (default with --run: the run's own)")
    parser.add_argument(
        "--seq-length",
        type=positive_int,
        help="tokens per window (default: the run's, or the maximum that the model's config.json states)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="windows per rank at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--document-attention", action="store_true", help="with --model: documents see themselves alone (--run knows)"
    )
    parser.add_argument("--output", type=Path, help="JSON for the results (default with --run: evaluation.json in it)")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and an output that cannot be written."""
    if args.model and args.checkpoint:
        parser.error("--checkpoint goes with --run; an exported folder is one checkpoint already")
    if args.run and args.document_attention:
        parser.error("--document-attention goes with --model; a run evaluates as it was trained")
    check_results(args, HELD_OUT_RESULTS)


def run(args: argparse.Namespace) -> None:
    """Evaluate what is asked for; under the launcher where it is a run.

    Raises:
        UserError: no such run, checkpoint, model or tokens, or one that does not fit the others.
    """
    (evaluate_run if args.run else evaluate_export)(args)


def window_length(asked: int | None, default: int, maximum: int) -> int:
    """The tokens per window to evaluate with, refused beyond what the model's positions reach."""
    if asked is not None and asked > maximum:
        raise UserError(f"--seq-length {asked} exceeds the model's max_position_embeddings {maximum}; lower it")
    return asked or default


def evaluate_run(args: argparse.Namespace) -> None:
    read_starts(args.run)  # what needs no torch is refused before the seconds that its import takes
    required_world_size()

    import torch.distributed as dist

    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session
    from recipe.evaluation.held_out import evaluate_engine

    restorable = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    run = restorable.run
    tokens = args.tokens or restorable.tokens("restore them, or give others with --tokens").path
    sources, end_of_document = held_out_sources(tokens, run.tokenizer)
    eod_id = end_of_document if run.data.document_attention else None
    seq_length = window_length(args.seq_length, run.data.seq_length, restorable.shape.max_position_embeddings)
    say(describe(f"step {restorable.train_state.step:,} of {args.run}", sources, tokens, seq_length))
    with session(run.watch):
        engine, state = restorable.restore()
        with progress_over(sources, seq_length, args.batch_size, dist.get_world_size()) as progress:
            results = evaluate_engine(
                engine,
                run.compute,
                sources,
                seq_length=seq_length,
                batch_size=args.batch_size,
                eod_id=eod_id,
                progress=progress.advance,
            )
        if dist.get_rank() == 0:
            output = args.output or args.run / HELD_OUT_RESULTS
            report(results, output, {"step": state.step}, args.run / "tensorboard")


def evaluate_export(args: argparse.Namespace) -> None:
    check_exported(args.model)
    if args.tokens is None:
        raise UserError("--model needs --tokens, the output folder of tokenize_corpus.py")
    sources, eod_id = held_out_sources(args.tokens, args.model)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from recipe.base.settings import Compute
    from recipe.evaluation.held_out import evaluate_source, stock_loss

    disable_progress_bar()  # of the weights' loading
    config = AutoConfig.from_pretrained(args.model)
    check_vocabulary(vocabulary_end(args.model), config.vocab_size)
    maximum = config.max_position_embeddings
    seq_length = window_length(args.seq_length, maximum, maximum)
    say(describe(str(args.model), sources, args.tokens, seq_length))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(args.model)
    model.to(device).eval()

    loss_of_batch = stock_loss(model, device, Compute().loss_chunk_tokens)

    def loss_of(inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        progress.advance()
        return loss_of_batch(inputs, targets)

    with progress_over(sources, seq_length, args.batch_size, 1) as progress:
        results = {
            source.name: evaluate_source(
                loss_of,
                source,
                seq_length=seq_length,
                batch_size=args.batch_size,
                device=device,
                eod_id=eod_id if args.document_attention else None,
            )
            for source in sources
        }
    report(results, args.output, {"model": str(args.model)})


def describe(subject: str, sources: Sequence[Source], tokens: Path, seq_length: int) -> str:
    """What is about to be evaluated, on what."""
    counts = ", ".join(f"{sum(s.num_tokens for s in source.shards):,} of {source.name}" for source in sources)
    return f"evaluates {subject} on the held-out tokens of {tokens}: {counts}; in windows of {seq_length:,} tokens"


def progress_over(sources: Sequence[Source], seq_length: int, batch_size: int, world_size: int) -> ProgressLine:
    """Over the batches, each of which all ranks compute together."""
    from recipe.evaluation.held_out import windows

    return progress_line(
        "held-out batches",
        sum(math.ceil(len(windows(source, seq_length)) / (batch_size * world_size)) for source in sources),
    )


def report(
    results: dict[str, dict[str, Any]], output: Path | None, facts: dict[str, Any], board: Path | None = None
) -> None:
    """Print the results, then write them: to `output`, and to TensorBoard's folder `board` at the step of `facts`."""
    rows = [
        (name, f"{r['tokens']:,}", f"{r['loss']:.5f}", f"{r['perplexity']:.3f}", f"{r['bits_per_byte']:.4f}")
        for name, r in results.items()
    ]
    print(aligned_table(("source", "tokens", "loss, nats/token", "perplexity", "bits/byte"), rows), flush=True)
    if output is not None:
        write_record(output, {**facts, "sources": results})
    if board is not None:
        from recipe.telemetry.metrics import tagged_evaluation  # late: it brings torch

        write_scalars(board, tagged_evaluation(results), facts["step"])
    print(where_results_are(output, board, "held_out/..."), flush=True)
