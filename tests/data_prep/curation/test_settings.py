"""Which file of rules a config of curation takes for each language."""

from __future__ import annotations

import pytest
import yaml

from data_prep.curation.language import LANGUAGES
from data_prep.curation.rules import LanguageRules
from data_prep.curation.settings import RULES, load_curate_config, load_rules
from recipe.base.errors import ConfigError, UserError

SHIPPED = sorted(path.stem for path in RULES.glob("*.yaml") if path.stem != "template")


def config(tmp_path, languages: object):
    path = tmp_path / "curate.yaml"
    path.write_text(yaml.safe_dump({"languages": languages}, allow_unicode=True), encoding="utf-8")
    return load_curate_config(path)


def test_names_alone_take_the_rules_that_ship(tmp_path):
    assert {"de", "en", "ja", "zh"} <= set(SHIPPED) <= LANGUAGES
    for name in SHIPPED:
        rules = load_rules(RULES / f"{name}.yaml")
        assert config(tmp_path, [name]).languages == {name: rules}
        assert config(tmp_path, {name: None}).languages == {name: rules}
        assert config(tmp_path, {name: str(RULES / f"{name}.yaml")}).languages == {name: rules}


@pytest.mark.parametrize(
    ("languages", "sentence"),
    [
        (["en", "fr"], "no rules ship for 'languages.fr'; copy .*template.yaml, fill it in, and name your file"),
        ({"en": None, "xx": None}, "'languages.xx' is none that documents are identified as; name some of am, ar"),
        (["template"], "'languages.template' is none that"),
        ({"en": 3}, "'languages.en' is 3: give the file of its rules, or null for the one that ships"),
        ({"fr": "fr.yaml"}, "fr.yaml"),
        ([], "languages is empty"),
        (["en", "en"], "languages names one twice; name each once"),
        ([False], "languages names False, which is no text; write a code of two letters, in quotes"),
        ({1: None}, "languages names 1, which is no text"),
        ("en", "'languages' is 'en': give names"),
        (None, "'languages' is None: give names"),
    ],
    ids=[
        "no rules",
        "no language",
        "template",
        "number",
        "no file",
        "empty",
        "twice",
        "a Boolean",
        "a number",
        "text",
        "null",
    ],
)
def test_a_language_without_rules_is_told(languages, sentence, tmp_path):
    with pytest.raises(Exception, match=sentence):
        config(tmp_path, languages)


def test_the_template_is_refused_until_it_is_filled_in(tmp_path):
    template = (RULES / "template.yaml").read_text(encoding="utf-8")
    (tmp_path / "fr.yaml").write_text(template, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rules\.stop_words asks for 2 of 0 stop words, which no document has"):
        config(tmp_path, {"fr": "fr.yaml"})
    filled = template.replace("stop_words: []", "stop_words: [de, la, le, et, les]")
    (tmp_path / "fr.yaml").write_text(filled, encoding="utf-8")
    assert config(tmp_path, {"fr": "fr.yaml"}).languages["fr"].stop_words == ["de", "la", "le", "et", "les"]


@pytest.mark.parametrize("word", ["から", "我们"])
def test_a_stop_word_of_several_characters_that_are_words_each_is_refused(word):
    rules = LanguageRules(stop_words=[word, "の"], rules={})
    assert rules.problems() == [
        f"stop_words: '{word}' has several Han characters or kana, which are words each; give one"
    ]


def test_phrases_come_from_files_beside_the_rules_and_are_recorded(tmp_path):
    (tmp_path / "fr.yaml").write_text("{rules: {}, dense_phrases: fr.txt, strong_phrases: [offre]}", encoding="utf-8")
    with pytest.raises(UserError, match=r"fr\.txt cannot be read"):
        config(tmp_path, {"fr": "fr.yaml"})
    (tmp_path / "fr.txt").write_text("# of shops\nsoldes\n\nacheter\n", encoding="utf-8")
    read = config(tmp_path, {"fr": "fr.yaml"})
    assert read.parameters()["languages"]["fr"]["dense_phrases"] == ["acheter", "soldes"]
    assert read.languages["fr"].strong_phrases == ["offre"]


def test_a_pattern_that_is_none_is_told(tmp_path):
    (tmp_path / "fr.yaml").write_text("{rules: {}, dense_patterns: ['[a']}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dense_patterns: '\[a' is no regular expression"):
        config(tmp_path, {"fr": "fr.yaml"})
