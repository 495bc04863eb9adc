"""Megatron-Core on paper: the fastest way to train a model with it that fits the same GPUs.

Kernels are its own (`FUSED`), links and imbalance those of the recipe's plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from recipe.base.hardware import GIB, Cluster
from recipe.base.model_shape import ModelShape
from recipe.planner.architecture import architecture_of
from recipe.planner.memory import CONTEXT_GIB, FRAGMENTATION, saved_bytes_per_token
from recipe.planner.plan import USABLE
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.search.strategies import (
    OVERLAPPED_EXCHANGE,
    Estimate,
    Strategy,
    estimate,
    held_parameters,
)
from recipe.planner.timing.kernels import BF16
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import RunFacts, Workload

TP, PP, EP, MICRO_BATCHES = (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 4, 8)
VIRTUAL = 4  # model chunks of a stage at the most
RECOMPUTES = ("none", "selective", "full")
PLAIN, OVERLAPPED = "Megatron-Core", "Megatron-Core, all-to-all overlapped"


@dataclass(frozen=True)
class _Choice:
    strategy: Strategy
    micro_batch: int
    micro_batches: int  # of a rank, in a step

    def __str__(self) -> str:
        s = self.strategy
        recompute = "no recompute" if s.recompute == "none" else f"{s.recompute} recompute"
        return f"TP {s.tp}, PP {s.pp}, EP {s.ep}, {self.micro_batch} x {self.micro_batches}, {recompute}"


def megatron_core(
    shape: ModelShape, cluster: Cluster, run: RunFacts, sequences: int
) -> list[tuple[str, Strategy, Estimate]]:
    """The fastest that fits, without its overlap of the all-to-all and with it, by name; none where nothing fits.

    Args:
        shape, cluster: what is trained, and where.
        run: whose sequences' length counts.
        sequences: of the global batch.
    """
    usable, bytes_of = USABLE * cluster.accelerator.memory_gib, _activation_bytes(shape, cluster, run)
    fitting = [
        choice
        for choice in _choices(shape, cluster, sequences)
        if _peak_gib(shape, cluster, run, choice, *bytes_of[choice.strategy.recompute]) <= usable
    ]
    ways = ((PLAIN, [_beside_shared(c) for c in fitting]), (OVERLAPPED, [o for c in fitting for o in _overlapped(c)]))
    best = []
    for name, choices in ways:
        timed = [(c, _estimate(shape, cluster, run, sequences, c)) for c in choices]
        if timed:
            choice, time = min(timed, key=lambda pair: pair[1].step_s)
            best.append((f"{name}: {choice}", choice.strategy, time))
    return best


def _choices(shape: ModelShape, cluster: Cluster, sequences: int) -> Iterator[_Choice]:
    for tp, pp, ep, micro_batch in itertools.product(TP, PP, EP, MICRO_BATCHES):
        data_ranks = cluster.gpus // (tp * pp)
        if tp > cluster.gpus_per_node or cluster.gpus % (tp * pp) or shape.num_hidden_layers % pp:
            continue
        if data_ranks * tp % ep or shape.n_routed_experts % ep or sequences % (data_ranks * micro_batch):
            continue
        virtual = next(v for v in range(VIRTUAL, 0, -1) if shape.num_hidden_layers % (pp * v) == 0) if pp > 1 else 1
        for recompute in RECOMPUTES:
            strategy = Strategy(tp=tp, pp=pp, virtual=virtual, ep=ep, recompute=recompute)
            yield _Choice(strategy, micro_batch, sequences // (data_ranks * micro_batch))


def _beside_shared(choice: _Choice) -> _Choice:
    """With `moe_shared_expert_overlap`, which excludes the other overlap."""
    return replace(choice, strategy=replace(choice.strategy, shared_beside=True))


def _overlapped(choice: _Choice) -> Iterator[_Choice]:
    """With `overlap_moe_expert_parallel_comm`, which wants chunks of a stage and no full recompute.

    It runs one micro-batch's exchanges beside another's computation, so the first has none beside it.
    """
    s, number = choice.strategy, choice.micro_batches
    if s.ep > 1 and s.recompute != "full" and number > 1 and (s.pp == 1 or s.virtual > 1):
        yield replace(choice, strategy=replace(s, exchange_hidden=OVERLAPPED_EXCHANGE * (number - 1) / number))


def _estimate(shape: ModelShape, cluster: Cluster, run: RunFacts, sequences: int, choice: _Choice) -> Estimate:
    return estimate(
        architecture_of(shape), cluster, choice.strategy, seq_length=run.seq_length, sequences=sequences,
        micro_batch=choice.micro_batch, imbalance=EXPECTED.imbalance, compute=cluster.accelerator.run_efficiency,
    )  # fmt: skip


def _peak_gib(
    shape: ModelShape, cluster: Cluster, run: RunFacts, choice: _Choice, layer: float, stored: float
) -> float:
    """Roughly: bf16 weights, fp32 gradients, its distributed optimizer, and the activations of micro-batches under way."""
    s = choice.strategy
    expert, other = held_parameters(architecture_of(shape), s)
    sharded = expert / (cluster.gpus / (s.pp * s.ep * s.expert_tp)) + other / (cluster.gpus / (s.tp * s.pp))
    states = (expert + other) * (2 + 4) + 12 * sharded
    # A stage has layers / pp layers and pp micro-batches under way, more with several chunks (arXiv 2205.05198, section 4.2).
    stages = 1 + (s.pp - 1) / (s.pp * s.virtual) if s.virtual > 1 else 1.0
    tokens = choice.micro_batch * run.seq_length / s.tp
    activations = tokens * (shape.num_hidden_layers * stages * stored + 2 * layer)
    logits = tokens * shape.vocab_size * (2 + 4)  # its cross entropy has the whole micro-batch's at once
    return (states + (1 + FRAGMENTATION) * (activations + logits)) / GIB + CONTEXT_GIB


def _activation_bytes(shape: ModelShape, cluster: Cluster, run: RunFacts) -> dict[str, tuple[float, float]]:
    """By recomputation, per token, of one layer's backward pass, and of what is stored for it from the forward pass on."""
    ds = ds_config_for(shape, cluster.gpus, stage=1, ep_size=1, micro_batch=1, accumulation=1)
    work = Workload(shape, cluster, parsed(ds), RunFacts(run.seq_length))
    layer = sum(saved_bytes_per_token(work, moe=True).values())
    active = shape.num_experts_per_tok + shape.n_shared_experts
    norms, activations = BF16 * 2 * shape.hidden_size, BF16 * active * shape.moe_intermediate_size  # their results
    stored = {"none": layer, "selective": layer - norms - activations, "full": BF16 * shape.hidden_size}
    return {recompute: (layer, size) for recompute, size in stored.items()}
