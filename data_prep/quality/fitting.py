"""One language's classifier: learnt, its threshold chosen and its agreement measured, each on documents of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.core.partial_files import partial_path
from data_prep.quality.agreement import agreement, threshold_of_precision, threshold_of_share
from data_prep.quality.examples import Examples
from data_prep.quality.model import sigmoid
from data_prep.quality.settings import Threshold, TrainQualityConfig
from data_prep.quality.training import Linear, train
from recipe.base.errors import UserError
from recipe.base.files import replacing


def fit_language(
    language: str, number: int, *, config: TrainQualityConfig, candidates: str, examples: Path, output: Path
) -> dict[str, Any]:
    """Learn the classifier of one language, choose its threshold and measure it, each on documents of its own."""
    documents = Examples.read(examples / language)
    half = config.held_out_share / 2
    to_choose, to_measure, to_learn = (
        documents.between(start, stop) for start, stop in ((0, half), (half, 2 * half), (2 * half, 1))
    )
    if not (to_choose.has_both_classes() and to_measure.has_both_classes() and to_learn.has_both_classes()):
        raise UserError(
            f"of the documents in '{language}' those learnt from, or those held out, are all good or all bad; "
            "give more documents, or change held_out_share"
        )
    linear = train(
        to_learn.features, to_learn.good.tolist(), 1 << config.ngrams.bits, config.epochs, config.learning_rate
    )
    threshold = choose_threshold(scores_of(linear, to_choose), to_choose.good, config.threshold, candidates, language)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{language}.npy"
    with replacing(path, partial_path(path)) as temporary, open(temporary, "wb") as file:
        np.save(file, linear.weights)
    return {
        "bias": linear.bias,
        "threshold": threshold,
        "learnt_from": {"good": int(to_learn.good.sum()), "bad": int((~to_learn.good).sum())},
        "agreement": agreement(scores_of(linear, to_measure), to_measure.good, threshold),
    }


def scores_of(linear: Linear, examples: Examples) -> np.ndarray:
    return np.array([sigmoid(linear.logit(features)) for features in examples.features])


def choose_threshold(scores: np.ndarray, good: np.ndarray, goal: Threshold, candidates: str, language: str) -> float:
    """The threshold of a language that reaches the goal on these documents.

    Args:
        candidates: of which documents `keep_share` is a share, `bad` ones or `all`.

    Raises:
        UserError: no threshold reaches it.
    """
    if goal.score is not None:
        return goal.score
    if goal.keep_share is not None:
        return threshold_of_share(scores if candidates == "all" else scores[~good], goal.keep_share)
    assert goal.precision is not None
    threshold = threshold_of_precision(scores, good, goal.precision)
    if threshold is None:
        raise UserError(
            f"no threshold keeps documents in '{language}' of which {goal.precision:.0%} are good; set threshold lower, or "
            "give more documents"
        )
    return threshold
