"""Learning rate as a function of tokens seen, so that it needs no state and survives a change of batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recipe.base.run_config.phase import PhaseLearningRate
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.run_config.schedule import Schedule

EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # of `schedule.batch_scaling`


def learning_rate(schedule: Schedule, tokens_seen: int) -> float:
    """The rate of a step, `tokens_seen` being the run's tokens up to and including that step's own.

    Linear warmup to `peak_lr`, then `cosine` down to `min_lr` at `total_tokens` (arXiv 1608.03983), or
    `wsd`: constant until the last `decay_tokens`, then linear to `min_lr` (MiniCPM, arXiv 2404.06395).
    The last step may go beyond `total_tokens`; it has the rate at them.
    """
    s, tokens_seen = schedule, min(tokens_seen, schedule.total_tokens)
    if tokens_seen < s.warmup_tokens:
        return s.peak_lr * tokens_seen / s.warmup_tokens
    decay_start = s.warmup_tokens if s.kind == "cosine" else s.total_tokens - s.decay_tokens
    if tokens_seen <= decay_start:
        return s.peak_lr
    progress = (tokens_seen - decay_start) / (s.total_tokens - decay_start)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if s.kind == "cosine" else 1 - progress
    return s.min_lr + (s.peak_lr - s.min_lr) * remaining


def rate_in_phase(phases: Sequence[ResolvedPhase], number: int, tokens_seen: int) -> float:
    """The rate of a step of a phase: the schedule's or the phase's own, scaled to the tokens of the phase's steps.

    A phase with a rate of its own goes on from where the one before it ends as planned, before both are scaled. Its last step
    may go beyond its end; it has the rate there.
    """
    schedule = phases[number].run.schedule
    rate = _unscaled(phases, number, tokens_seen)
    if schedule.reference_batch_tokens is None:
        return rate
    ratio = phases[number].tokens_per_step / schedule.reference_batch_tokens
    return rate * ratio ** EXPONENTS[schedule.batch_scaling]


def _unscaled(phases: Sequence[ResolvedPhase], number: int, tokens_seen: int) -> float:
    """The rate at the reference batch."""
    phase = phases[number]
    own = None if phase.settings is None else phase.settings.learning_rate
    if own is None:
        return learning_rate(phase.run.schedule, tokens_seen)
    begin = _unscaled(phases, number - 1, phase.first_tokens)
    if own.to is None:
        return begin
    done = (tokens_seen - phase.first_tokens) / (phase.end_tokens - phase.first_tokens)
    return begin + (own.to - begin) * _way(own, min(1.0, max(0.0, done)))


def _way(own: PhaseLearningRate, done: float) -> float:
    """The share of the way from one rate to the other, when a share of the phase is done."""
    if own.shape == "linear":
        return done
    return 0.5 * (1 - math.cos(math.pi * done)) if own.shape == "cosine" else math.sqrt(done)


def last_before_decay(phase: ResolvedPhase, tokens: int) -> bool:
    """Whether the next step of a phase, after so many tokens of the run, is the first one of WSD's decay.

    A decay that is a phase of its own begins with the phase, before which a checkpoint is kept anyway.
    """
    schedule = phase.run.schedule
    starts = schedule.total_tokens - schedule.decay_tokens
    follows = phase.settings is None or phase.settings.learning_rate is None
    return follows and schedule.kind == "wsd" and tokens <= starts < tokens + phase.tokens_per_step
