"""Logistic regression by AdaGrad (Duchi, Hazan, Singer, JMLR 12, 2011) over the n-grams of labelled documents.

Both classes weigh the same, however many documents they have. Plain numpy, one document after the other in a fixed
order, without threads of a linear algebra library: the same documents give the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_prep.curation.characters import native
from data_prep.quality.model import sigmoid

FEATURE = np.dtype([("bucket", "<u4"), ("value", "<f4")])
_TINY = 1e-8  # of a sum of squares before the first gradient


class Linear(NamedTuple):
    weights: np.ndarray  # float32 [buckets]
    bias: float

    def logit(self, features: np.ndarray) -> float:
        """Of a document's features, each bucket once."""
        products = self.weights[features["bucket"]] * features["value"]
        return self.bias + float(products.sum(dtype=np.float64))


def features_of(counter: native.NgramCounter, text: str) -> np.ndarray:
    """FEATURE [different buckets]: the value by which the weight of each bucket counts in the score of the text."""
    buckets, values = counter.values(text)
    features = np.empty(buckets.size, FEATURE)
    features["bucket"], features["value"] = buckets, values
    return features


def train(
    documents: Sequence[np.ndarray], good: Sequence[bool], buckets: int, epochs: int, learning_rate: float
) -> Linear:
    """Learn from documents in their order, so many times.

    Args:
        documents: features of each.
        good: the class of each; both must occur.
    """
    weights, squares = np.zeros(buckets, np.float32), np.full(buckets, _TINY, np.float32)
    bias, bias_squares = 0.0, _TINY
    balance = _balance(good)
    for _ in range(epochs):
        for features, label in zip(documents, good, strict=True):
            at = features["bucket"]
            error = balance[label] * (sigmoid(Linear(weights, bias).logit(features)) - label)
            gradient = np.float32(error) * features["value"]
            squares[at] += gradient * gradient
            weights[at] -= np.float32(learning_rate) * gradient / np.sqrt(squares[at])
            bias_squares += error * error
            bias -= learning_rate * error / bias_squares**0.5
    return Linear(weights, bias)


def _balance(good: Iterable[bool]) -> tuple[float, float]:
    """Weight of a bad and of a good document; of all documents it is 1 on average."""
    labels = np.fromiter(good, bool)
    return labels.size / (2 * np.count_nonzero(~labels)), labels.size / (2 * np.count_nonzero(labels))
