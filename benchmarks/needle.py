#!/usr/bin/env python3
"""Whether a model finds a needle beyond the length that it was trained at, before and after its context is extended.

A tiny model learns recall in texts of 256 tokens, English and Chinese, then trains some steps at 2,048: with a larger base
frequency, with YaRN, and with neither. Accuracy is by depth of the needle and length of the text. The engine and the training
step of the recipe, fp32, on one process. Prints JSON.
example: python benchmarks/needle.py --output benchmarks/results/needle.json
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.moe_layer import machine, place_of_rank, report  # noqa: E402
from launch.cluster.hosts import free_port  # noqa: E402
from recipe.base.arguments import natural_int, output_file, positive_int  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.model_shape import IGNORED, ModelShape  # noqa: E402
from recipe.base.run_config.routing import Routing  # noqa: E402
from recipe.base.settings import Compute, Optimizer  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.data.batch import Batch  # noqa: E402
from recipe.evaluation.needle import LANGUAGES, accuracy, needle_sample, told_and_asked  # noqa: E402
from recipe.planner.search.ds_writer import ds_config_for  # noqa: E402

SHORT, LONG = 256, 2048
# 10,000 * 256 / 4,096: as much of the slowest frequency's turn within 256 tokens as RoFormer's base has within 4,096
BASE = {"rope_type": "default", "rope_theta": 625.0}
EXTENSIONS: dict[str, dict[str, Any]] = {
    "same base": BASE,
    "larger base": {"rope_type": "default", "rope_theta": 20_000.0},
    "yarn": {**BASE, "rope_type": "yarn", "factor": LONG / SHORT, "original_max_position_embeddings": SHORT},
}
TOKENS = 1024  # of a step, where a text is no longer
CURRICULUM = (
    (64, 0.6),
    (SHORT, 0.4),
)  # lengths before the extension, and their shares of the steps: recall comes sooner in short texts
RATE, WARMUP = 6e-3, 20
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Vocabulary:
    """A token for each term of all languages; a text's terms are found by their separator, or are the longest that fit."""

    def __init__(self) -> None:
        self.terms = list(dict.fromkeys(term for language in LANGUAGES.values() for term in language.terms))
        self.ids = {term: number for number, term in enumerate(self.terms)}
        self.longest = max(map(len, self.terms))

    def encode(self, text: str) -> list[int]:
        ids, place = [], 0
        while place < len(text):
            if text[place] == " ":
                place += 1
                continue
            sizes = range(min(self.longest, len(text) - place), 0, -1)
            term = next(text[place : place + size] for size in sizes if text[place : place + size] in self.ids)
            ids.append(self.ids[term])
            place += len(term)
        return ids


def shape_of(vocabulary: Vocabulary, rope: dict[str, Any], longest: int) -> ModelShape:
    return ModelShape(
        model_type="recipe_moe", vocab_size=len(vocabulary.terms), hidden_size=64, intermediate_size=128, moe_intermediate_size=64,
        num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2, num_key_value_heads=2, head_dim=64, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=1, max_position_embeddings=longest, rope_parameters=rope,
        initializer_range=0.1,  # near 1 / sqrt(hidden_size): activations begin at a size of 1
    )  # fmt: skip


def batches(vocabulary: Vocabulary, length: int, steps: int, seed: int) -> Iterator[Batch]:
    """Texts of both languages in turn; a loss on what is to be recalled."""
    generator = np.random.default_rng(seed)
    rows = max(1, TOKENS // length)
    sources = np.arange(rows) % len(LANGUAGES)
    for step in range(steps):
        texts = [
            told_and_asked(
                list(LANGUAGES.values())[(row + step) % len(LANGUAGES)],
                vocabulary.encode,
                length=length + 1,
                generator=generator,
            )
            for row in range(rows)
        ]
        tokens, recalled = (np.stack(part) for part in zip(*texts, strict=True))
        targets = np.where(recalled[:, 1:], tokens[:, 1:], IGNORED)
        yield Batch(
            tokens[:, :-1], targets, None, np.ones(targets.shape, dtype=bool), (sources + step) % len(LANGUAGES)
        )


@dataclass
class Model:
    """An engine that learns and answers."""

    vocabulary: Vocabulary
    engine: Any
    control: Any
    step: int = 0

    def train(self, length: int, steps: int, *, rate: float = RATE) -> float:
        """Some steps, after a warm-up at a constant rate; the last loss in nats per recalled token."""
        from recipe.engine.step import run_step

        loss = torch.zeros(())
        self.engine.train()
        for number, batch in enumerate(batches(self.vocabulary, length, steps, seed=self.step), start=1):
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate * min(1.0, number / WARMUP)
            self.step += 1
            loss, _ = run_step(
                self.engine, self.control, Compute(), [batch], step=self.step, observing=False, update_bias=True
            )
        return loss.item()

    def extend(self, rope: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        """Begin again from saved weights, with other positions and an optimizer that has seen nothing."""
        from recipe.model import RecipeMoeConfig

        self.engine.module.load_state_dict(state)
        self.engine.optimizer.state.clear()
        config = RecipeMoeConfig.from_shape(shape_of(self.vocabulary, rope, LONG))
        self.engine.module.config.rope_parameters = config.rope_parameters

    def retrieval(self, length: int, samples: int, others: int) -> dict[str, list[float]]:
        """Accuracy by language and depth, among so many needles of other keys."""
        self.engine.eval()
        generator = np.random.default_rng(length)
        return {
            name: [
                accuracy(
                    self.predict,
                    [
                        needle_sample(
                            language,
                            self.vocabulary.encode,
                            length=length,
                            depth=depth,
                            others=others,
                            generator=generator,
                        )
                        for _ in range(samples)
                    ],
                )
                for depth in DEPTHS
            ]
            for name, language in LANGUAGES.items()
        }

    @torch.no_grad()
    def predict(self, tokens: np.ndarray, keep: int) -> np.ndarray:
        return (
            self.engine(torch.from_numpy(tokens[None]), logits_to_keep=keep, use_cache=False)
            .logits[0]
            .argmax(-1)
            .numpy()
        )


def build(seed: int) -> Model:
    from recipe.engine.build import build_engine, control_routing
    from recipe.model import RecipeMoeConfig

    vocabulary = Vocabulary()
    shape = shape_of(vocabulary, BASE, SHORT)
    ds = ds_config_for(shape, 1, stage=0, ep_size=1, micro_batch=1, accumulation=1, bf16=False)
    engine = build_engine(RecipeMoeConfig.from_shape(shape), ds, seed=seed, optimizer=Optimizer(), compute=Compute())
    control = control_routing(engine, Routing(), seq_length=SHORT, sources=list(LANGUAGES), seed=seed)
    return Model(vocabulary, engine, control)


def learn(model: Model, steps: int, tell: Callable[[str], None] = lambda message: None) -> dict[str, torch.Tensor]:
    """Train at the short length; the weights."""
    for length, share in CURRICULUM:
        loss = model.train(length, round(share * steps))
        tell(f"{round(share * steps)} steps at {length} tokens: loss {loss:.3f}")
    return deepcopy(model.engine.module.state_dict())


def compare(
    steps: int, extension_steps: int, samples: int, others: int, lengths: Sequence[int], extensions: Sequence[str]
) -> dict[str, Any]:
    begun = time.perf_counter()
    tell = lambda message: print(f"{time.perf_counter() - begun:5.0f} s  {message}", flush=True)  # noqa: E731
    model = build(seed=0)
    state = learn(model, steps, tell)
    results = {"before": {length: model.retrieval(length, samples, others) for length in lengths}}
    for name in extensions:
        model.extend(EXTENSIONS[name], state)
        at_once = model.retrieval(LONG, samples, others)
        loss = model.train(LONG, extension_steps, rate=RATE / 4)
        results[f"after, {name}"] = {length: model.retrieval(length, samples, others) for length in lengths}
        results[f"without a step, {name}"] = {LONG: at_once}
        tell(f"{extension_steps} steps at {LONG} tokens, {name}: loss {loss:.3f}")
    return {
        "trained_length": SHORT,
        "steps": steps,
        "extension_steps": extension_steps,
        "curriculum": CURRICULUM,
        "tokens_per_step": TOKENS,
        "samples": samples,
        "other_needles": others,
        "depths": DEPTHS,
        "rope_parameters": {"before": BASE, **{name: EXTENSIONS[name] for name in extensions}},
        "accuracy": results,
    }


def markdown(result: dict[str, Any]) -> str:
    """Mean accuracy over depths, and of the worst depth."""
    rows = [
        [
            name,
            f"{int(length):,}",
            *(f"{sum(by_depth) / len(by_depth):.0%} ({min(by_depth):.0%})" for by_depth in languages.values()),
        ]
        for name, of_length in result["accuracy"].items()
        for length, languages in of_length.items()
    ]
    head = [f"{result['steps']} steps at up to {result['trained_length']} tokens, then {result['extension_steps']} at {LONG:,}", "tokens of the text", *LANGUAGES]  # fmt: skip
    return f"{result['device']}, torch {result['torch']}, {result['date']}.\n\n{markdown_table(head, rows)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive_int, default=600, help="at up to 256 tokens (default: %(default)s)")
    parser.add_argument("--extension-steps", type=positive_int, default=60, help="at 2,048 (default: %(default)s)")
    parser.add_argument(
        "--samples", type=positive_int, default=16, help="texts of a length, depth and language (default: %(default)s)"
    )
    parser.add_argument(
        "--others", type=natural_int, default=0, help="needles of other keys in a text (default: %(default)s)"
    )
    parser.add_argument(
        "--lengths",
        type=positive_int,
        nargs="+",
        default=[SHORT, LONG],
        help="of the texts that ask (default: %(default)s)",
    )
    parser.add_argument("--extensions", nargs="+", choices=EXTENSIONS, default=list(EXTENSIONS), help="(default: all)")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    from recipe.engine.session import session

    os.environ.update(place_of_rank(0, 1, free_port()))
    with redirect_stdout(sys.stderr), session():
        result = {
            **machine(),
            **compare(args.steps, args.extension_steps, args.samples, args.others, args.lengths, args.extensions),
        }
        print(markdown(result))
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
