"""Training learns what tells the classes apart, weighs both alike, and gives the same weights again."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_prep.quality.model import Ngrams, sigmoid
from data_prep.quality.training import Linear, features_of, train

COUNTER = Ngrams(characters=(2, 3), words=(1, 1), bits=12).counter()
BUCKETS = 1 << 12


def texts(word: str, number: int, seed: int) -> list[str]:
    """Random words, of which every fourth is `word`."""
    rng = random.Random(seed)
    words = ["river", "boats", "market", "bread", "square", "children"]
    return [" ".join(word if rng.random() < 0.25 else rng.choice(words) for _ in range(40)) for _ in range(number)]


def learn(good: int, bad: int) -> Linear:
    documents = [features_of(COUNTER, text) for text in texts("harbour", good, 1) + texts("casino", bad, 2)]
    labels = [True] * good + [False] * bad
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    return train([documents[i] for i in order], [labels[i] for i in order], BUCKETS, 10, 0.3)


def score(linear: Linear, text: str) -> float:
    return sigmoid(linear.logit(features_of(COUNTER, text)))


@pytest.mark.parametrize(("good", "bad"), [(30, 30), (60, 6), (6, 60)], ids=["equal", "few-bad", "few-good"])
def test_unseen_documents_are_told_apart_whatever_the_share_of_the_classes(good, bad):
    linear = learn(good, bad)
    assert all(score(linear, text) > 0.5 for text in texts("harbour", 20, 3))
    assert all(score(linear, text) < 0.5 for text in texts("casino", 20, 4))


def test_the_same_documents_give_the_same_weights():
    first, second = learn(20, 20), learn(20, 20)
    assert first.bias == second.bias
    np.testing.assert_array_equal(first.weights, second.weights)


def plain_adagrad(dense: np.ndarray, good: list[bool], epochs: int, rate: float) -> np.ndarray:
    """The weights with the bias behind them, of dense float64 rows to which a column of ones was added."""
    weights, squares = np.zeros(dense.shape[1]), np.full(dense.shape[1], 1e-8)
    share = np.mean(good)
    for _ in range(epochs):
        for row, label in zip(dense, good, strict=True):
            error = 1 / (1 + np.exp(-weights @ row)) - label
            gradient = row * error * (1 / (2 * share) if label else 1 / (2 * (1 - share)))
            squares += gradient**2
            weights -= rate * gradient / np.sqrt(squares)
    return weights


def test_the_weights_are_those_of_plain_adagrad():
    documents = [features_of(COUNTER, text) for text in texts("harbour", 4, 1) + texts("casino", 3, 2)]
    good = [True, True, False, True, False, True, False]
    dense = np.zeros((7, BUCKETS + 1))
    dense[:, -1] = 1
    for row, features in zip(dense, documents, strict=True):
        row[features["bucket"]] = features["value"]
    linear = train(documents, good, BUCKETS, 3, 0.5)
    expected = plain_adagrad(dense, good, 3, 0.5)
    np.testing.assert_allclose(linear.weights, expected[:-1], rtol=1e-3, atol=1e-4)
    assert linear.bias == pytest.approx(expected[-1], rel=1e-3)
