"""How far scores agree with labels, and the threshold that reaches a goal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def agreement(scores: np.ndarray, good: np.ndarray, threshold: float) -> dict[str, Any]:
    """Of documents with labels: how many, accuracy, and for the good ones precision, recall and F1 at the threshold.

    AUC is the share of pairs, a good and a bad document, in which the good one has the higher score.
    """
    kept = scores >= threshold
    right, n_kept, n_good = np.count_nonzero(kept & good), np.count_nonzero(kept), np.count_nonzero(good)
    return {
        "documents": int(good.size),
        "good": int(n_good),
        "kept": int(n_kept),
        "accuracy": float(np.mean(kept == good)),
        "precision": float(right / n_kept) if n_kept else None,
        "recall": float(right / n_good),
        "f1": float(2 * right / (n_kept + n_good)),
        "auc": auc(scores, good),
    }


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    bad = np.sort(scores[~good])
    below = np.searchsorted(bad, scores[good], "left"), np.searchsorted(bad, scores[good], "right")
    return float((below[0] + below[1]).sum() / (2 * bad.size * np.count_nonzero(good)))


def threshold_of_precision(scores: np.ndarray, good: np.ndarray, precision: float) -> float | None:
    """The lowest score from which so large a share is good; None where there is none."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    precisions = np.cumsum(good[order]) / np.arange(1, scores.size + 1)
    last_of_score = np.append(descending[1:] != descending[:-1], True)  # equal scores stay or go together
    reached = np.flatnonzero((precisions >= precision) & last_of_score)
    return float(descending[reached[-1]]) if reached.size else None


def threshold_of_share(scores: np.ndarray, share: float) -> float:
    """The score that this share of them has or exceeds, rounded up to a document."""
    return float(np.sort(scores)[::-1][max(1, math.ceil(share * scores.size)) - 1])
