"""Published rules for hyperparameters that move with size, each with its source and the runs that it was fitted on.

Of an MoE model, parameters are the active ones without the embedding and the head, and FLOPs are those of training without the
head: with these, Ling's rule gives the learning rates and batches that Ling 2.0 was trained with (arXiv 2510.22115, table 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from recipe.base.model_shape import ModelShape
from recipe.scaling.rungs import optimal_batch_tokens, step_law_lr


@dataclass(frozen=True)
class Run:
    """What the rules ask of a run.

    Args:
        parameters: active ones, without the embedding and the head.
        sparsity: experts of a layer over those that a token passes, shared ones included; 1 of a dense model.
        tokens: trained on.
        flops: of training, without the head.
    """

    parameters: float
    sparsity: float
    tokens: float
    flops: float


def run_of(shape: ModelShape, tokens: float, seq_length: int) -> Run:
    active = shape.active_parameters()
    head = active["lm_head"]
    passed, experts = (
        shape.num_experts_per_tok + shape.n_shared_experts,
        shape.n_routed_experts + shape.n_shared_experts,
    )
    return Run(
        parameters=sum(active.values()) - active["embedding"] - head,
        sparsity=experts / passed,
        tokens=tokens,
        flops=tokens * (shape.training_flops_per_token(seq_length) - 6.0 * head),
    )


@dataclass(frozen=True)
class Rule:
    """A peak learning rate and the batch, in tokens, that goes with it.

    Args:
        fitted_on: the models, data and schedule of the runs behind it.
    """

    name: str
    source: str
    fitted_on: str
    learning_rate: Callable[[Run], float]
    batch_tokens: Callable[[Run], float]


STEP_LAW = Rule(
    "Step Law", "arXiv 2503.04715",
    "59M to 1B parameters, up to 100B tokens, dense and MoE, cosine to a fixed 1e-5",
    lambda run: step_law_lr(run.parameters, run.tokens),
    lambda run: optimal_batch_tokens(run.tokens),
)  # fmt: skip
DEEPSEEK = Rule(
    "DeepSeek LLM", "arXiv 2401.02954, equation 1",
    "dense, 1e17 to 2e19 FLOPs, steps at 80% and 90%",
    lambda run: 0.3118 * run.flops**-0.125,
    lambda run: 0.2920 * run.flops**0.3271,
)  # fmt: skip
LING = Rule(
    "Ling", "arXiv 2507.17702, equation 3",
    "MoE, 4 of 64 experts and a shared one, 3e17 to 3e20 FLOPs, WSD; checked at active shares of 4.7% to 10.9%",
    lambda run: 1.1576 * run.flops**-0.1529,
    lambda run: 0.0694 * run.flops**0.3644,
)  # fmt: skip
JOINT_MOE = Rule(
    "joint MoE laws", "arXiv 2502.05172, equation 8",
    "1 of 1 to 32 experts as wide as the MLP, up to 2.7B active parameters, batches of 256K tokens, WSD",
    lambda run: math.exp(8.39 - 0.81 * math.log(run.parameters) - 0.25 * math.log(run.sparsity)),
    lambda run: 256 * 1024,
)  # fmt: skip
RULES = (LING, JOINT_MOE, DEEPSEEK, STEP_LAW)


def at_batch(learning_rate: float, batch_tokens: float, other_batch_tokens: float) -> float:
    """A learning rate at another batch, by the square root that holds for Adam under gradient noise (arXiv 2205.10287)."""
    return learning_rate * math.sqrt(other_batch_tokens / batch_tokens)


def vocabulary_size(hidden_size: int, flops: float) -> float:
    """Tokens of the vocabulary that suits a model's compute.

    Args:
        flops: of training, with the head.

    Tao et al. (arXiv 2407.13623, section 4.1): hidden size times vocabulary grows with FLOPs to the power 0.42; anchored at
    table 1's 83K of width 5,120 at 2.4e22. Fitted on dense models of 33M to 3B parameters and English text.
    """
    return 83_000 * 5_120 * (flops / 2.4e22) ** 0.42 / hidden_size


def small_initial_std(hidden_size: int) -> float:
    """Nguyen and Salazar's SmallInit (arXiv 1910.05895)."""
    return math.sqrt(2 / (5 * hidden_size))


def smallest_rotary_base(length: int) -> float:
    """The rotary base that a context needs, by "Base of RoPE Bounds Context Length" (arXiv 2405.14591, the fit of figure 1).

    With a smaller one there are distances within the context at which a key that equals the query gets less attention than a
    random one, on average over independent components. Of heads that are 128 wide, for 1,000 to 1,000,000 tokens.
    """
    return float(0.0424 * length**1.628)
