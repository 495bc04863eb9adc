"""The tokens to a loss are those of the law, with an interval that is the law's own, read the other way round."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from recipe.scaling.cost import tokens as tokens_module
from recipe.scaling.cost.tokens import expected_tokens, lowest_loss, tokens_to_loss
from recipe.scaling.fit import fit
from recipe.scaling.interval import predict
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law, Size

LAW = Law(0.9, 30.0, PUBLISHED_ALPHA, 60.0, PUBLISHED_BETA)
SIZES = [Size(n, 0.25, n * ratio) for n in (1e6, 2e6, 4e6) for ratio in (10, 40)]
MODEL = Size(2e7, 0.25, 1)
DRAWS = 40


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(tokens_module, "predict", partial(predict, draws=DRAWS))


@pytest.fixture(scope="module")
def fitted():
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(SIZES)))
    return fit(SIZES, (LAW.losses(SIZES) * noise).tolist(), "published")


def test_the_law_has_the_loss_after_its_tokens_and_never_one_below_its_end():
    tokens = expected_tokens(LAW, MODEL, 1.05)
    assert LAW.loss(replace(MODEL, tokens=tokens)) == pytest.approx(1.05)
    assert expected_tokens(LAW, MODEL, lowest_loss(LAW, MODEL)) == math.inf
    assert lowest_loss(LAW, MODEL) == pytest.approx(0.9 + 30 * 2e7**-PUBLISHED_ALPHA)


def test_between_the_ends_the_interval_of_the_loss_holds_the_target(fitted):
    target = 1.05
    (span,) = tokens_to_loss({"en": fitted}, {"en": target}, [MODEL])
    assert span.low < span.value < span.high
    assert span.value == pytest.approx(expected_tokens(LAW, MODEL, target), rel=0.5)
    tokens = (0.6 * span.low, span.value, 1.7 * span.high)
    early, inside, late = predict(fitted, [replace(MODEL, tokens=t) for t in tokens], draws=DRAWS)
    assert early.low > target > late.high
    assert inside.holds(target)


def test_a_loss_near_the_end_of_the_law_has_no_most_tokens(fitted):
    (span,) = tokens_to_loss({"en": fitted}, {"en": lowest_loss(fitted.law, MODEL) * 1.0005}, [MODEL])
    assert span.low < span.value < math.inf
    assert span.high == math.inf
    assert span.as_dict()["high"] is None
    assert "to no end)" in span.written("{:.2g}".format)


def test_of_several_sources_the_slowest_counts_and_each_model_has_its_tokens(fitted):
    fits = {"en": fitted, "zh": fitted}
    larger = Size(1e8, 0.25, 1)
    easy, hard = ({"en": target} for target in (1.10, 1.05))
    both = tokens_to_loss(fits, {"en": 1.10, "zh": 1.05}, [MODEL, larger])
    assert both == tokens_to_loss(fits, hard, [MODEL, larger])
    assert both[1].value < both[0].value
    assert tokens_to_loss(fits, easy, [MODEL])[0].value < both[0].value
