"""`recipe/evaluate_model.py needle`: whether a model recalls a fact by length and depth, of a run's checkpoint or an exported folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.arguments import add_subject, check_exported, positive_int
from recipe.base.output_paths import check_output_file
from recipe.base.ranks import required_world_size, say
from recipe.evaluation.display import aligned_table, progress_line
from recipe.evaluation.held_out_command import window_length
from recipe.evaluation.needle import LANGUAGES, Predict, needle_sample, recalls
from recipe.run.records import read_starts, write_record

DESCRIPTION = "Recall of a needle in synthetic text by length and depth: of a run's checkpoint, or of an exported HuggingFace folder."
EXAMPLE = """examples:
  deepspeed --num_gpus 2 recipe/evaluate_model.py needle --run runs/a --lengths 4096 32768
  python recipe/evaluate_model.py needle --model exports/a --output needle.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_subject(parser)
    parser.add_argument(
        "--lengths",
        type=positive_int,
        nargs="+",
        help="tokens of a text (default: the run's sequences, or the maximum that the model's config.json states)",
    )
    parser.add_argument(
        "--depths",
        type=positive_int,
        default=5,
        help="places of the needle, from the beginning on (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=positive_int, default=8, help="texts of a language, length and depth (default: %(default)s)"
    )
    parser.add_argument(
        "--others",
        type=int,
        default=3,
        choices=range(16),
        metavar="N",
        help="needles of other keys, to 15 (default: %(default)s)",
    )
    parser.add_argument(
        "--languages", nargs="+", choices=sorted(LANGUAGES), default=sorted(LANGUAGES), help="(default: all)"
    )
    parser.add_argument("--output", type=Path, help="JSON for the results")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and an output that cannot be written."""
    if args.model and args.checkpoint:
        parser.error("--checkpoint goes with --run; an exported folder is one checkpoint already")
    if args.output is not None:
        check_output_file("--output", args.output)


def run(args: argparse.Namespace) -> None:
    """Evaluate what is asked for; under the launcher where it is a run.

    Raises:
        UserError: no such run, checkpoint or model, or texts longer than its positions or shorter than their needles.
    """
    (evaluate_run if args.run else evaluate_export)(args)


@dataclass(frozen=True)
class Grid:
    """What is asked, in which order; all ranks go through the same lengths and depths."""

    lengths: list[int]
    depths: list[float]
    languages: list[str]
    samples: int
    others: int

    @property
    def cells(self) -> list[tuple[str, int, float]]:
        return [(name, length, depth) for name in self.languages for length in self.lengths for depth in self.depths]

    def facts(self, hits: Sequence[float]) -> dict[str, Any]:
        """For the results' JSON: accuracy by language, length and depth."""
        accuracy: dict[str, dict[str, list[float]]] = {
            name: {str(n): [] for n in self.lengths} for name in self.languages
        }
        for (name, length, _), hit in zip(self.cells, hits, strict=True):
            accuracy[name][str(length)].append(hit / self.samples)
        return {"depths": self.depths, "samples": self.samples, "other_needles": self.others, "accuracy": accuracy}


def grid_of(args: argparse.Namespace, default: int, maximum: int, world_size: int) -> Grid:
    lengths = [window_length(length, default, maximum) for length in args.lengths or [None]]
    depths = np.linspace(0, 1, args.depths).round(3).tolist()
    samples = -(-args.samples // world_size) * world_size  # each rank asks as many
    return Grid(lengths, depths, args.languages, samples, args.others)


def hits_of(grid: Grid, tokenizer: Path, predict: Predict, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Of each cell, how many of this rank's samples are recalled."""
    encode = encoder(tokenizer)
    hits = np.zeros(len(grid.cells))
    with progress_line("needles", len(hits) * grid.samples // world_size) as progress:
        for cell, (name, length, depth) in enumerate(grid.cells):
            for number in range(rank, grid.samples, world_size):
                sample = needle_sample(
                    LANGUAGES[name], encode, length=length, depth=depth, others=grid.others,
                    generator=np.random.default_rng((cell, number)),
                )  # fmt: skip
                hits[cell] += recalls(predict, sample)
                progress.advance()
    return hits


def encoder(folder: Path) -> Any:
    """From a part of a text to its tokens, none of them special."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def evaluate_run(args: argparse.Namespace) -> None:
    read_starts(args.run)  # what needs no torch is refused before the seconds that its import takes
    world_size = required_world_size()

    import torch
    import torch.distributed as dist

    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session
    from recipe.model.fusion import fused

    restorable = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    settings = restorable.run
    grid = grid_of(args, settings.data.seq_length, restorable.shape.max_position_embeddings, world_size)
    say(describe(f"step {restorable.train_state.step:,} of {args.run}", grid))
    with session(settings.watch):
        engine, state = restorable.restore()
        engine.eval()
        with fused(False):  # what is compiled is compiled for the batches of training
            found = hits_of(grid, settings.tokenizer, predictor(engine, engine.device), dist.get_rank(), world_size)
        hits = torch.from_numpy(found).to(engine.device)
        dist.all_reduce(hits)
        if dist.get_rank() == 0:
            report(grid, hits.tolist(), args.output, {"step": state.step})


def evaluate_export(args: argparse.Namespace) -> None:
    check_exported(args.model)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of the weights' loading
    maximum = AutoConfig.from_pretrained(args.model).max_position_embeddings
    grid = grid_of(args, maximum, maximum, 1)
    say(describe(str(args.model), grid))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(args.model)
    model.to(device).eval()
    report(grid, hits_of(grid, args.model, predictor(model, device)).tolist(), args.output, {"model": str(args.model)})


def predictor(model: Any, device: Any) -> Predict:
    """The likeliest next tokens by a model, which makes logits of the asked positions alone."""
    import torch

    @torch.no_grad()
    def predict(tokens: np.ndarray, keep: int) -> np.ndarray:
        tokens_BS = torch.from_numpy(tokens).to(device)[None]
        return model(input_ids=tokens_BS, logits_to_keep=keep, use_cache=False).logits[0].argmax(-1).cpu().numpy()

    return predict


def describe(subject: str, grid: Grid) -> str:
    """What is about to be evaluated, on what."""
    lengths = ", ".join(f"{length:,}" for length in grid.lengths)
    return (
        f"asks {subject} for needles in texts of {lengths} tokens in {', '.join(grid.languages)}: {len(grid.depths)} depths of "
        f"{grid.samples} texts each, {grid.others} other needles in each"
    )


def report(grid: Grid, hits: Sequence[float], output: Path | None, facts: dict[str, Any]) -> None:
    """Print the accuracies by depth, then write them."""
    results = grid.facts(hits)
    rows = [
        (name, f"{int(length):,}", *(f"{share:.0%}" for share in by_depth), f"{np.mean(by_depth):.1%}")
        for name, of_length in results["accuracy"].items()
        for length, by_depth in of_length.items()
    ]
    print(aligned_table(("language", "tokens", *(f"at {depth:.0%}" for depth in grid.depths), "all"), rows), flush=True)
    print(f"guessing recalls {1 / len(LANGUAGES[grid.languages[0]].passwords):.1%} at most", flush=True)
    if output is not None:
        write_record(output, {**facts, **results})
