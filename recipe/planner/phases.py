"""The plan of a run by its phases: each with the model, the ds_config and the tokens that hold in it, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from recipe.base.errors import UserError
from recipe.base.hardware import Cluster
from recipe.base.reliability import NOTHING_KNOWN, OwnCluster
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.planner.cost import Cost
from recipe.planner.plan import RUN_KEYS, Budget, Plan, phase_keys
from recipe.planner.timing.timeline import EXPECTED, RANGE, Assumptions
from recipe.planner.workload import Workload, facts_of


@dataclass(frozen=True)
class PhasePlan:
    """A phase and what is planned of it."""

    phase: ResolvedPhase
    plan: Plan

    @property
    def tokens(self) -> int:
        return self.phase.end_tokens - self.phase.first_tokens

    def as_dict(self) -> dict[str, Any]:
        """What the table has of it, and the whole plan."""
        phase, plan = self.phase, self.plan
        return {
            "number": phase.number,
            "name": phase.name,
            "first_tokens": phase.first_tokens,
            "end_tokens": phase.end_tokens,
            "tokens": self.tokens,
            "steps": phase.steps,
            "batch_sequences": phase.ds.train_batch_size,
            "rope_parameters": phase.shape.rope_parameters.model_dump(mode="json"),
            "plan": plan.as_dict(),
        }


def phase_named(name: str, phases: Sequence[ResolvedPhase]) -> ResolvedPhase:
    """Raises UserError where there is none."""
    for phase in phases:
        if phase.name == name:
            return phase
    raise UserError(f"--phase {name} is none of the run config's: {', '.join(phase.name for phase in phases)}")


def plan_phases(
    phases: Sequence[ResolvedPhase], cluster: Cluster, *, usd_per_gpu_hour: float | None = None,
    imbalance: float | None = None, document_tokens: int | None = None, own: OwnCluster = NOTHING_KNOWN,
) -> tuple[PhasePlan, ...]:  # fmt: skip
    """Each phase's plan on a cluster.

    Args:
        usd_per_gpu_hour: None: the list price.
        imbalance: assignments of the busiest rank over the mean, if measured.
        document_tokens: length of the document that a token is in, where attention stays inside documents; None: of the sequence.
        own: what is known of the cluster's failures and storage.
    """
    planned = []
    for phase in phases:
        facts = replace(facts_of(phase.run), imbalance=imbalance, document_tokens=document_tokens)
        keys = RUN_KEYS if phase.settings is None else phase_keys(phase.number)
        budget = Budget(phase.end_tokens - phase.first_tokens, usd_per_gpu_hour, own)
        planned.append(PhasePlan(phase, Plan(Workload(phase.shape, cluster, phase.ds, facts), budget, keys)))
    return tuple(planned)


def problems_of(planned: Sequence[PhasePlan]) -> list[str]:
    """Why phases cannot work, with what to change; what all phases share is said once."""
    if len(planned) == 1:
        return _named(planned[0], planned[0].plan.problems())
    problems = [p.plan.problems() for p in planned]
    shared = [problem for problem in problems[0] if all(problem in others for others in problems)]
    own = [[problem for problem in found if problem not in shared] for found in problems]
    return shared + [line for p, found in zip(planned, own, strict=True) for line in _named(p, found)]


def _named(p: PhasePlan, problems: list[str]) -> list[str]:
    """With the phase that each is of; a run without phases has no name for its one."""
    where = "" if p.phase.settings is None else f"phases.{p.phase.number} ({p.phase.name}): "
    return [where + problem for problem in problems]


def total_cost(planned: Sequence[PhasePlan], assumed: Assumptions = EXPECTED) -> Cost:
    """Of all phases, one after the other."""
    costs = [p.plan.cost(assumed) for p in planned]
    return Cost(sum(c.days for c in costs), sum(c.gpu_hours for c in costs), sum(c.usd for c in costs))


def as_dict(planned: Sequence[PhasePlan]) -> dict[str, Any]:
    """Everything, for --json."""
    total = {"tokens": sum(p.tokens for p in planned), "steps": sum(p.phase.steps for p in planned)}
    costs = {assumed.name: asdict(total_cost(planned, assumed)) for assumed in RANGE}
    return {"phases": [p.as_dict() for p in planned], "total": {**total, "cost": costs}}
