"""Learning rate as a function of tokens seen, so that it needs no state and survives a change of batch size."""

from __future__ import annotations

import math

from recipe.base.run_config.schedule import Schedule


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
