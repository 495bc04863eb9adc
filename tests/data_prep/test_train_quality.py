"""The job that trains a quality model: labels and seeds, what is held out, refusals; and curation by its model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.core.command import CONFIGS
from data_prep.curation.curator import Curator
from data_prep.curation.settings import load_curate_config
from data_prep.documents.reading import write_documents
from data_prep.quality.model import QualityModel
from data_prep.reporting.details import facts_of
from data_prep.reporting.stages import read_stage
from data_prep.train_quality import notes
from recipe.base.errors import UserError
from recipe.base.strict import load_json
from tests.data_prep.job_server import run_job
from tests.data_prep.test_jobs import contents, run_until_not_killed

WORDS = {
    "en": (
        [
            "river",
            "boats",
            "market",
            "bread",
            "square",
            "children",
            "hills",
            "light",
            "morning",
            "harbour",
            "people",
            "baskets",
            "the",
            "of",
            "and",
        ],
        " ",
    ),
    "zh": (list("河边的人大多见过这些船他们知道集市会在天亮时候开始有提着篮子走到广场"), ""),
}
SPAM = {"en": ["casino", "bonus", "click", "here", "cheap", "pills", "now"], "zh": list("赌博彩票优惠点击下载")}
SETTINGS = {"min_documents": 20, "ngrams": {"characters": [2, 3], "words": [1, 2], "bits": 12}, "held_out_share": 0.4}


def text(language: str, good: bool, rng: random.Random) -> str:
    words, blank = WORDS[language]
    return blank.join(rng.choice(words if good or rng.random() < 0.6 else SPAM[language]) for _ in range(60))


def corpus(number: int = 60, seed: int = 5) -> list[dict[str, Any]]:
    """So many documents of each language and class."""
    rng = random.Random(seed)
    return [
        {"id": f"{language}-{good}-{i}", "lang": language, "keep": good, "text": text(language, good, rng)}
        for i in range(number)
        for language in WORDS
        for good in (True, False)
    ]


@pytest.fixture
def config(tmp_path):
    def write(**changes: Any) -> Path:
        values = {**yaml.safe_load((CONFIGS / "train_quality.yaml").read_text(encoding="utf-8")), **SETTINGS, **changes}
        path = tmp_path / "train_quality.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def train(config: Path, output: Path, *source: object):
    return run_job("data_prep/train_quality.py", *source, "--config", config, "--output", output, "--workers", 1)


@pytest.fixture
def labelled(tmp_path):
    write_documents(tmp_path / "labelled.jsonl", corpus())
    return tmp_path / "labelled.jsonl"


def test_a_model_agrees_with_held_out_labels_and_scores_unseen_text(config, labelled, tmp_path):
    done = train(config(), tmp_path / "out", "--input", labelled)
    assert done.returncode == 0, done.stderr
    manifest = load_json(tmp_path / "out" / "manifest.json")
    assert manifest["counts"]["in"] == manifest["counts"]["out"] == 240
    model, unseen = QualityModel.read(tmp_path / "out"), corpus(20, seed=6)
    for language in WORDS:
        result = manifest["results"]["languages"][language]
        assert result["agreement"]["auc"] > 0.95
        assert 0 < result["agreement"]["documents"] < 0.4 * 120
        assert (
            sum(result["learnt_from"].values()) + result["agreement"]["documents"] < 120
        )  # others chose the threshold
        scores = {True: [], False: []}
        for document in unseen:
            if document["lang"] == language:
                scores[document["keep"]].append(model.score(document["text"], language))
        assert min(scores[True]) > max(scores[False])
    assert f"model: {tmp_path}/out" in done.stdout
    facts = facts_of(read_stage(tmp_path / "out"))
    assert [fact[:4] for fact in facts] == ["en: ", "zh: "]
    assert all("held-out documents are judged as labelled at the threshold" in fact for fact in facts)


def test_seeds_give_the_bytes_that_labels_give_but_for_what_is_named(config, labelled, tmp_path):
    settings = config(threshold={"score": 0.5})
    for name, good in (("good", True), ("crawl", False)):
        some = [document for document in corpus() if document["keep"] is good]
        write_documents(tmp_path / "seeds" / name / "0.jsonl.gz", some[::2])
        write_documents(tmp_path / "seeds" / name / "1.jsonl.gz", some[1::2])
    seeds = ("--positive", tmp_path / "seeds" / "good", "--negative", tmp_path / "seeds" / "crawl")
    assert train(settings, tmp_path / "seeded", *seeds).returncode == 0
    assert train(settings, tmp_path / "labels", "--input", labelled).returncode == 0
    models = [(tmp_path / name / "quality.model").read_bytes() for name in ("seeded", "labels")]
    assert models[0] == models[1]


def test_keep_share_is_of_the_negative_documents(config, tmp_path):
    for name, good in (("good", True), ("crawl", False)):
        write_documents(tmp_path / name / "0.jsonl", [document for document in corpus() if document["keep"] is good])
    seeds = ("--positive", tmp_path / "good", "--negative", tmp_path / "crawl")
    assert train(config(threshold={"keep_share": 1.0}), tmp_path / "all", *seeds).returncode == 0
    assert train(config(threshold={"keep_share": 0.1}), tmp_path / "few", *seeds).returncode == 0
    every, few = (QualityModel.read(tmp_path / name).classifiers["en"].threshold for name in ("all", "few"))
    assert every < few < 0.5


def test_no_more_documents_are_drawn_than_asked_for(config, labelled, tmp_path):
    assert train(config(max_documents=40), tmp_path / "out", "--input", labelled).returncode == 0
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["out"] + counts["dropped"]["not_drawn"] == 240
    assert all(25 < number < 55 for classes in counts["documents"].values() for number in classes.values())


def test_documents_that_cannot_be_used_are_counted(config, tmp_path):
    rng = random.Random(1)
    more = [
        {"id": "x", "lang": "en", "text": text("en", True, rng)},
        {"id": "y", "lang": "en", "keep": "yes", "text": text("en", True, rng)},
        {"id": "z", "lang": "de", "keep": True, "text": text("en", True, rng)},
        {"id": "1", "lang": "en", "keep": 1, "text": text("en", True, rng)},
    ]
    write_documents(tmp_path / "in.jsonl", corpus() + more)
    done = train(config(), tmp_path / "out", "--input", tmp_path / "in.jsonl")
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["dropped"] == {"no_label": 2, "other_language": 1}
    assert "its label is neither true nor false (no_label)" in done.stdout


@pytest.mark.parametrize("workers", [1, 2], ids=["one-worker", "two-workers"])
def test_killed_before_each_change_to_its_output_the_job_ends_in_the_same_bytes(workers, config, tmp_path):
    for part in range(workers):
        write_documents(tmp_path / "in" / f"{part}.jsonl.gz", corpus()[part::workers])
    words = [
        "data_prep/train_quality.py",
        "--input",
        tmp_path / "in",
        "--config",
        config(epochs=1),
        "--workers",
        workers,
    ]
    assert run_job(*words, "--output", tmp_path / "reference").returncode == 0
    output = tmp_path / "killed"
    kills = run_until_not_killed([*words, "--output", output], output, tmp_path / "come_to")
    assert contents(output) == contents(tmp_path / "reference")
    assert kills > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_documents": 61},
            "there are 60 good and 60 bad documents in 'en', and min_documents asks for 61 of each",
        ),
        ({"languages": ["en", "de"]}, "there are 0 good and 0 bad documents in 'de'"),
        ({"languages": ["en", "xx"]}, "languages: 'xx' is none that documents are identified as"),
        ({"languages": ["en", "en"]}, "languages names one twice"),
        ({"label": "good"}, "of each; 240 documents have neither true nor false in 'good'; give more"),
        ({"threshold": {"precision": 0.9, "score": 0.5}}, "threshold has one of precision, keep_share, score"),
        ({"threshold": {}}, "threshold has one of precision, keep_share, score"),
        ({"threshold": {"precision": None}}, "threshold has one of precision, keep_share, score"),
        ({"ngrams": {"characters": [4, 2], "words": [1, 2], "bits": 12}}, "ngrams.characters is [4, 2]"),
        ({"held_out_share": 0.001}, "are all good or all bad; give more documents, or change held_out_share"),
    ],
    ids=[
        "few",
        "no-language",
        "unknown-language",
        "twice",
        "no-label",
        "two-goals",
        "no-goal",
        "null-goal",
        "orders",
        "held-out",
    ],
)
def test_what_cannot_work_ends_in_one_sentence(changes, message, config, labelled, tmp_path):
    done = train(config(**changes), tmp_path / "out", "--input", labelled)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("options", [(), ("--input", "--positive"), ("--positive",)], ids=["none", "both", "half"])
def test_documents_come_with_labels_or_in_two_folders(options, config, labelled, tmp_path):
    done = train(config(), tmp_path / "out", *(word for option in options for word in (option, labelled)))
    assert done.returncode == 2
    assert "give --input with labelled documents, or both --positive and --negative" in done.stderr


def test_a_file_is_not_good_and_bad(config, labelled, tmp_path):
    done = train(config(), tmp_path / "out", "--positive", labelled, "--negative", tmp_path)
    assert done.returncode == 2
    assert "is in --positive and in --negative" in done.stderr


@pytest.fixture
def curate_config(tmp_path):
    def write(**quality: Any) -> Path:
        values = yaml.safe_load((CONFIGS / "curate.yaml").read_text(encoding="utf-8"))
        values["languages"] = {name: str(CONFIGS / file) for name, file in values["languages"].items()}
        path = tmp_path / "curate.yaml"
        path.write_text(yaml.safe_dump({**values, "quality": quality}), encoding="utf-8")
        return path

    return write


ENGLISH = (
    "Most of the people who lived near the river had seen the boats before, and they knew that the market would "
    "open with the first light. Some of them carried baskets to the square; others waited for their children to "
    "come back from the hills. Nobody wanted to be late, because bread was cheap in the early hours."
)


def test_curation_scores_by_the_model_and_drops_below_its_thresholds(config, curate_config, labelled, tmp_path):
    assert train(config(), tmp_path / "out", "--input", labelled).returncode == 0
    model = QualityModel.read(tmp_path / "out")
    settings = load_curate_config(curate_config(model="out"))  # relative to the configuration
    assert settings.quality.min == {name: model.classifiers[name].threshold for name in ("en", "zh")}
    score = model.score(ENGLISH, "en")
    for least, reason in ((score, None), (score + 1e-9, "quality_low")):
        verdict = Curator(load_curate_config(curate_config(model="out", min={"en": least}))).judge(
            {"id": "a", "text": ENGLISH}, "x"
        )
        assert (verdict.reason, verdict.document["quality"]) == (reason, score)
    unscored = Curator(load_curate_config(curate_config(model="out", min={"en": None})))
    assert "quality" not in unscored.judge({"id": "a", "text": ENGLISH}, "x").document


def test_a_stage_records_the_content_of_a_model_not_its_path(config, curate_config, labelled, tmp_path):
    assert train(config(), tmp_path / "out", "--input", labelled).returncode == 0
    before = load_curate_config(curate_config(model="out")).parameters()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert load_curate_config(curate_config(model="moved")).parameters() == before
    assert train(config(epochs=1), tmp_path / "other", "--input", labelled).returncode == 0
    assert load_curate_config(curate_config(model="other")).parameters() != before


def test_a_language_without_a_classifier_is_refused_or_named(config, curate_config, labelled, tmp_path):
    assert train(config(languages=["en"]), tmp_path / "out", "--input", labelled).returncode == 0
    with pytest.raises(UserError, match=r"has no classifier for 'zh', only for en; .* set quality\.min\.zh to null"):
        load_curate_config(curate_config(model="out"))
    assert load_curate_config(curate_config(model="out", min={"zh": None})).quality.min["zh"] is None


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ({"min": 0.5}, "quality has one of model and function"),
        ({"model": "m", "function": "a:b", "min": 0.5}, "quality has one of model and function"),
        ({"function": "a:b"}, "which quality.function needs"),
        ({"function": "a:b", "min": {"en": 0.5}}, "which quality.function needs"),
        ({"model": "m", "min": {"de": 0.5}}, "'quality.min.de' is none of languages"),
        ({"model": "m", "min": {"en": 7}}, "quality.min is not from 0 to 1"),
        ({"model": "nowhere"}, "holds no quality model"),
    ],
    ids=["neither", "both", "no-minimum", "minima", "language", "no-score", "missing"],
)
def test_mistakes_in_the_configuration_of_quality_are_named(quality, message, curate_config):
    with pytest.raises(UserError, match=message):
        load_curate_config(curate_config(**quality))


def test_a_threshold_that_keeps_everything_is_told():
    results = {"en": {"agreement": {"kept": 9, "documents": 9}}, "zh": {"agreement": {"kept": 8, "documents": 9}}}
    (note,) = notes(results)
    assert note.startswith("note: the threshold of 'en' keeps every held-out document")
