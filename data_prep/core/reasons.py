"""Why a document was dropped, as a sentence with the threshold that the stage has recorded in its parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_NUMBER, _SHARE, _OF_100 = "number", "share", "number for every 100"

# Statistic of data_prep/native/statistics.hpp -> what its threshold is, and the sentence, whose braces stand for `more than 5`.
STATISTICS: dict[str, tuple[str, str]] = {
    "prose_share": (_SHARE, "{} of the visible characters are prose, not code, tables or addresses"),
    "characters": (_NUMBER, "{} characters"),
    "words": (_NUMBER, "{} words"),
    "lines": (_NUMBER, "{} lines"),
    "sentences": (_NUMBER, "{} sentences"),
    "mean_word_length": (_NUMBER, "words have {} characters on average"),
    "longest_word": (_NUMBER, "the longest word has {} characters"),
    "alphabetic_word_share": (_SHARE, "{} of the words have a letter"),
    "stop_words": (_NUMBER, "{} different stop words"),
    "stop_word_share": (_SHARE, "{} of the words are stop words"),
    "long_numbers_per_word": (_OF_100, "{} numbers of seven digits or more per 100 words"),
    "separators_per_word": (_OF_100, "{} separators such as “|” or “·” per 100 words"),
    "mixed_word_share": (_SHARE, "{} of the words have a digit or a sign between letters"),
    "mojibake_per_word": (_OF_100, "{} characters of a wrong encoding, such as “Ã©”, per 100 words"),
    "hash_per_word": (_OF_100, "{} “#” per 100 words"),
    "ellipsis_per_word": (_OF_100, "{} ellipses per 100 words"),
    "newlines_per_word": (_OF_100, "{} line breaks per 100 words"),
    "bullet_line_share": (_SHARE, "{} of the lines begin with a bullet"),
    "ellipsis_line_share": (_SHARE, "{} of the lines end with an ellipsis"),
    "punctuated_line_share": (_SHARE, "{} of the lines hold or end a sentence"),
    "short_line_share": (_SHARE, "{} of the lines have 30 characters or fewer"),
    "duplicate_line_share": (_SHARE, "{} of the lines repeat an earlier line"),
    "duplicate_line_character_share": (_SHARE, "{} of the text is in lines that repeat an earlier line"),
    "duplicate_paragraph_share": (_SHARE, "{} of the paragraphs repeat an earlier paragraph"),
    "duplicate_paragraph_character_share": (_SHARE, "{} of the text is in paragraphs that repeat an earlier paragraph"),
    "han_share": (_SHARE, "{} of the visible characters are Han characters (Chinese or Japanese)"),
    "letter_share": (_SHARE, "{} of the visible characters are letters"),
    "number_share": (_SHARE, "{} of the visible characters are digits"),
    "symbol_share": (_SHARE, "{} of the visible characters are symbols"),
    "upper_share": (_SHARE, "{} of the letters are capitals"),
    "curly_brackets": (_NUMBER, "{} curly brackets “{”"),
    "private_or_replacement_share": (_SHARE, "{} of the visible characters show a wrong encoding"),
    "traditional_share": (_SHARE, "{} of the Chinese characters are traditional"),
    "dated_line_share": (_SHARE, "{} of the lines have a date or a time and hold no sentence"),
    "duplicate_line_start_share": (_SHARE, "{} of the lines begin as an earlier line, numbers aside, and hold no sentence"),
    "fragment_character_share": (_SHARE, "{} of the text is in lines that hold and end no sentence"),
    "exclamations_per_sentence": (_OF_100, "{} exclamation marks per 100 sentences"),
    "han_gaps_per_word": (_OF_100, "{} blanks between Chinese characters per 100 words"),
    "odd_pair_share": (_SHARE, "{} of the words make with the word before a pair that no sentence has"),
    "name_share": (_SHARE, "{} of the words are one name over and over"),
    "masked_5gram_share": (_SHARE, "{} of the words repeat, numbers and names aside"),
    **{f"top_{n}gram_share": (_SHARE, f"the most frequent sequence of {n} words makes up {{}} of the text") for n in (2, 3, 4)},
    **{
        f"duplicate_{n}gram_share": (_SHARE, f"{{}} of the text is in sequences of {n} words that came before")
        for n in (5, 6, 7, 8, 9, 10)
    },
}  # fmt: skip

# Other reasons: with the parameters of the stage that stand in braces, and for a manifest that has not recorded them.
OTHERS: dict[str, tuple[str, str]] = {
    "too_large": ("more than {max_characters} characters", "too many characters"),
    "blocked_url": ("the URL is in blocked_urls",) * 2,
    "other_language": ("the language is not {languages}", "the language is not one of the configuration"),
    "language_mismatch": ("the text is in another language than its lang field says",) * 2,
    "mixed_language": (
        "less than {min_language_share} of the text is in its main language",
        "too little of the text is in its main language",
    ),
    "dense_phrases": ("several phrases of dense_phrases, close together",) * 2,
    "document_phrase": ("advertising, filler or broken text: phrases of document_phrases",) * 2,
    "blocked_words": (
        "words of the blocked_words list: more than {max_blocked_words}",
        "too many words of the blocked_words list",
    ),
    "quality_low": ("the quality score is below {quality.min}", "the quality score is too low"),
    "exact_duplicate": ("the same text as a document that stays",) * 2,
    "near_duplicate": (
        "at least {threshold} similar to a document that stays",
        "almost the same text as a document that stays",
    ),
    "repeated_lines": (
        "every line also stands in other documents, {repeated_lines.min_documents} or more with it",
        "every line also stands in many other documents",
    ),
    "repeated_spans": (
        "fewer than {repeated_spans.min_left} characters are left without spans that stand elsewhere before",
        "too little is left without spans that stand elsewhere before",
    ),
    "contaminated": (
        "has {max_shared} of {ngram_words} words (in Chinese {ngram_characters} characters) from an evaluation set, or a whole "
        "shorter item of at least {min_item_words} words (in Chinese {min_item_characters} characters)",
        "has sequences of words that are also in an evaluation set",
    ),
    "empty": ("no tokens",) * 2,
    "no_label": ("its label is neither true nor false",) * 2,
    "source_left_out": ("its source is none of sources",) * 2,
    "too_few_tokens": ("fewer tokens than the least length that is packed",) * 2,
    "not_taken": ("beyond what is taken of its source and length",) * 2,
    "not_drawn": ("beyond {max_documents} of its language and class", "more than were asked for"),
}
_SHARES = {"min_language_share", "threshold"}


def sentence(reason: str, parameters: Mapping[str, Any], languages: Collection[str] = ()) -> str:
    """Why a document was dropped, for people; a reason of another version of the jobs is given as it is.

    Args:
        reason: its identifier, as `dropped/` and the manifest have it.
        parameters: what the stage's manifest has recorded of its configuration.
        languages: of the documents that it dropped; empty: of all that the configuration has.
    """
    statistic, _, side = reason.rpartition("_")
    if statistic in STATISTICS and side in ("low", "high"):
        unit, text = STATISTICS[statistic]
        bound = "min" if side == "low" else "max"
        limits = _limits(parameters, languages, ("rules", statistic, bound))
        kinds = _kinds(parameters, languages, statistic, bound)
        compared = "more" if side == "high" else "less" if unit == _SHARE else "fewer"
        own = f" (other limits for {', '.join(kinds)})" if kinds else ""
        return text.replace("{}", f"{compared} than {_joined(limits, unit)}", 1) + own
    if reason in OTHERS:
        exact, without = OTHERS[reason]
        values = {name: _recorded(name, parameters, languages) for name in re.findall(r"{([\w.]+)}", exact)}
        return without if None in values.values() else re.sub(r"{([\w.]+)}", lambda name: str(values[name[1]]), exact)
    return reason


def _recorded(name: str, parameters: Mapping[str, Any], languages: Collection[str]) -> str | None:
    """A parameter of a stage as the sentences of `OTHERS` name it; a dot leads into a section."""
    if name == "quality.min" and isinstance(minima := (parameters.get("quality") or {}).get("min"), dict):
        scored = {lang: least for lang, least in minima.items() if least is not None and lang in (languages or minima)}
        return _joined(scored, _NUMBER) if scored else None
    if name == "languages":
        return " or ".join(sorted(parameters.get(name) or ())) or None
    if name == "max_blocked_words":
        limits = _limits(parameters, languages, (name,))
        return _joined(limits, _NUMBER) if limits else None
    if name == "max_shared" and name in parameters:
        return f"more than {parameters[name]:,} sequences" if parameters[name] else "a sequence"
    value: Any = parameters
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else _written(value, _SHARE if name in _SHARES else _NUMBER)


def _kinds(parameters: Mapping[str, Any], languages: Collection[str], statistic: str, side: str) -> list[str]:
    """The kinds of text that have a threshold of their own in any of the languages."""
    return sorted(
        {
            kind
            for language, rules in (parameters.get("languages") or {}).items()
            for kind, own in (rules.get("kinds") or {}).items()
            if (not languages or language in languages) and (own.get(statistic) or {}).get(side) is not None
        }
    )


def _limits(parameters: Mapping[str, Any], languages: Collection[str], path: tuple[str, ...]) -> dict[str, Any]:
    """A threshold of each language that has it."""
    limits = {}
    for language, rules in sorted((parameters.get("languages") or {}).items()):
        value: Any = rules
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and (not languages or language in languages):
            limits[language] = value
    return limits


def _joined(limits: Mapping[str, Any], unit: str) -> str:
    """Such as `50`, or `50 (en) or 80 (zh)` where languages differ."""
    if len(set(limits.values())) <= 1:
        return _written(next(iter(limits.values()), None), unit)
    return " or ".join(f"{_written(value, unit)} ({language})" for language, value in limits.items())


def _written(value: Any, unit: str) -> str:
    """A threshold as people read it; an older manifest may not have it."""
    if not isinstance(value, (int, float)):
        return "the configured share" if unit == _SHARE else "the configured number of"
    if unit == _NUMBER:
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return f"{100 * value:.6g}{'%' if unit == _SHARE else ''}"
