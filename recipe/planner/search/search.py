"""All choices of ZeRO stage, expert parallelism, micro-batch, recompute and persistence, ranked; and why each lost.

Tensor and pipeline parallelism are estimated beside them on paper: the recipe does not run them by default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from recipe.base.errors import UserError
from recipe.base.hardware import GIB, Cluster
from recipe.base.model_shape import ModelShape
from recipe.base.tables import ProgressLine
from recipe.planner.architecture import architecture_of
from recipe.planner.memory import CONTEXT_GIB, saved_bytes_per_token
from recipe.planner.plan import USABLE, Budget, Plan, on_half_the_network, with_kept
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.search.strategies import Estimate, Strategy, estimate, held_parameters
from recipe.planner.timing.kernels import COMPILED, EAGER
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import RunFacts, Workload

STAGES, EP_SIZES = (1, 2, 3), (1, 2, 4, 8, 16, 32)
SEARCHED_RECOMPUTES = (
    "selective",
)  # with what fills the memory kept: nothing where there is little room, where all fits everything
MAX_MICRO_BATCH = 32
PREFETCH_LAYERS = (1.0, 0.5, 2.0, 0.0)  # the plainest first
EXCHANGE_PARTS, USUAL_PARTS = (1, 2, 4), 2
REFINED = 2  # of each stage and expert-parallel size: choices of which further variants are planned
EQUAL_TO_WINNER = "equal"
LOG_EVERY_S = 5.0  # a line of progress where there is no terminal
EQUAL = 0.01  # of a step: a ninth of the median error against published runs, which no plan can tell apart


@dataclass(frozen=True)
class Choice:
    """What a candidate has of its own."""

    stage: int
    ep: int
    micro_batch: int
    recompute: str
    keep_weights: bool = False
    exchange_parts: int = 1
    persist: bool = False
    prefetch_layers: float = 1.0

    @property
    def plainness(self) -> tuple[float, ...]:
        """Smaller for the choice to take where two are equally fast: the fewest settings."""
        return self.keep_weights, self.exchange_parts, self.persist, PREFETCH_LAYERS.index(self.prefetch_layers)


@dataclass(frozen=True)
class Candidate:
    """One choice with its plan."""

    config: dict[str, Any]
    plan: Plan
    choice: Choice

    @property
    def fits(self) -> bool:
        return self.plan.fits

    @property
    def step_s(self) -> float:
        return self.plan.expected.step_s

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller for the better: the faster of those that fit, the smaller of those that do not."""
        return not self.fits, self.step_s if self.fits else self.plan.memory.peak_gib

    @property
    def name(self) -> str:
        choice, work = self.choice, self.plan.work
        variants = [
            f"exchanges in {choice.exchange_parts} parts" * (choice.exchange_parts > 1),
            "weights kept" * choice.keep_weights,
            "persistent norms" * choice.persist,
            f"{choice.prefetch_layers:g} layers prefetched" * (choice.prefetch_layers != 1.0),
        ]
        recompute = "no recompute" if choice.recompute == "none" else "recompute"
        if choice.recompute == "selective" and work.kept.layers:
            recompute = f"{work.ds.recipe.kept_gib:g} GiB kept"
        parts = (f"ZeRO-{choice.stage}", f"EP {choice.ep}", f"{choice.micro_batch} x {work.accumulation}", recompute)
        return ", ".join((*parts, *filter(None, variants)))


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
    stages: tuple[int, ...] = STAGES, ep_sizes: tuple[int, ...] = EP_SIZES, recomputes: tuple[str, ...] = SEARCHED_RECOMPUTES,
    shows_progress: bool = False,
) -> list[Candidate]:  # fmt: skip
    """Every choice of how to train a model on a cluster, with its plan.

    Args:
        shape, cluster, run, budget: what is trained, where, with which facts of the run, for how many tokens.
        sequences: of the global batch.
        stages, ep_sizes, recomputes: what is tried of ZeRO stages, expert-parallel sizes, and recomputation.
        shows_progress: on standard error, over the candidates.

    Returns:
        Those that fit first, the fastest first. The winner is one of the equally fast that a slower network slows least.

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
    per_rank = sequences // cluster.gpus

    def planned(title: str, choices: Iterable[Choice]) -> Iterator[Candidate]:
        choices = list(choices)
        shown = shows_progress and choices
        with ProgressLine(title, len(choices), log_every_s=LOG_EVERY_S) if shown else nullcontext() as line:
            for choice in choices:
                candidate = planned_choice(shape, cluster, run, budget, sequences, choice)
                assert candidate.rank[1] > 0  # planned here, where progress is shown
                yield candidate
                if line is not None:
                    line.advance()

    ranked = list(planned("plans", _choices(per_rank, stages, sizes, recomputes)))
    ranked += list(planned("plans of exchanges", _exchange_variants(ranked)))
    ranked += list(planned("plans of gathers", _gather_variants(ranked)))
    ranked.sort(key=lambda c: c.rank)
    winner = _winner([c for c in ranked if c.fits]) or ranked[0]
    return [winner, *(c for c in ranked if c is not winner)]


def _winner(fitting: list[Candidate]) -> Candidate | None:
    """Of those as fast as the first: what a slower network slows least, then the plainest."""
    equals = [c for c in fitting if c.step_s <= (1 + EQUAL) * fitting[0].step_s]
    slowed = {id(c): on_half_the_network(c.plan).expected.step_s for c in equals}
    robust = [c for c in equals if slowed[id(c)] <= (1 + EQUAL) * min(slowed.values())]
    return min(robust, key=lambda c: c.choice.plainness, default=None)


def _choices(
    per_rank: int, stages: tuple[int, ...], ep_sizes: list[int], recomputes: tuple[str, ...]
) -> Iterator[Choice]:
    """All, without the variants that are planned of the best alone."""
    micro_batches = [m for m in range(1, min(per_rank, MAX_MICRO_BATCH) + 1) if per_rank % m == 0]
    for stage, ep, micro_batch, recompute in itertools.product(stages, ep_sizes, micro_batches, recomputes):
        for keep_weights in (False, True) if stage == 3 else (False,):
            yield Choice(stage, ep, micro_batch, recompute, keep_weights, USUAL_PARTS if ep > 1 else 1)


def _best(ranked: list[Candidate]) -> Iterator[Choice]:
    """The few best of each stage and expert-parallel size."""
    groups: dict[tuple[int, int], list[Choice]] = {}
    for candidate in sorted(ranked, key=lambda c: c.rank):
        groups.setdefault((candidate.choice.stage, candidate.choice.ep), []).append(candidate.choice)
    for group in groups.values():
        yield from group[:REFINED]


def _exchange_variants(ranked: list[Candidate]) -> Iterator[Choice]:
    """Of the best: their MoE layers' tokens in several parts."""
    for choice in _best(ranked):
        if choice.ep > 1:
            yield from (replace(choice, exchange_parts=parts) for parts in EXCHANGE_PARTS if parts != USUAL_PARTS)


def _gather_variants(ranked: list[Candidate]) -> Iterator[Choice]:
    """Of the best: how far ahead ZeRO-3 gathers weights, and whether small ones stay."""
    for choice in _best(ranked):
        if choice.stage == 3:
            others = list(itertools.product((False, True), PREFETCH_LAYERS))[1:]
            yield from (replace(choice, persist=persist, prefetch_layers=layers) for persist, layers in others)


def planned_choice(
    shape: ModelShape, cluster: Cluster, run: RunFacts, budget: Budget, sequences: int, choice: Choice
) -> Candidate:
    """The choice with its ds_config and its plan; selective recompute keeps what fills the memory."""
    config = ds_config_for(
        shape, cluster.gpus, stage=choice.stage, ep_size=choice.ep, micro_batch=choice.micro_batch,
        accumulation=sequences // cluster.gpus // choice.micro_batch, persist=choice.persist, prefetch_layers=choice.prefetch_layers,
        keep_weights=choice.keep_weights, exchange_parts=choice.exchange_parts,
    )  # fmt: skip
    work = Workload(shape, cluster, parsed(config), replace(run, recompute=choice.recompute))
    if choice.recompute == "selective":
        config["recipe"]["kept_gib"] = kept_gib = Plan(work).kept_gib_that_fills()
        work = with_kept(work, kept_gib)
    plan = Plan(work, budget)
    return Candidate(config, plan, choice)


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
        "uneven experts, and rows moved" if plan.work.ep > winner.plan.work.ep else "small matmuls": (
            (time.compute_s - time.recompute_s) - (best.compute_s - best.recompute_s)
        ),
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
                micro_batch=1, imbalance=EXPECTED.imbalance, compute=cluster.accelerator.run_efficiency,
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
