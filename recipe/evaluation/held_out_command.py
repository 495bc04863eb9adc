"""`recipe/evaluate_model.py held-out`: of a run's checkpoint on its engine, or of an exported HuggingFace folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recipe.base.arguments import add_subject, check_exported, check_results, positive_int
from recipe.base.errors import UserError
from recipe.data.token_folder import check_vocabulary, held_out_sources, vocabulary_end
from recipe.run.records import HELD_OUT_RESULTS, write_record

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
    import torch.distributed as dist
    from torch.utils.tensorboard import SummaryWriter

    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session
    from recipe.evaluation.held_out import evaluate_engine
    from recipe.telemetry.metrics import tagged_evaluation

    restorable = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    run = restorable.run
    tokens = args.tokens or restorable.tokens("restore them, or give others with --tokens").path
    sources, end_of_document = held_out_sources(tokens, run.tokenizer)
    eod_id = end_of_document if run.data.document_attention else None
    seq_length = window_length(args.seq_length, run.data.seq_length, restorable.shape.max_position_embeddings)
    with session(run.watch):
        engine, state = restorable.restore()
        results = evaluate_engine(
            engine, run.compute, sources, seq_length=seq_length, batch_size=args.batch_size, eod_id=eod_id
        )
        if dist.get_rank() == 0:
            with SummaryWriter(str(args.run / "tensorboard")) as board:
                for tag, value in tagged_evaluation(results).items():
                    board.add_scalar(tag, value, state.step)
            report(results, args.output or args.run / HELD_OUT_RESULTS, {"step": state.step})


def evaluate_export(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from recipe.base.settings import Compute
    from recipe.evaluation.held_out import evaluate_source, stock_loss

    check_exported(args.model)
    if args.tokens is None:
        raise UserError("--model needs --tokens, the output folder of tokenize_corpus.py")
    sources, eod_id = held_out_sources(args.tokens, args.model)
    config = AutoConfig.from_pretrained(args.model)
    check_vocabulary(vocabulary_end(args.model), config.vocab_size)
    maximum = config.max_position_embeddings
    seq_length = window_length(args.seq_length, maximum, maximum)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(args.model)
    model.to(device).eval()

    loss_of = stock_loss(model, device, Compute().loss_chunk_tokens)
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


def report(results: dict[str, dict[str, Any]], output: Path | None, facts: dict[str, Any]) -> None:
    for name, result in results.items():
        print(
            f"held-out {name:<12} {result['bits_per_byte']:.4f} bits/byte  loss {result['loss']:.5f} nats/token  "
            f"perplexity {result['perplexity']:.3f}  {result['tokens']:,} tokens",
            flush=True,
        )
    if output is not None:
        write_record(output, {**facts, "sources": results})
