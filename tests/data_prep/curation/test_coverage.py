"""A configured language of which nothing, or next to nothing, is kept is told in a sentence."""

from __future__ import annotations

import random

import pytest

from data_prep.core.tally import Tally
from data_prep.curate import main
from data_prep.curation.coverage import language_warnings
from data_prep.curation.settings import RULES
from data_prep.documents.reading import write_documents
from data_prep.grammars.grammar import GRAMMARS
from recipe.base.strict import load_json
from tests.conftest import Called

PARAMETERS = {"languages": {"de": {"rules": {"stop_words": {"min": 2}}}}}


def warnings(kept: int, dropped: int) -> list[str]:
    tally = Tally()
    if kept:
        tally.add("de", "web", 10, None, 10, documents=kept)
    if dropped:
        tally.add("de", "web", 10, "stop_words_low", 0, documents=dropped)
    return language_warnings(["de"], tally.groups(), PARAMETERS)


@pytest.mark.parametrize(("kept", "dropped"), [(1, 0), (5, 95), (1, 1)])
def test_a_language_that_is_kept_is_not_mentioned(kept, dropped):
    assert warnings(kept, dropped) == []


@pytest.mark.parametrize(("kept", "dropped"), [(0, 1), (4, 96)])
def test_a_language_that_its_rules_drop_is_told_with_the_rule(kept, dropped):
    (warning,) = warnings(kept, dropped)
    assert warning.startswith(
        f"{kept} of {kept + dropped} documents in 'de' were kept; {dropped} were dropped as stop_words_low: fewer than 2"
    )


def test_a_language_that_did_not_come_in_is_told():
    assert warnings(0, 0)[0].startswith("no document was identified as 'de'")


def test_the_job_prints_the_warnings_each_time_and_keeps_them(tmp_path, capsys):
    """The rules of Chinese are written for Japanese, and no German is there."""
    rng = random.Random(0)
    documents = [{"id": f"{lang}/{n}", "text": GRAMMARS[lang].document(rng)} for lang in ("en", "ja") for n in range(8)]
    write_documents(tmp_path / "raw" / "a.jsonl", documents)
    (tmp_path / "curate.yaml").write_text(f"languages: {{en: null, de: null, ja: {RULES / 'zh.yaml'}}}\n")
    words = ("--input", tmp_path / "raw", "--output", tmp_path / "out", "--config", tmp_path / "curate.yaml", "--workers", 1)  # fmt: skip
    for _ in range(2):  # the second time it is finished already
        done = Called(main, capsys, *words)
        assert done.returncode == 0
        told = [line.removeprefix("warning: ") for line in done.stdout.splitlines() if line.startswith("warning: ")]
        assert [warning.split(" in `")[0].split(" were")[0].split(", which")[0] for warning in told] == [
            "no document was identified as 'de'",
            "0 of 8 documents in 'ja'",
        ]
        assert load_json(tmp_path / "out/manifest.json")["results"]["warnings"] == told
