"""The file of a quality model is checked when it is read; its scores are those of the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.quality.model import Classifier, Ngrams, QualityModel, sigmoid
from recipe.base.errors import UserError
from tests.conftest import needs_shared
from tests.data_prep.curation.test_native import TEXTS, random_texts, real_texts
from tests.data_prep.quality import reference

NGRAMS = Ngrams(characters=(2, 4), words=(1, 2), bits=10)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=1 << NGRAMS.bits).astype(np.float32)


def new_model() -> QualityModel:
    return QualityModel(NGRAMS, {"zh": Classifier(weights(1), -0.5, 0.25), "en": Classifier(weights(2), 1.5, 0.75)})


def check(text: str) -> None:
    for ngrams in (NGRAMS, Ngrams(characters=(1, 7), words=(2, 3), bits=16)):
        counter = ngrams.counter()
        for _ in range(2):  # nothing of a text stays for the next one
            buckets, values = counter.values(text)
            expected = reference.values(text, ngrams.characters, ngrams.words, ngrams.bits)
            assert dict(zip(buckets.tolist(), values.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)
            assert len(buckets) == len(expected)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_scan_counts_what_the_reference_counts(text):
    check(text)


def test_the_scan_counts_what_the_reference_counts_on_random_texts():
    for text in random_texts(150):
        check(text)


@needs_shared
def test_the_scan_counts_what_the_reference_counts_on_real_texts():
    for text in real_texts():
        check(text[:1000])


@pytest.mark.parametrize("orders", [(0, 2), (3, 2), (1, 8)], ids=str)
def test_impossible_ngrams_are_refused(orders):
    with pytest.raises(ValueError, match="1 to 7 symbols"):
        Ngrams(characters=orders, words=(1, 1), bits=10).counter()
    assert "ngrams.characters is" in Ngrams(characters=orders, words=(1, 1), bits=10).problems()[0]


def test_a_score_is_the_weighted_sum_of_the_values():
    model = new_model()
    for language, bias in (("en", 1.5), ("zh", -0.5)):
        for text in TEXTS:
            expected = reference.values(text, (2, 4), (1, 2), 10)
            total = sum(float(model.classifiers[language].weights[bucket]) * x for bucket, x in expected.items())
            assert model.score(text, language) == pytest.approx(1 / (1 + np.exp(-(bias + total))), rel=1e-5)


def test_a_sigmoid_has_no_overflow():
    assert (sigmoid(-1e9), sigmoid(0), sigmoid(1e9)) == (pytest.approx(0), 0.5, 1)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    new_model().write(tmp_path / "quality.model")
    return tmp_path


def test_what_is_written_is_read(folder):
    model = QualityModel.read(folder)
    assert model.ngrams == NGRAMS
    assert list(model.classifiers) == ["en", "zh"]
    assert (model.classifiers["zh"].bias, model.classifiers["zh"].threshold) == (-0.5, 0.25)
    np.testing.assert_array_equal(model.classifiers["zh"].weights, weights(1))
    assert model.score("The old ship", "en") == new_model().score("The old ship", "en")


def flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"PK\3\4" + content, "is no quality model"),
        (lambda content: content[:5], "is no quality model"),
        (lambda content: content[:8] + b"\2" + content[9:], "has version 2 of the format, not 1"),
        (flipped, "is damaged"),
        (lambda content: content[:-1000], "is damaged"),
    ],
    ids=["other", "empty", "version", "bit", "cut"],
)
def test_another_file_is_refused(folder, damage, message):
    path = folder / "quality.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        QualityModel.read(folder)


def test_a_folder_without_a_finished_model_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds no quality model"):
        QualityModel.read(folder)
