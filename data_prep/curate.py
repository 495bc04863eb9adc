#!/usr/bin/env python3
"""Curate raw documents: repair the text, detect the language, drop what the quality rules refuse, mask personal data.

Samples of the dropped documents, each with its reason, are written to dropped/ in the output folder.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from data_prep.core.command import job_parser
from data_prep.core.stage import Stage, document_task
from data_prep.core.tally import Tally, merged, with_totals
from data_prep.curation.blocked_urls import BlockedUrls, is_entry
from data_prep.curation.characters import native
from data_prep.curation.cleaning import Phrases, normalize
from data_prep.curation.language import LANGUAGES, identify_language
from data_prep.curation.notices import is_prominent, remove_notices
from data_prep.curation.personal import Masks, mask_personal
from data_prep.curation.rules import Judge, LanguageRules
from data_prep.documents.fields import Fields
from data_prep.documents.reading import Document, Part, write_documents, write_part
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.strict import Section, load_yaml, strict_model


class Quality(Section):
    """A score of a model of yours, `function(text, lang) -> float`, written to the field `quality`."""

    function: str = Field(pattern=r"^[\w.]+:\w+$")  # package.module:function, importable by every worker
    min: float


class CurateConfig(Section):
    fields: Fields = Fields()
    languages: dict[str, LanguageRules]
    min_language_share: float = Field(0.5, ge=0, le=1)
    max_characters: int = Field(5_000_000, gt=0)
    personal_data: Masks | None = Masks()
    blocked_urls: list[str] = []
    blocked_words: dict[str, list[str]] = {}  # by language
    quality: Quality | None = None
    dropped_samples: int | None = Field(20, ge=0)

    def problems(self) -> list[str]:
        unknown = sorted(set(self.languages) - LANGUAGES)
        known = f"name some of {', '.join(sorted(LANGUAGES))}"
        no_hosts = [line for line in self.blocked_urls if not is_entry(line)]
        return [
            *([] if self.languages else ["languages is empty; name at least one"]),
            *(f"'languages.{name}' is none that documents are identified as; {known}" for name in unknown),
            *(
                f"blocked_urls: '{line}' names no host, or more than a host and a path; write one host or host/path a line"
                for line in no_hosts[:5]
            ),
        ]


def load_curate_config(path: Path) -> CurateConfig:
    """Read the config with the files that it names, each relative to the one that names it.

    Raises:
        UserError: a file is missing or wrong; `ConfigError` with every problem of one.
    """
    values = load_yaml(path)
    languages, blocked = {}, {}
    if isinstance(values, dict) and isinstance(values.get("languages"), dict):
        for name, file in values["languages"].items():
            if not isinstance(file, str):
                raise ConfigError(path, [f"'languages.{name}' is {file!r}: give the file of its rules"])
            rules = strict_model(LanguageRules, load_yaml(path.parent / file), path.parent / file)
            languages[name] = rules
            if rules.blocked_words:
                blocked[name] = _lines_of((path.parent / file).parent / rules.blocked_words)
        values = {
            **values,
            "languages": {name: rules.model_dump() for name, rules in languages.items()},
            "blocked_words": blocked,
        }
        if isinstance(values.get("blocked_urls"), str):
            values["blocked_urls"] = _lines_of(path.parent / values["blocked_urls"])
        elif values.get("blocked_urls", "") is None:
            values["blocked_urls"] = []
    return strict_model(CurateConfig, values, path)


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})


class Verdict(NamedTuple):
    document: Document
    reason: str | None  # None: stays
    confidence: float  # of the language
    lines_dropped: int
    masked: Counter[str]
    sentences_dropped: int = 0  # of lines that stay


class Curator:
    """Judges documents, one at a time.

    The language is the detected one. A document that claims another of the configured languages is dropped: one of
    the two is wrong. Labels that the configuration does not know (zh-Hans, cmn_Hani) are replaced.
    """

    def __init__(self, config: CurateConfig):
        self._config = config
        self._judges = {name: Judge(rules) for name, rules in config.languages.items()}
        self._line_phrases = {name: Phrases(rules.lines.phrases) for name, rules in config.languages.items()}
        self._document_phrases = {name: Phrases(rules.document_phrases) for name, rules in config.languages.items()}
        self._blocked = {name: Phrases(words, whole_words=True) for name, words in config.blocked_words.items()}
        self._blocked_urls = BlockedUrls(config.blocked_urls)
        self._score = _scorer(config.quality)
        self._simplify = {name: _simplifier() for name, rules in config.languages.items() if rules.simplify}

    def judge(self, document: Document, default_source: str) -> Verdict:
        """The document repaired, labelled and masked, and the reason to drop it."""
        document = {**document, "source": str(document.get("source") or default_source)}
        claimed, masked = _label(document), Counter[str]()
        if len(document["text"]) > self._config.max_characters:
            return Verdict({**document, "lang": claimed or "unknown"}, "too_large", 0.0, 0, masked)
        document["text"] = normalize(document["text"])
        language, confidence = identify_language(document["text"])
        document["lang"] = language
        reason, lines_dropped, sentences_dropped = self._label_reason(document, claimed, confidence), 0, 0
        if reason is None:
            document["text"], lines_dropped, sentences_dropped = self._content(document["text"], language)
            reason = self._text_reason(document)
        if reason is None and self._config.personal_data is not None:
            document["text"] = mask_personal(document["text"], self._config.personal_data, masked)
        return Verdict(document, reason, confidence, lines_dropped, masked, sentences_dropped)

    def _label_reason(self, document: Document, claimed: str | None, confidence: float) -> str | None:
        if self._blocked_urls.has(document.get("url")):
            return "blocked_url"
        if document["lang"] not in self._config.languages:
            return "other_language"
        if claimed in self._config.languages and claimed != document["lang"]:
            return "language_mismatch"
        return "mixed_language" if confidence < self._config.min_language_share else None

    def _content(self, text: str, language: str) -> tuple[str, int, int]:
        """The text without lines that are no content and notices, how many lines went and how many sentences."""
        rules = self._config.languages[language].lines
        dropped = 0
        if rules.min_words or rules.max_word_length < len(text):
            text, dropped = native.keep_lines(text, rules.min_words, rules.max_word_length)
        text, notices, sentences = remove_notices(text, self._line_phrases[language])
        text = native.normalize_layout(text) if dropped or notices or sentences else text
        text = self._simplify[language](text) if language in self._simplify else text
        return text, dropped + notices, sentences

    def _text_reason(self, document: Document) -> str | None:
        text, language = document["text"], document["lang"]
        reason = self._judges[language].reason(text)
        if reason is not None:
            return reason
        if is_prominent(text, self._document_phrases[language].find(text)):
            return "document_phrase"
        allowed = self._config.languages[language].max_blocked_words
        if language in self._blocked and len(self._blocked[language].find(text)) > allowed:
            return "blocked_words"
        if self._config.quality is None:
            return None
        document["quality"] = float(self._score(text, language))
        return "quality_low" if document["quality"] < self._config.quality.min else None


def _label(document: Document) -> str | None:
    """The language that the document claims; a label that is no string tells nothing."""
    label = document.get("lang")
    return label if isinstance(label, str) else None


def _scorer(quality: Quality | None) -> Callable[[str, str], float]:
    if quality is None:
        return lambda text, lang: 0.0
    module, name = quality.function.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"quality.function {quality.function} cannot be imported ({error}); put it on PYTHONPATH"
        ) from None


def _simplifier() -> Callable[[str], str]:
    import opencc

    return opencc.OpenCC("t2s").convert


def curate_documents(
    documents: Iterable[Document], number: int, *, config: CurateConfig, output: Path, source: str
) -> dict[str, Any]:
    """Judge one part's documents; write the kept, and samples of the dropped with their reason."""
    curator, tally = Curator(config), Tally()
    numbers: dict[str, Any] = {
        "lines_dropped": Counter(),
        "sentences_dropped": Counter(),
        "masked": {},
        "confidence": {},
        "log2_characters": {},
    }
    dropped: list[Document] = []
    samples: Counter[str] = Counter()

    def kept() -> Iterator[Document]:
        for raw in documents:
            document, reason, confidence, lines, masked, sentences = curator.judge(raw, source)
            language, text_bytes = document["lang"], len(raw["text"].encode())
            tally.add(
                language,
                document["source"],
                text_bytes,
                reason,
                len(document["text"].encode()) if reason is None else 0,
            )
            numbers["confidence"].setdefault(language, Counter())[f"{int(confidence * 20) / 20:.2f}"] += 1
            if reason is None:
                numbers["log2_characters"].setdefault(language, Counter())[str(len(document["text"]).bit_length())] += 1
                numbers["lines_dropped"][language] += lines
                numbers["sentences_dropped"][language] += sentences
                numbers["masked"].setdefault(language, Counter()).update(masked)
                yield document
            else:
                samples[reason] += 1
                if config.dropped_samples is None or samples[reason] <= config.dropped_samples:
                    dropped.append({**document, "dropped": reason})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", dropped)
    return {"groups": tally.groups(), "numbers": numbers, "files": written.below(output)}


def curate_part(part: Part, number: int, *, config: CurateConfig, output: Path, max_bad: int) -> dict[str, Any]:
    work = partial(curate_documents, config=config, output=output, source=part.path.name.split(".")[0])
    return document_task(part, number, work=work, output=output, max_bad=max_bad, fields=config.fields.model_dump())


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(__doc__, "python data_prep/curate.py --input raw/ --output work/curated", "curate.yaml")
    args = parser.parse_args(argv)
    config = load_curate_config(args.config)
    Curator(config)  # what the config names can be loaded
    stage = Stage.of("curate", args, config.model_dump(mode="json"))
    if not stage.finished:
        task = partial(curate_part, config=config, output=stage.output, max_bad=stage.max_bad)
        results = stage.run_tasks("curate", task, stage.parts)
        counts = with_totals(merged(result["groups"] for result in results))
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        stage.must_have_documents(counts["in"])
        stage.finish(
            counts=counts,
            written=results,
            results=merged(result["numbers"] for result in results),
        )
    stage.report("kept")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
