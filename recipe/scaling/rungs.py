"""The rungs of a ladder: of each small run the model, the tokens, the batch and the learning rate, by rules.

Batch and learning rate are Step Law's (arXiv 2503.04715): B = 0.58 D**0.571 tokens and lr = 1.79 N**-0.713 D**0.307, with N the
parameters without the vocabulary's and D the tokens; of models of up to about 1B parameters, and found to hold for MoE models of
several sparsities. Of an MoE model N is taken to be the active ones here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from recipe.base.model_shape import ModelShape
from recipe.scaling.family import member
from recipe.scaling.law import Size, size_of

# Step Law's rate rises without end towards small models: at a width of 64 it is ten times the best one (benchmarks/transfer.py,
# docs/design.md point 10).
LARGEST_LR = 3e-3
WARMUP, DECAY, FINAL_LR = 0.05, 0.2, 0.1  # shares of the tokens, and of the peak


@dataclass(frozen=True)
class Rung:
    """One run of a ladder, or its target."""

    name: str
    shape: ModelShape
    tokens: int
    batch_sequences: int
    lr: float
    flops: float

    @property
    def size(self) -> Size:
        return size_of(self.shape, self.tokens)

    def schedule(self) -> dict[str, Any]:
        """The run config's `schedule:`."""
        return finished_schedule(self.tokens, self.lr)


def finished_schedule(tokens: int, lr: float) -> dict[str, Any]:
    """WSD with a decay of its own, since a law is of finished runs."""
    return {
        "total_tokens": tokens,
        "kind": "wsd",
        "peak_lr": lr,
        "min_lr": lr * FINAL_LR,
        "warmup_tokens": round(WARMUP * tokens),
        "decay_tokens": round(DECAY * tokens),
    }


def optimal_batch_tokens(tokens: float) -> float:
    """Step Law's batch, in tokens."""
    return float(0.58 * tokens**0.571)


def step_law_lr(parameters: float, tokens: float) -> float:
    """Step Law's peak learning rate."""
    return float(1.79 * parameters**-0.713 * tokens**0.307)


def optimal_lr(parameters: float, tokens: float) -> float:
    """Step Law's peak learning rate, no larger than LARGEST_LR."""
    return min(LARGEST_LR, step_law_lr(parameters, tokens))


def rung(
    name: str,
    shape: ModelShape,
    tokens_per_parameter: float,
    seq_length: int,
    ranks: int,
    lr_times_width: float | None = None,
) -> Rung:
    """One run: its batch is a multiple of the ranks, its tokens one of the batch.

    Args:
        lr_times_width: the peak learning rate is this over the hidden size; None for Step Law's.
    """
    size = size_of(shape, 1)
    wanted = tokens_per_parameter * size.active
    sequences = max(1, round(optimal_batch_tokens(wanted) / (seq_length * ranks))) * ranks
    tokens = max(1, round(wanted / (sequences * seq_length))) * sequences * seq_length
    lr = optimal_lr(size.active - shape.active_parameters()["lm_head"], tokens)
    if lr_times_width is not None:
        lr = lr_times_width / shape.hidden_size
    return Rung(name, shape, tokens, sequences, float(f"{lr:.3g}"), tokens * shape.training_flops_per_token(seq_length))


def rungs(
    target: ModelShape,
    widths: Sequence[int],
    ratios: Sequence[float],
    seq_length: int,
    ranks: int,
    experts: Sequence[int] = (),
    lr_times_width: float | None = None,
) -> list[Rung]:
    """Every width with every number of tokens per active parameter: a law needs both to vary, and not together.

    Args:
        experts: numbers of routed experts, each with every width and ratio; none for the target's number.
    """
    made = []
    for width, ratio in product(sorted(set(widths)), sorted(set(ratios))):
        shape = member(target, width)
        for number in sorted(set(experts)) or [shape.n_routed_experts]:
            name = f"w{width}-t{ratio:g}" + (f"-e{number}" if experts else "")
            of_experts = shape.model_copy(update={"n_routed_experts": number})
            made.append(rung(name, of_experts, ratio, seq_length, ranks, lr_times_width))
    return made
