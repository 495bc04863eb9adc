"""Judges documents one at a time: repaired, labelled, masked, and kept or dropped with a reason."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from data_prep.curation.bilingual import bilingual_label
from data_prep.curation.blocked_urls import BlockedUrls
from data_prep.curation.characters import native
from data_prep.curation.cleaning import Phrases, normalize
from data_prep.curation.dense import DensePhrases
from data_prep.curation.kinds import BILINGUAL, PROSE, kind_of
from data_prep.curation.language import language_shares, leading_language
from data_prep.curation.notices import is_prominent, remove_notices
from data_prep.curation.personal import mask_personal
from data_prep.curation.repeated_sentences import drop_repeated_sentences
from data_prep.curation.rules import Judge
from data_prep.curation.settings import CurateConfig, Quality
from data_prep.documents.reading import Document
from data_prep.quality.model import QualityModel
from recipe.base.errors import UserError


class Verdict(NamedTuple):
    document: Document
    reason: str | None  # None: stays
    confidence: float  # of the language
    lines_dropped: int
    masked: Counter[str]
    sentences_dropped: int = 0  # of lines that stay: notices and repeated sentences
    marks_widened: int = 0  # half-width punctuation written as full-width


class Curator:
    """Judges documents, one at a time.

    The language is the detected one. A document that claims another of the configured languages is dropped: one of
    the two is wrong; of one that joins two of them (bilingual.py), both are right, and it has that of which it has most.
    Labels that the configuration does not know (zh-Hans, cmn_Hani) are replaced.
    """

    def __init__(self, config: CurateConfig):
        self._config = config
        self._judges = {name: Judge(rules) for name, rules in config.languages.items()}
        self._line_phrases = {name: Phrases(rules.lines.phrases) for name, rules in config.languages.items()}
        self._cues = {name: Phrases(rules.lines.cues, whole_words=True) for name, rules in config.languages.items()}
        self._document_phrases = {name: Phrases(rules.document_phrases) for name, rules in config.languages.items()}
        self._dense = {name: DensePhrases(rules) for name, rules in config.languages.items()}
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
        language, confidence = self._label_language(document)
        reason = self._label_reason(document, claimed, confidence)
        lines_dropped = sentences_dropped = marks_widened = 0
        if reason is None:
            if self._config.languages[language].widen_punctuation:
                document["text"], marks_widened = native.widen_punctuation(document["text"])
            document["text"], lines_dropped, sentences_dropped = self._content(document["text"], language)
            reason = self._text_reason(document)
        if reason is None:
            sentences_dropped += self._drop_repeated_sentences(document)
        if reason is None and self._config.personal_data is not None:
            document["text"] = mask_personal(document["text"], self._config.personal_data, masked)
        return Verdict(document, reason, confidence, lines_dropped, masked, sentences_dropped, marks_widened)

    def _label_language(self, document: Document) -> tuple[str, float]:
        """Write into the document its language, and how it joins two if it does; return the language and its share."""
        shares = language_shares(document["text"])
        document.pop("bilingual", None)
        document["lang"], confidence = leading_language(shares)
        label = bilingual_label(document["text"], shares, self._config.languages)
        if label is not None:
            document["bilingual"] = label
            known = {language: share for language, share in shares.items() if language in self._config.languages}
            document["lang"], confidence = leading_language(known)[0], sum(known.values())
        return document["lang"], confidence

    def _label_reason(self, document: Document, claimed: str | None, confidence: float) -> str | None:
        if self._blocked_urls.has(document.get("url")):
            return "blocked_url"
        if document["lang"] not in self._config.languages:
            return "other_language"
        if claimed in self._config.languages and claimed != document["lang"] and "bilingual" not in document:
            return "language_mismatch"
        return "mixed_language" if confidence < self._config.min_language_share else None

    def _content(self, text: str, language: str) -> tuple[str, int, int]:
        """The text without lines that are no content and notices, how many lines went and how many sentences."""
        rules = self._config.languages[language].lines
        dropped = 0
        if rules.min_words or rules.max_word_length < len(text):
            text, dropped = native.keep_lines(text, rules.min_words, rules.max_word_length)
        text, notices, sentences = remove_notices(text, self._line_phrases[language], self._cues[language])
        text = native.normalize_layout(text) if dropped or notices or sentences else text
        text = self._simplify[language](text) if language in self._simplify else text
        return text, dropped + notices, sentences

    def _drop_repeated_sentences(self, document: Document) -> int:
        """After the rules, which documents of repetition are not to escape; of prose alone, since verse has refrains."""
        least = self._config.languages[document["lang"]].lines.repeated_sentence_characters
        if least is None or "kind" in document or "bilingual" in document:
            return 0
        document["text"], dropped = drop_repeated_sentences(document["text"], least)
        return dropped

    def _text_reason(self, document: Document) -> str | None:
        text, language = document["text"], document["lang"]
        kind = BILINGUAL if "bilingual" in document else kind_of(text, language)
        document.pop("kind", None)
        if kind not in (PROSE, BILINGUAL):
            document["kind"] = kind
        reason = self._judges[language].reason(text, kind)
        if reason is not None:
            return reason
        if self._dense[language].are_dense(text):
            return "dense_phrases"
        phrases = self._document_phrases[language]
        if phrases.find(text) and is_prominent(prose := native.prose(text), phrases.find(prose)):
            return "document_phrase"
        allowed = self._config.languages[language].max_blocked_words
        if language in self._blocked and len(self._blocked[language].find(text)) > allowed:
            return "blocked_words"
        threshold = None if self._config.quality is None else self._config.quality.threshold(language)
        if threshold is None:
            return None
        document["quality"] = float(self._score(text, language))
        return "quality_low" if document["quality"] < threshold else None


def _label(document: Document) -> str | None:
    """The language that the document claims; a label that is no string tells nothing."""
    label = document.get("lang")
    return label if isinstance(label, str) else None


def _scorer(quality: Quality | None) -> Callable[[str, str], float]:
    if quality is None:
        return lambda text, lang: 0.0
    if quality.model is not None:
        return QualityModel.read(quality.model).score
    assert quality.function is not None
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
