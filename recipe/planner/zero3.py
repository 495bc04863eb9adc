"""Which parameters ZeRO-3 gathers in a micro-batch, and how many it holds at once.

DeepSpeed records the modules of a micro-batch once and from then on prefetches along that trace, keeps what is used
again soon, and releases the rest. The rules below are those of its `PartitionedParameterCoordinator` (0.19.8); the
order of modules under recompute is that of its hooks. Tests compare the bytes with the real engine's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate

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


def micro_batch_fetches(
    shape: ModelShape,
    ep_size: int,
    zero: ZeroOptimization,
    recompute: str,
    *,
    accumulates: bool,
    parts: int = 1,
    whole: int = 0,
) -> Fetches:
    """The gathers of one micro-batch once the trace is known.

    DeepSpeed decides what a module releases when it first follows the trace, in its second micro-batch, and keeps
    to it. With accumulation that is before the first optimizer step has gathered the persistent parameters.

    Args:
        shape, ep_size: of the model and its expert parallelism.
        zero: the ds_config's section; its bounds count elements of one rank's parameters.
        recompute: `compute.recompute` of the run config.
        accumulates: whether a step has more than one micro-batch.
        parts: that an MoE layer's tokens are exchanged in.
        whole: the first layers, which are not recomputed.
    """
    staying = frozenset(persistent(decoder(shape, ep_size).parameters, zero))
    return _fetches(shape, ep_size, zero, recompute, parts, whole, staying, gathers_them=accumulates and bool(staying))


@lru_cache(maxsize=256)
def _fetches(
    shape: ModelShape, ep_size: int, zero: ZeroOptimization, recompute: str, parts: int, whole: int,
    staying: frozenset[Parameter], *, gathers_them: bool,
) -> Fetches:  # fmt: skip
    """Args: gathers_them: whether the micro-batch that decides what is released begins without the persistent parameters."""
    uses = _uses(shape, ep_size, recompute, parts, whole)
    releases: dict[int, frozenset[Parameter]] = {}
    first = _Coordinator(uses, staying, zero, releases, set() if gathers_them else set(staying)).run()
    # A micro-batch that begins with the same parameters as the first does what the first did.
    return _Coordinator(uses, staying, zero, releases, set(staying)).run() if gathers_them else first


@lru_cache(maxsize=64)
def _uses(shape: ModelShape, ep_size: int, recompute: str, parts: int, whole: int) -> tuple[Use, ...]:
    return tuple(trace(decoder(shape, ep_size), recompute, parts, whole))


def trace(model: Decoder, recompute: str, parts: int = 1, whole: int = 0) -> Iterator[Use]:
    """Modules in the order in which DeepSpeed's hooks meet them, forward and backward."""
    for module in (*model.first, *(m for layer in model.layers for m in layer), *model.last):
        yield Use(module, FORWARD)
    root, decoder_stack, embedding = model.first
    norm, head = model.last
    for module in (root, head, decoder_stack, norm):
        yield Use(module, BACKWARD)
    for number, layer in reversed(list(enumerate(model.layers))):
        backward = list(_backward_uses(layer, parts))
        if recompute == "none" or number < whole:
            yield from backward
        elif recompute == "reentrant":
            yield from (Use(m, RECOMPUTE) for m in layer)
            yield from backward
        else:
            # Autograd opens the containers and the last module with weights: an MoE layer's experts, a dense layer's down
            # projection. Then its saved tensors are asked for. The recomputation stops inside that module, before its
            # post-hook; its backward releases it at once.
            last = next(use.module for use in backward if use.module.parameters)
            opened = max(i for i, use in enumerate(backward) if use.module is last) + 1
            yield from (replace(use, keeps=True) for use in backward[:opened])
            yield from (Use(m, RECOMPUTE) for m in layer)
            yield from backward[opened:]
    yield Use(embedding, BACKWARD)


def _backward_uses(layer: tuple[Module, ...], parts: int) -> Iterator[Use]:
    """A layer's modules in its backward pass; its experts open once for what they returned of each part, and close once."""
    for module in _backward_order(layer):
        if any(p.expert for p in module.parameters):
            yield from [Use(module, BACKWARD, keeps=True)] * (parts - 1)
        yield Use(module, BACKWARD)


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
        reach = self._numel_before[step] + self.zero.stage3_max_reuse_distance
        return frozenset(p for p in leaving if self._numel_before[self._next_use(p, step)] >= reach)

    def _next_use(self, p: Parameter, step: int) -> int:
        """The first step from `step` on whose module has the parameter; one past the end where none has."""
        steps = self._steps_of[p]
        at = bisect_left(steps, step)
        return steps[at] if at < len(steps) else len(self.uses)

    @cached_property
    def _steps_of(self) -> dict[Parameter, list[int]]:
        """In which a parameter's module has its turn."""
        steps: dict[Parameter, list[int]] = {}
        for step, use in enumerate(self.uses):
            for p in use.module.parameters:
                steps.setdefault(p, []).append(step)
        return steps

    @cached_property
    def _numel_before(self) -> list[float]:
        """Elements of all modules before a step; of what comes after the last one, more than any distance."""
        return [0, *accumulate(use.module.numel for use in self.uses[:-1]), math.inf]
