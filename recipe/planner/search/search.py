"""All choices of ZeRO stage, expert parallelism, micro-batch, recompute and persistence, ranked; and why each lost.

Tensor and pipeline parallelism are estimated beside them on paper: the recipe does not run them by default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from recipe.base.errors import UserError
from recipe.base.hardware import GIB, Cluster
from recipe.base.model_shape import ModelShape
from recipe.planner.architecture import architecture_of
from recipe.planner.kernels import COMPILED, EAGER, RUN_EFFICIENCY
from recipe.planner.memory import CONTEXT_GIB, saved_bytes_per_token
from recipe.planner.plan import USABLE, Budget, Plan
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.search.strategies import Estimate, Strategy, estimate, held_parameters
from recipe.planner.timeline import EXPECTED
from recipe.planner.workload import RunFacts, Workload

STAGES, EP_SIZES, RECOMPUTES = (1, 2, 3), (1, 2, 4, 8, 16, 32), ("none", "non_reentrant")
MAX_MICRO_BATCH = 32
PREFETCH_LAYERS = (1.0, 0.5, 2.0, 0.0)  # the plainest first
EQUAL_TO_WINNER = "equal"
EQUAL = 0.005  # of a step, which no plan can tell apart


@dataclass(frozen=True)
class Candidate:
    """One choice with its plan."""

    config: dict[str, Any]
    plan: Plan
    persist: bool
    prefetch_layers: float

    @property
    def fits(self) -> bool:
        return self.plan.fits

    @property
    def step_s(self) -> float:
        return self.plan.expected.step_s

    @property
    def name(self) -> str:
        work = self.plan.work
        variant = ", persistent norms" if self.persist else ""
        if work.ds.zero_optimization.stage == 3 and self.prefetch_layers != 1.0:
            variant += f", {self.prefetch_layers:g} layers prefetched"
        return (
            f"ZeRO-{work.ds.zero_optimization.stage}, EP {work.ep}, "
            f"{work.ds.train_micro_batch_size_per_gpu} x {work.accumulation}, "
            f"{'no recompute' if work.run.recompute == 'none' else 'recompute'}{variant}"
        )


@dataclass(frozen=True)
class OnPaper:
    """Tensor and pipeline parallelism with ZeRO-1 and the same kernels."""

    strategy: Strategy
    estimate: Estimate
    peak_gib: float

    @property
    def name(self) -> str:
        s = self.strategy
        recompute = "no recompute" if s.recompute == "none" else "recompute"
        return f"TP {s.tp}, PP {s.pp}, EP {s.ep}, ZeRO-1, micro-batch 1, {recompute} (on paper)"


def global_batch_sequences(tokens: float, seq_length: int, gpus: int) -> int:
    """Sequences of a step nearest to `tokens` of which every rank gets the same number."""
    return max(1, round(tokens / seq_length / gpus)) * gpus


def search(
    shape: ModelShape, cluster: Cluster, run: RunFacts, budget: Budget, sequences: int, *,
    stages: tuple[int, ...] = STAGES, ep_sizes: tuple[int, ...] = EP_SIZES, recomputes: tuple[str, ...] = RECOMPUTES,
) -> list[Candidate]:  # fmt: skip
    """Every choice of how to train a model on a cluster, with its plan.

    Args:
        shape, cluster, run, budget: what is trained, where, with which facts of the run, for how many tokens.
        sequences: of the global batch.
        stages, ep_sizes, recomputes: what is tried of ZeRO stages, expert-parallel sizes, and recomputation.

    Returns:
        Those that fit first, the fastest first; of equals the plainest is the winner.

    Raises:
        UserError: the batch cannot be divided among the GPUs, or the experts by no size.
    """
    if sequences % cluster.gpus:
        raise UserError(
            f"a global batch of {sequences} sequences does not divide among {cluster.gpus} GPUs; give a multiple of "
            f"{cluster.gpus * run.seq_length:,} tokens as --global-batch-tokens"
        )
    sizes = [e for e in ep_sizes if cluster.gpus % e == 0 and shape.n_routed_experts % e == 0]
    if not sizes:
        raise UserError(
            f"no expert-parallel size of {', '.join(map(str, ep_sizes))} divides both the model's "
            f"{shape.n_routed_experts} routed experts and {cluster.gpus} GPUs; give another --ep or --gpus"
        )
    ranked = list(_candidates(shape, cluster, run, budget, sequences // cluster.gpus, stages, sizes, recomputes))
    ranked.sort(key=lambda c: (not c.fits, c.step_s if c.fits else c.plan.memory.peak_gib))
    equals = [c for c in ranked if c.fits and c.step_s <= (1 + EQUAL) * ranked[0].step_s]
    plainest = min(equals, key=lambda c: (c.persist, PREFETCH_LAYERS.index(c.prefetch_layers)), default=ranked[0])
    return [plainest, *(c for c in ranked if c is not plainest)]


def _candidates(
    shape: ModelShape, cluster: Cluster, run: RunFacts, budget: Budget, per_rank: int,
    stages: tuple[int, ...], ep_sizes: list[int], recomputes: tuple[str, ...],
) -> Iterator[Candidate]:  # fmt: skip
    micro_batches = [m for m in range(1, min(per_rank, MAX_MICRO_BATCH) + 1) if per_rank % m == 0]
    for stage, ep, micro_batch, recompute in itertools.product(stages, ep_sizes, micro_batches, recomputes):
        for persist, prefetch in itertools.product((False, True), PREFETCH_LAYERS) if stage == 3 else ((False, 1.0),):
            config = ds_config_for(
                shape, cluster.gpus, stage=stage, ep_size=ep, micro_batch=micro_batch,
                accumulation=per_rank // micro_batch, persist=persist, prefetch_layers=prefetch,
            )  # fmt: skip
            facts = replace(run, recompute=recompute)
            yield Candidate(config, Plan(Workload(shape, cluster, parsed(config), facts), budget), persist, prefetch)


def why_it_lost(loser: Candidate, winner: Candidate) -> str:
    """In a few words, what makes a choice slower than the winner or impossible."""
    plan = loser.plan
    if not loser.fits:
        return f"out of memory: {plan.memory.peak_gib:.0f} GiB"
    time, best = plan.expected, winner.plan.expected
    if time.step_s <= (1 + EQUAL) * best.step_s:
        return EQUAL_TO_WINNER
    causes = {
        "all-to-all" + (" crosses nodes" if plan.work.expert_group.nodes > 1 else ""): (
            time.exposed_s["all-to-all"] - best.exposed_s["all-to-all"]
        ),
        "weights gathered, gradients reduced " + (
            f"in each of {plan.work.accumulation} micro-batches" if plan.work.accumulation > 1 else "in the open"
        ): time.exposed_s["gathers and reductions"] - best.exposed_s["gathers and reductions"],
        "gathers that modules wait for": time.exposed_s["gathers on demand"] - best.exposed_s["gathers on demand"],
        "collectives between steps": time.exposed_s["between steps"] - best.exposed_s["between steps"],
        "first gather and last reduction": (
            time.exposed_s["first gather, last reduction"] - best.exposed_s["first gather, last reduction"]
        ),
        "recompute": time.recompute_s - best.recompute_s,
        "small matmuls": (time.compute_s - time.recompute_s) - (best.compute_s - best.recompute_s),
        "more traffic beside the computation": time.contention_s - best.contention_s,
        "a longer optimizer step": time.optimizer_s - best.optimizer_s,
    }  # fmt: skip
    cause = max(causes, key=lambda name: causes[name])
    return f"{time.step_s / best.step_s - 1:+.0%}: {cause}"


def on_paper(shape: ModelShape, cluster: Cluster, run: RunFacts, sequences: int) -> list[OnPaper]:
    """Estimates for tensor and pipeline parallelism that fit, fastest first, with the kernels that the recipe runs."""
    estimates = []
    for (tp, pp), recompute in itertools.product(
        ((2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 4)), ("none", "full")
    ):
        data_ranks = cluster.gpus // (tp * pp)
        if cluster.gpus % (tp * pp) or sequences % max(1, data_ranks) or tp > cluster.gpus_per_node:
            continue
        ep = next(e for e in (8, 4, 2, 1) if data_ranks * tp % e == 0 and shape.n_routed_experts % e == 0)
        strategy = Strategy(tp=tp, pp=pp, ep=ep, recompute=recompute, software=COMPILED if run.compile else EAGER)
        peak = _gib_on_paper(shape, cluster, run, strategy)
        if peak <= USABLE * cluster.accelerator.memory_gib:
            step = estimate(
                architecture_of(shape), cluster, strategy, seq_length=run.seq_length, sequences=sequences,
                micro_batch=1, imbalance=EXPECTED.imbalance, compute=RUN_EFFICIENCY,
            )  # fmt: skip
            estimates.append(OnPaper(strategy, step, peak))
    return sorted(estimates, key=lambda p: p.estimate.step_s)


def _gib_on_paper(shape: ModelShape, cluster: Cluster, run: RunFacts, s: Strategy) -> float:
    """Roughly: bf16 weights, fp32 gradients, sharded optimizer, and as many micro-batches as a pipeline has stages."""
    model = architecture_of(shape)
    held = sum(held_parameters(model, s))
    states = held * (2 + 4 + 12 / (cluster.gpus // (s.tp * s.pp)))
    ds = ds_config_for(shape, cluster.gpus, stage=1, ep_size=s.ep, micro_batch=1, accumulation=1)
    work = Workload(shape, cluster, parsed(ds), RunFacts(run.seq_length, compile=run.compile))
    layer = sum(saved_bytes_per_token(work, moe=True).values()) / s.tp
    stored = layer if s.recompute == "none" else 2 * shape.hidden_size
    # A stage has layers / pp layers and pp micro-batches under way.
    activations = run.seq_length * (shape.num_hidden_layers * stored + 2 * layer)
    logits = run.loss_chunk_tokens * shape.vocab_size * (4 + 4 + 2)
    return (states + 1.1 * (activations + logits)) / GIB + CONTEXT_GIB
