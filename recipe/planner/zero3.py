"""Which parameters ZeRO-3 gathers in a micro-batch, and how many it holds at once.

DeepSpeed records the modules of a micro-batch once and from then on prefetches along that trace, keeps what is used
again soon, and releases the rest. The rules below are those of its `PartitionedParameterCoordinator` (0.19.8); the
order of modules under recompute is that of its hooks. Tests compare the bytes with the real engine's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from recipe.base.ds_config import ZeroOptimization
from recipe.base.model_shape import ModelShape
from recipe.planner.parameters import Decoder, Module, Parameter, decoder

FORWARD, RECOMPUTE, BACKWARD = "forward", "recompute", "backward"


@dataclass(frozen=True)
class Use:
    """A module's turn in a micro-batch. `keeps`: its post-hook does not run, so nothing is released."""

    module: Module
    phase: str
    keeps: bool = False


@dataclass(frozen=True)
class Gather:
    """Parameters gathered by one coalesced all-gather per group, asked for while `phase` ran."""

    parameters: tuple[Parameter, ...]
    phase: str
    prefetched: bool


@dataclass(frozen=True)
class Fetches:
    """All gathers of a steady micro-batch, and the largest number of elements gathered at once beyond the persistent."""

    gathers: tuple[Gather, ...]
    peak_numel: int

    def numel(self, ranks_of: dict[bool, int]) -> dict[tuple[str, bool, bool], int]:
        """Elements that the all-gathers return, padding included, by phase, whether experts, and whether prefetched.

        Args:
            ranks_of: ranks that share a parameter, by whether it is an expert's.
        """
        totals: Counter[tuple[str, bool, bool]] = Counter()
        for gather in self.gathers:
            for p in gather.parameters:
                totals[gather.phase, p.expert, gather.prefetched] += p.padded(ranks_of[p.expert])
        return totals

    def calls(self, phase: str, *, expert: bool, prefetched: bool) -> int:
        """All-gathers of that kind; one coalesces what it is asked for at once."""
        kind = [g for g in self.gathers if (g.phase, g.prefetched) == (phase, prefetched)]
        return sum(any(p.expert == expert for p in g.parameters) for g in kind)


def persistent(parameters: list[Parameter], zero: ZeroOptimization) -> list[Parameter]:
    """Parameters that stay gathered between micro-batches: small ones, until the model's threshold is full."""
    staying, total = [], 0
    limit = zero.stage3_model_persistence_threshold
    for p in parameters:
        fits = limit is None or p.numel + total <= limit
        if fits and p.numel <= zero.stage3_param_persistence_threshold:
            staying.append(p)
            total += p.numel
    return staying


@lru_cache(maxsize=256)
def micro_batch_fetches(
    shape: ModelShape, ep_size: int, zero: ZeroOptimization, recompute: str, *, accumulates: bool
) -> Fetches:
    """The gathers of one micro-batch once the trace is known.

    DeepSpeed decides what a module releases when it first follows the trace, in its second micro-batch, and keeps
    to it. With accumulation that is before the first optimizer step has gathered the persistent parameters.

    Args:
        shape, ep_size: of the model and its expert parallelism.
        zero: the ds_config's section; its bounds count elements of one rank's parameters.
        recompute: `compute.recompute` of the run config.
        accumulates: whether a step has more than one micro-batch.
    """
    model = decoder(shape, ep_size)
    uses, staying = tuple(trace(model, recompute)), frozenset(persistent(model.parameters, zero))
    releases: dict[int, frozenset[Parameter]] = {}
    _Coordinator(uses, staying, zero, releases, set() if accumulates else set(staying)).run()
    return _Coordinator(uses, staying, zero, releases, set(staying)).run()


def trace(model: Decoder, recompute: str) -> Iterator[Use]:
    """Modules in the order in which DeepSpeed's hooks meet them, forward and backward."""
    for module in (*model.first, *(m for layer in model.layers for m in layer), *model.last):
        yield Use(module, FORWARD)
    root, decoder_stack, embedding = model.first
    norm, head = model.last
    for module in (root, head, decoder_stack, norm):
        yield Use(module, BACKWARD)
    for layer in reversed(model.layers):
        if recompute == "none":
            yield from (Use(m, BACKWARD) for m in _backward_order(layer))
        elif recompute == "reentrant":
            yield from (Use(m, RECOMPUTE) for m in layer)
            yield from (Use(m, BACKWARD) for m in _backward_order(layer))
        else:
            # Autograd opens the containers and the last projection, then its saved tensors are asked for. The
            # recomputation stops inside that projection, before its post-hook; its backward releases it at once.
            backward = _backward_order(layer)
            opened = next(i for i, m in enumerate(backward) if m.parameters) + 1
            yield from (Use(m, BACKWARD, keeps=True) for m in backward[:opened])
            yield from (Use(m, RECOMPUTE) for m in layer)
            yield from (Use(m, BACKWARD) for m in backward[opened:])
    yield Use(embedding, BACKWARD)


def _backward_order(layer: tuple[Module, ...]) -> list[Module]:
    """A layer's modules as autograd enters them: a container before its parts, siblings in reverse."""
    by_name = {m.name: m for m in layer}

    def enter(name: str) -> Iterator[Module]:
        yield by_name[name]
        parts = [n for n in by_name if n.startswith(f"{name}.") and parent(n) == name]
        for part in reversed(parts):
            yield from enter(part)

    def parent(name: str) -> str:
        while (name := name.rpartition(".")[0]) not in by_name:
            pass
        return name

    return list(enter(layer[0].name))


@dataclass
class _Coordinator:
    uses: tuple[Use, ...]
    staying: frozenset[Parameter]
    zero: ZeroOptimization
    releases: dict[int, frozenset[Parameter]]  # by step, decided once
    available: set[Parameter]
    fetched_for: dict[Parameter, int] = field(default_factory=dict)  # the last use that a prefetch has looked at
    gathers: list[Gather] = field(default_factory=list)
    held: int = 0
    peak: int = 0

    def run(self) -> Fetches:
        queue = deque(
            (p, step) for step, use in enumerate(self.uses) for p in sorted(use.module.parameters, key=lambda p: p.name)
        )
        for step, use in enumerate(self.uses):
            self._gather([p for p in use.module.parameters if p not in self.available], use.phase, prefetched=False)
            not_queued = {p for p in use.module.parameters if self.fetched_for.get(p, -1) < step}
            while queue and not_queued:
                p, last_used = queue.popleft()
                self.fetched_for[p] = last_used
                not_queued.discard(p)
            self._prefetch(queue, use.phase)
            if not use.keeps:
                self._release(use.module, step + 1)
        return Fetches(tuple(self.gathers), self.peak)

    def _prefetch(self, queue: deque[tuple[Parameter, int]], phase: str) -> None:
        limit = min(self.zero.stage3_max_live_parameters - self.held, self.zero.stage3_prefetch_bucket_size)
        chosen: list[Parameter] = []
        numel = 0
        while queue and numel < limit:
            p, last_used = queue.popleft()
            self.fetched_for[p] = max(self.fetched_for.get(p, -1), last_used)
            if p not in self.available and p not in chosen:
                chosen.append(p)
                numel += p.numel
        self._gather(chosen, phase, prefetched=True)

    def _gather(self, parameters: list[Parameter], phase: str, *, prefetched: bool) -> None:
        if parameters:
            self.gathers.append(Gather(tuple(parameters), phase, prefetched))
            self.available.update(parameters)
            self.held += sum(p.numel for p in parameters)
            self.peak = max(self.peak, self.held)

    def _release(self, module: Module, step: int) -> None:
        if step not in self.releases:
            self.releases[step] = self._releasable(module, step)
        leaving = self.releases[step] & self.available
        self.available -= leaving
        self.held -= sum(p.numel for p in leaving)

    def _releasable(self, module: Module, step: int) -> frozenset[Parameter]:
        """What no prefetch has counted on and no module soon needs."""
        leaving = {p for p in module.parameters if p not in self.staying and self.fetched_for.get(p, -1) <= step}
        traversed = 0
        for use in self.uses[step:]:
            if not leaving or traversed >= self.zero.stage3_max_reuse_distance:
                break
            leaving.difference_update(use.module.parameters)
            traversed += use.module.numel
        return frozenset(leaving)
