"""Whether an optimizer step may change the weights, decided by all ranks alike just before it would.

The one exchange that every step has is made here, when the global batch's loss and gradient norm are known and the
weights are still what they were. A loss or norm that is not finite, or far above what the last steps had (a robust
z-score; OLMo-core's SkipStepOptimizer uses 6 standard deviations over 128 steps), or no token that has a loss at all,
means that the update is left out: weights, moments and the optimizer's own step count stay.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.settings import Numerics
from recipe.engine.deepspeed_private import gradient_norm, torch_optimizer

MAD_TO_SIGMA = 1.4826  # of a normal distribution
SMALLEST_SIGMA = 0.002  # of the median: a flat history makes no spike of noise


class Rewind(Exception):
    """A spike that skipping does not end: go back to the last checkpoint before it, past its data."""

    def __init__(self, before_step: int, message: str):
        self.before_step = before_step
        super().__init__(message)


class Unsound(UserError):
    """Too many steps in a row were skipped: the last update before them (`StepGuard.last_update`) is suspect too."""


@dataclass(frozen=True)
class Verdict:
    """What became of a step."""

    kind: Literal["applied", "nonfinite", "spike", "empty"]
    message: str
    loss: float  # nats per token, mean of the global batch
    grad_norm: float
    totals: dict[str, float]  # sums over ranks of what the others asked

    @property
    def applied(self) -> bool:
        return self.kind == "applied"

    @property
    def proof(self) -> bool | None:
        """Whether the step shows that the weights it began with are sound; None if it shows nothing."""
        return None if self.kind == "empty" else self.applied


class StepGuard:
    """See the module's text.

    Args:
        settings: the run config's numerics section.
        state: of an earlier attempt, as `state` gave it.
        votes: this rank's numbers to be summed over ranks in the step's exchange, whatever they mean.
        before_update: called when the weights are about to change.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        settings: Numerics,
        state: dict[str, Any],
        *,
        votes: Callable[[], dict[str, float]],
        before_update: Callable[[], None],
    ):
        self._engine, self._settings, self._votes, self._before_update = engine, settings, votes, before_update
        self._losses: list[float] = list(state.get("losses", []))
        self._norms: list[float] = list(state.get("norms", []))
        self._skipped_in_a_row: dict[str, int] = {"nonfinite": 0, "spike": 0, **state.get("skipped_in_a_row", {})}
        self._spike_since: int | None = state.get("spike_since")
        self.skipped = int(state.get("skipped", 0))  # steps of the run so far
        self.last_update: int | None = state.get("last_update")  # the last step that was applied; None: not known
        self.trial = False  # a step changes nothing, whatever its verdict
        self._loss: torch.Tensor | None = None
        self._targets = 0
        self._verdict: Verdict | None = None
        optimizer: Any = torch_optimizer(engine)
        update = optimizer.step

        def guarded(*args: Any, **kwargs: Any) -> Any:
            """In place of the torch optimizer's step, which ZeRO calls once for each of its groups."""
            if not self.verdict().applied or self.trial:
                return None
            self._before_update()
            return update(*args, **kwargs)

        optimizer.step = guarded

    @property
    def in_doubt(self) -> bool:
        """Whether the last step was skipped for its loss or gradient, which the weights themselves may be to blame for."""
        return any(self._skipped_in_a_row.values())

    @property
    def state(self) -> dict[str, Any]:
        return {
            "losses": self._losses,
            "norms": self._norms,
            "skipped_in_a_row": self._skipped_in_a_row,
            "spike_since": self._spike_since,
            "skipped": self.skipped,
            "last_update": self.last_update,
        }

    def offer(self, loss: torch.Tensor, targets: int) -> None:
        """This rank's part of a step, before the engine's step.

        Args:
            loss: its mean over ranks is the global batch's.
            targets: tokens of this rank that have a loss.
        """
        self._loss, self._targets, self._verdict = loss, targets, None

    def verdict(self) -> Verdict:
        """The step's verdict; the first call after `offer` exchanges, on all ranks."""
        if self._verdict is None:
            self._verdict = self._exchange()
        return self._verdict

    def _exchange(self) -> Verdict:
        assert self._loss is not None
        norm = gradient_norm(self._engine)
        bad = float(not math.isfinite(self._loss.item()))
        mine = {**self._votes(), "bad": bad, "bad_rank": bad * dist.get_rank(), "targets": float(self._targets)}
        names = list(mine)
        summed = torch.tensor(
            [float(self._loss), math.nan if norm is None else float(norm), *mine.values()],
            dtype=torch.float64,
            device=self._engine.device,
        )
        dist.all_reduce(summed)
        loss, grad_norm, *rest = summed.tolist()
        ranks, totals = dist.get_world_size(), dict(zip(names, rest, strict=True))
        loss, grad_norm = loss / ranks, grad_norm / ranks
        if bad_ranks := totals["bad"]:
            where = f"rank {totals['bad_rank']:.0f}" if bad_ranks == 1 else f"{bad_ranks:.0f} ranks"
            return Verdict("nonfinite", f"the loss of {where} is not finite", loss, grad_norm, totals)
        if norm is not None and not math.isfinite(grad_norm):
            return Verdict(
                "nonfinite", "the gradient is not finite on some rank, the losses are", loss, grad_norm, totals
            )
        if not totals["targets"]:
            return Verdict("empty", "no token of it has a loss", loss, grad_norm, totals)
        spike = self._spike("loss", loss, self._losses) or self._spike("gradient norm", grad_norm, self._norms)
        return Verdict("spike" if spike else "applied", spike or "", loss, grad_norm, totals)

    def _spike(self, name: str, value: float, history: list[float]) -> str | None:
        spikes = self._settings.spikes
        if spikes is None or len(history) < spikes.window // 2 or math.isnan(value):
            return None
        z = robust_z(value, history)
        if z <= spikes.sigmas:
            return None
        return f"{name} {value:.4g} is {z:.1f} sigma above the last {len(history)} steps' median {statistics.median(history):.4g}"

    def record(self, step: int, rewinds: int) -> list[dict[str, Any]]:
        """Take the verdict into the history.

        Returns:
            what happened, an event each.

        Raises:
            Rewind: the spike goes on, and the run has not gone back before.
            Unsound: too many steps in a row were not finite, or the run has gone back before a spike already.
        """
        verdict = self.verdict()
        if verdict.kind in self._skipped_in_a_row:
            self._skipped_in_a_row[verdict.kind] += 1
        if verdict.applied:
            self._spike_since, self.last_update = None, step
            self._skipped_in_a_row = dict.fromkeys(self._skipped_in_a_row, 0)
            if self._settings.spikes is not None:
                for history, value in ((self._losses, verdict.loss), (self._norms, verdict.grad_norm)):
                    if math.isfinite(value):  # without ZeRO there is no norm
                        history.append(value)
                    del history[: -self._settings.spikes.window]
            return []
        self.skipped += 1
        self._check_nonfinite(step, verdict)
        self._check_spike(step, verdict, rewinds)
        return [
            {"event": "step_skipped", "step": step, "kind": verdict.kind, "message": f"step skipped: {verdict.message}"}
        ]

    def _check_nonfinite(self, step: int, verdict: Verdict) -> None:
        limit = self._settings.max_nonfinite_in_a_row
        if self._skipped_in_a_row["nonfinite"] >= limit:
            raise Unsound(f"{limit} steps in a row up to {step:,} were not finite, the last since {verdict.message}")

    def _check_spike(self, step: int, verdict: Verdict, rewinds: int) -> None:
        spikes = self._settings.spikes
        if verdict.kind != "spike" or spikes is None:
            return
        if self._spike_since is None:
            self._spike_since = step
        if self._skipped_in_a_row["spike"] < spikes.sustained:
            return
        message = f"{spikes.sustained} steps in a row up to {step:,} were spikes: {verdict.message}"
        if rewinds:
            raise Unsound(f"{message}; the run has gone back before a spike once already and stops here")
        raise Rewind(self._spike_since, message)


def with_new_window(state: dict[str, Any]) -> dict[str, Any]:
    """A guard's state without the steps that others are compared with, for data or sequences of another level of loss."""
    return {**state, "losses": [], "norms": []} if state else {}


def robust_z(value: float, history: list[float]) -> float:
    """How many robust standard deviations (of the median absolute deviation) a value is above the history's median."""
    median = statistics.median(history)
    deviation = MAD_TO_SIGMA * statistics.median(abs(x - median) for x in history)
    return (value - median) / max(deviation, SMALLEST_SIGMA * abs(median), 1e-12)
