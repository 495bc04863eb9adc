"""Cues of a language: a sentence with a phrase of notices goes where it speaks to the reader or of its site."""

from __future__ import annotations

import pytest

from data_prep.curation.cleaning import Phrases
from data_prep.curation.notices import remove_notices
from data_prep.curation.rules import LanguageRules
from data_prep.curation.settings import RULES
from recipe.base.strict import load_yaml, strict_model


@pytest.mark.parametrize(
    ("language", "notice", "mention"),
    [
        (
            "de",
            "Wir verwenden Cookies, um Ihnen auf unserer Website passende Anzeigen zu zeigen. ",
            "Wir verwenden Cookies und Plätzchen, die meine Großmutter zu Weihnachten buk, als Schmuck.",
        ),
        (
            "ja",
            "当サイトではサービス向上のためクッキーを使用しています。",
            "この論文の著者はクッキーを使用していますが、その仕組みは三章で述べられる。",
        ),
    ],
    ids=["de", "ja"],
)
def test_a_short_sentence_with_a_cue_goes_and_a_mention_stays(language, notice, mention):
    path = RULES / f"{language}.yaml"
    lines = strict_model(LanguageRules, load_yaml(path), path).lines
    phrases, cues = Phrases(lines.phrases), Phrases(lines.cues, whole_words=True)
    assert remove_notices(notice + mention, phrases, cues) == (mention, 0, 1)
    assert remove_notices(notice + mention, phrases) == (notice + mention, 0, 0)
    long = notice.rstrip(" .。") + ", " + "und so weiter " * 30 + "."
    assert remove_notices(long, phrases, cues) == (long, 0, 0)
