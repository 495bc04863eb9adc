"""The check of a pair of languages: what it finds in documents, tokenizer and tasks, and its exit code."""

from __future__ import annotations

import random

import pytest

from data_prep.check_languages import main
from data_prep.curation.characters import native
from data_prep.curation.rules import STATISTICS
from data_prep.curation.settings import RULES
from data_prep.documents.reading import write_documents
from data_prep.grammars.grammar import GRAMMARS
from data_prep.tokenization.torn import Splitter
from data_prep.train_tokenizer import TokenizerConfig, train, write_folder
from tests.conftest import Called

THAI = "ภาษาไทยเป็นภาษาที่มีผู้พูดมากในประเทศไทยและมีตัวอักษรเป็นของตนเอง คนไทยใช้ภาษานี้ในการเขียนหนังสือและพูดคุยกันทุกวัน "


@pytest.fixture
def documents(tmp_path):
    """Folders of documents, by language."""
    rng = random.Random(0)

    def write(**texts: list[str]) -> object:
        rows = [{"id": f"{lang}/{n}", "text": text} for lang, of in texts.items() for n, text in enumerate(of)]
        write_documents(tmp_path / "documents" / "a.jsonl", rows)
        return tmp_path / "documents"

    def make(*languages: str, **more: list[str]) -> object:
        return write(**{lang: [GRAMMARS[lang].document(rng) for _ in range(12)] for lang in languages}, **more)

    return make


@pytest.fixture
def config(tmp_path):
    """A function that writes a curation config with these languages."""

    def write(languages: str) -> object:
        path = tmp_path / "curate.yaml"
        path.write_text(f"languages: {languages}\n", encoding="utf-8")
        return path

    return write


def tokenizer(folder, texts: list[str], **settings: str):
    made = TokenizerConfig(vocab_size=1500, **settings)
    write_folder(train(iter(texts), made), made, folder)
    return folder


def states(done: Called) -> dict[tuple[str, str], str]:
    """(language, part) -> its state."""
    lines = [line for line in done.stdout.splitlines() if line[:4].strip() and line[17:25].strip() in ("ok", "note", "MISSING")]  # fmt: skip
    return {(line[:4].strip(), line[5:16].strip()): line[17:25].strip() for line in lines}


@pytest.mark.parametrize("language", ["de", "ja"])
def test_a_pair_that_has_all_is_all_right(language, documents, config, tmp_path, capsys):
    folder = documents("en", language)
    texts = [GRAMMARS[lang].document(random.Random(n)) for lang in ("en", language) for n in range(12)]
    made = tokenizer(tmp_path / "tokenizer", texts)
    words = ("--config", config(f"[en, {language}]"), "--input", folder, "--tokenizer", made)
    done = Called(main, capsys, *words)
    assert (done.returncode, done.stderr) == (0, "")
    parts = ("rules", "notices", "documents", "stop words", "words", "sentences", "tokens", "split", "tasks")
    assert states(done) == {(lang, part): "ok" for lang in ("en", language) for part in parts}


@pytest.mark.parametrize(("language", "rules"), [("de", "en"), ("ja", "zh")])
def test_rules_of_another_language_are_found_out(language, rules, documents, config, capsys):
    languages = f"{{en: null, {language}: {RULES / f'{rules}.yaml'}}}"
    done = Called(main, capsys, "--config", config(languages), "--input", documents("en", language))
    assert done.returncode == 2
    assert f"missing: documents of {language}, stop words of {language}; docs/languages.md says" in done.stderr
    assert f"{language}   documents   MISSING  0 of 12 are kept; most drops" in done.stdout
    assert {state for (lang, _), state in states(done).items() if lang == "en"} == {"ok"}


def test_a_language_that_does_not_come_in_and_one_that_is_not_configured(documents, config, capsys):
    done = Called(main, capsys, "--config", config("[en, ja]"), "--input", documents("en", "de"))
    assert done.returncode == 2
    assert "none is identified as 'ja'; 12 as " in done.stdout
    found = states(done)
    assert (found["ja", "documents"], found["de", "documents"], found["en", "documents"]) == ("MISSING", "note", "ok")


def test_a_script_without_blanks_between_words(documents, config, tmp_path, capsys):
    filled = (RULES / "template.yaml").read_text(encoding="utf-8").replace("stop_words: []", "stop_words: [และ, ที่]")
    (tmp_path / "th.yaml").write_text(filled, encoding="utf-8")
    folder = documents("en", th=[THAI * 6] * 3)
    texts = [THAI, *(GRAMMARS["en"].document(random.Random(n)) for n in range(12))]
    plain = tokenizer(tmp_path / "plain", texts)
    words = ("--config", config("{en: null, th: th.yaml}"), "--input", folder)
    done = Called(main, capsys, *words, "--tokenizer", plain)
    assert done.returncode == 2
    found = {part: state for (lang, part), state in states(done).items() if lang == "th"}
    assert found == {
        "rules": "ok", "notices": "note", "documents": "MISSING", "stop words": "MISSING", "words": "MISSING",
        "sentences": "MISSING", "tokens": "ok", "split": "MISSING", "tasks": "note",
    }  # fmt: skip
    assert "remove the rules alphabetic_word_share, duplicate_10gram_share" in done.stdout
    assert "train with combining_marks: join" in done.stdout
    of_characters = "\n".join(
        ["rules:", "  characters: {min: 200, source: x}", "  letter_share: {min: 0.5, source: x}"]
    )
    (tmp_path / "th.yaml").write_text(of_characters, encoding="utf-8")
    joined = tokenizer(tmp_path / "joined", texts, combining_marks="join")
    done = Called(main, capsys, *words, "--tokenizer", joined)
    assert (done.returncode, done.stderr) == (0, "")
    found = {part: state for (lang, part), state in states(done).items() if lang == "th"}
    assert (found["documents"], found["words"], found["sentences"], found["split"]) == ("ok", "note", "note", "ok")


@pytest.mark.parametrize("mark", [*".!?。！？…．｡।॥؟۔։።"], ids=lambda mark: f"U+{ord(mark):04X}")
def test_sentences_end_in_the_marks_of_many_scripts(mark):
    """A long line without any mark counts as one."""
    texts = (f"word word{mark} word{mark} word{mark}", THAI * 6)
    sentences = [native.Meter(set(), set()).measure(text)[STATISTICS.index("sentences")] for text in texts]
    assert sentences == [3, 1]


def test_tasks_of_your_own_are_found(config, tmp_path, capsys):
    (tmp_path / "fr.yaml").write_text("rules: {}\n")
    (tmp_path / "downstream_fr.yaml").write_text("group: downstream_fr\ntask: [piqa]\n")
    words = ("--config", config("{fr: fr.yaml}"))
    assert states(Called(main, capsys, *words))["fr", "tasks"] == "note"
    done = Called(main, capsys, *words, "--tasks-path", tmp_path)
    assert "fr   tasks       ok       downstream_fr: piqa" in done.stdout
    (tmp_path / "downstream_fr.yaml").write_text("group: downstream_fr\n")
    done = Called(main, capsys, *words, "--tasks-path", tmp_path)
    assert done.returncode == 2
    assert "downstream_fr.yaml names no tasks; give them as task: [...]" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tokenizer", "somewhere"), "--tokenizer is tried on documents; give --input too"),
        (("--input", "nowhere"), "nowhere"),
        (("--tasks-path", "nowhere"), "--tasks-path nowhere is no folder"),
    ],
    ids=["tokenizer alone", "no input", "no tasks"],
)
def test_mistakes_end_in_one_sentence(words, sentence, capsys):
    done = Called(main, capsys, *words)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_words_are_torn_where_a_letter_is_cut_from_its_word(tmp_path):
    plain, joined = (
        Splitter(tokenizer(tmp_path / marks, ["a"], combining_marks=marks) / "tokenizer.json")
        for marks in ("split", "join")
    )
    assert plain.torn_share(["हिन्दी abc 12 भाषा"]) == pytest.approx(2 / 3)
    assert joined.torn_share(["हिन्दी abc 12 भाषा"]) == 0
    assert plain.torn_share(["ひらがなと漢字とカタカナ、don't x1"]) == 0
    assert plain.torn_share(["123 ..."]) == 0
