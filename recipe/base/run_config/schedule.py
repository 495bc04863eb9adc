"""The run config's `schedule:` section: how long a run is, and its learning rate by tokens seen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recipe.base.strict import Section


class Schedule(Section):
    """Learning rate by tokens seen: linear warmup, then cosine, or WSD (stable, then linear decay)."""

    total_tokens: int = Field(gt=0)
    """Length of the run, in tokens. The last step may go beyond it by less than a batch."""
    kind: Literal["cosine", "wsd"] = "cosine"
    """Shape after the warmup: `cosine` falls to `min_lr` over all that remains; `wsd` stays at `peak_lr` until the
    final decay, so that a run can be prolonged or branched."""
    peak_lr: float = Field(gt=0)
    """Learning rate at the end of the warmup."""
    min_lr: float = Field(ge=0)
    """Learning rate at `total_tokens`; at most `peak_lr`. A tenth of it is common, 0 for wsd."""
    warmup_tokens: int = Field(ge=0)
    """Tokens over which the learning rate rises from 0 to `peak_lr` in a line."""
    decay_tokens: int = Field(0, ge=0)
    """WSD only: length of the final decay in tokens; a tenth of `total_tokens` in MiniCPM (arXiv 2404.06395)."""
    batch_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How learning rates follow the tokens of a step where phases change them: not at all, with the square root of their ratio to
    `reference_batch_tokens` (arXiv 2205.10287 for Adam), or with the ratio (for SGD)."""
    reference_batch_tokens: int | None = Field(None, gt=0)
    """Tokens of a step that the learning rates are written for; with each `batch_scaling` but `none`."""

    def problems(self) -> list[str]:
        problems = []
        if self.min_lr > self.peak_lr:
            problems.append(f"schedule.min_lr {self.min_lr} exceeds schedule.peak_lr {self.peak_lr}")
        if self.kind == "wsd" and self.decay_tokens == 0:
            problems.append("schedule.kind wsd needs schedule.decay_tokens")
        if self.kind == "cosine" and self.decay_tokens:
            problems.append("schedule.decay_tokens is for kind wsd; the cosine decays over all that follows the warmup")
        if self.warmup_tokens + self.decay_tokens > self.total_tokens:
            problems.append("schedule.warmup_tokens + decay_tokens exceed schedule.total_tokens")
        if (self.batch_scaling == "none") != (self.reference_batch_tokens is None):
            problems.append(
                "schedule.batch_scaling and schedule.reference_batch_tokens go together: give both, or set none and null"
            )
        return problems
