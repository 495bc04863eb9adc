"""Notices that are no content, sentence by sentence: cookies, copyright, labels of editors, requests to follow a page."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from data_prep.curation.characters import native
from data_prep.curation.cleaning import Phrases, Span

# A notice says little beside its phrases, or it is short and speaks to the reader or of this site, or it is the value of
# a label. In English words; so many Chinese characters say what one does. Tried on 233 sentences with a phrase of ours,
# 109 of them notices: tests/data_prep/test_curate.py has some of each kind.
_WORDS_BESIDE_PHRASES = 1.5
_WORDS_WITH_CUE = 30
_WORDS_OF_LABEL = 40  # "免责声明：" and what follows
_CHARACTERS_PER_WORD = 1.6
_MAX_PASSES = 10  # so that the work stays linear; real pages take one, which the second finds done
# A document is of its phrases with at least three of them, one in so many words; where three differ, in twice as many.
_WORDS_PER_PHRASE = 20
# Or with a sentence that says little else, in a text of so many words per phrase: the larger part of a text decides.
_WORDS_PER_PHRASE_ALONE = 150

# what speaks to the reader or of this site in English and Chinese; `lines.cues` of a language has more
_CUE = re.compile(
    r"\b(?:our (?:web ?)?(?:site|page|app|use|cookie|newsletter)|ours|please(?! note)"
    r"|you (?:need|must|agree|accept|consent)|your (?:browser|experience|device|inbox|consent)"
    r"|this (?:web ?)?(?:site|page|app|blog|post|publication)|unless otherwise|best experience"
    r"|(?:personali[sz]e|analy[sz]e) (?:content|ads|traffic))\b|©|\(c\)|\bcopyright\b"
    r"|本[站网]|本文|本公众号|我们的(?:网站|微信|公众号|客服)|(?:关注|联系)我们|为您服务|谢谢|侵权"
    r"|请(?:拨打|联系|关注|点击|加)|更多(?:精彩)?(?:资讯|内容|信息|活动)|长期有效|版权所有[，：]|备 ?\d",
    re.IGNORECASE,
)
# "Copyright © 2024 The Daily Harbour." goes with the "All rights reserved." behind it
_COPYRIGHT = re.compile(r"\s*(?:\w+ ){0,3}(?:copyright\b|©|\(c\))\D{0,20}\d{4}", re.IGNORECASE)
_COPYRIGHT_CHARACTERS = 200
_HEADING = re.compile("#+ ")  # or a comment in code

_CLOSERS = "\"'`”’）)」』》】"
_SENTENCE_END = re.compile(
    rf"(?:[。！？!?…｡।॥؟۔։።]+|\.(?=[\s{_CLOSERS}\u3400-\u9fff]|$))[{_CLOSERS}]*\s*"
    r"|(?<=\w)[ \t]+(?=[\u4e00-\u9fff]{8,}[，。])"  # a line end that became a blank: a clause follows
)
_BRACKET = re.compile(
    r"[（(【\[][^（）()【】\[\]]*[）)】\]](?![(\[])\s*"
)  # at the start: a sentence of its own; no link
# Labels with their values, "责任编辑：李四 审核：王五", and the numbers that sites are filed by. A value ends at a blank,
# unless what follows is short and no sentence, as a title is.
_LABELS = re.compile(
    r"(?<![^\s。！？!?…”）)】])[（(【\[]?"
    r"(?:[\u4e00-\u9fff]?(?:ICP备|公网安备 ?)\d{6,}号?(?:-\d+)?[ \t]*"
    r"|[\u4e00-\u9fffA-Z]{2,8}[：:][ \t]?[^\s。！？：）)】\]]{1,40}(?=[\s。！？）)】\]]|$)"
    r"(?:[ \t]+[^\s。！？，；：）)】\]]{1,20}(?=[\s）)】\]]|$))*[ \t]*)+[）)】\]]?[。！？]?\s*"
)
_QUOTED = re.compile(
    r"“[^“”\n]{1,200}”|‘[^‘’\n]{1,200}’|「[^「」\n]{1,200}」|『[^『』\n]{1,200}』|《[^《》\n]{1,200}》"
    r"|\"[^\"\n]{1,200}\"|`[^`\n]{1,200}`|(?<!\w)'[^'\n]{1,200}'(?!\w)"
)
_NO_CUES = Phrases([])
_LONGER_WORD = re.compile("(?<=所有)[者人权]")  # 版权所有者 is the owner


def remove_notices(text: str, phrases: Phrases, cues: Phrases = _NO_CUES) -> tuple[str, int, int]:
    """As `without_notices`, until it finds no more: what stood around a notice may be one sentence then."""
    lines = sentences = 0
    for _ in range(_MAX_PASSES):
        text, more_lines, more_sentences = without_notices(text, phrases.find(text), cues)
        if not more_lines and not more_sentences:
            break
        lines, sentences = lines + more_lines, sentences + more_sentences
    return text, lines, sentences


def without_notices(text: str, matches: Sequence[Span], cues: Phrases = _NO_CUES) -> tuple[str, int, int]:
    """The text without the notices that the matches of phrases are in, how many lines went, and how many sentences.

    Sentences and labels are judged one by one, wherever they stand; what only mentions a phrase stays. A phrase in
    quotation marks is a mention. A short sentence with a phrase and a cue is a notice. Linear in the length of the text.
    """
    pieces, done, lines, sentences = [], 0, 0, 0
    for start, stop, spans in _by_line(text, said(text, matches)):
        pieces.append(text[done:start])
        rest, notices = _line_without(text, start, stop, spans, cues)
        if notices and not rest.strip():
            lines += 1
            done = stop + 1  # with the line end
        else:
            pieces.append(rest)
            sentences += notices
            done = stop
    pieces.append(text[done:])
    return "".join(pieces), lines, sentences


def _line_without(text: str, start: int, stop: int, spans: Sequence[Span], cues: Phrases) -> tuple[str, int]:
    """A line of the text without its notices, and how many they are."""
    kept: list[str] = []
    notices = 0
    for sentence_start, sentence_stop, inside in _by_sentence(text, start, stop, spans):
        sentence = text[sentence_start:sentence_stop]
        if not inside or not _is_notice(text, sentence_start, sentence_stop, inside, cues):
            kept.append(sentence)
            continue
        notices += 1
        if kept and len(kept[-1]) <= _COPYRIGHT_CHARACTERS and _COPYRIGHT.match(kept[-1]):
            kept.pop()
    return "".join(kept), notices


def is_prominent(text: str, matches: Sequence[Span]) -> bool:
    """Whether the text is of the phrases: they are dense, or a sentence says little else; it may also mention them."""
    message = said(text, matches)
    if not message:
        return False
    different = {text[start:stop].lower() for start, stop in message}
    words = _WORDS_PER_PHRASE * len(message) * (2 if len(different) >= 3 else 1)
    size = words_of(text)
    if size > _WORDS_PER_PHRASE_ALONE * len(message):
        return False
    return (len(message) >= 3 and size <= words) or any(
        spans and _words_beside(text, start, stop, spans) <= _WORDS_BESIDE_PHRASES
        for line, line_stop, inside in _by_line(text, message)
        for start, stop, spans in _by_sentence(text, line, line_stop, inside)
    )


def said(text: str, matches: Sequence[Span]) -> list[Span]:
    """The matches in order that overlap no earlier one, are not in quotation marks and no part of a longer word."""
    message: list[Span] = []
    done = 0
    for line, line_stop, spans in _by_line(text, sorted(matches, key=lambda span: (span[0], -span[1]))):
        quotes = [match.span() for match in _QUOTED.finditer(text, line, line_stop)]
        for start, stop in spans:
            if start < done:
                continue
            done = stop
            quote = bisect_right(quotes, (start, start)) - 1
            is_quoted = quote >= 0 and stop <= quotes[quote][1]
            if not is_quoted and not _LONGER_WORD.match(text, stop):
                message.append((start, stop))
    return message


def _by_line(text: str, spans: Sequence[Span]) -> Iterator[tuple[int, int, list[Span]]]:
    """Start, stop and spans of every line that has some; the spans are sorted."""
    at = stop = 0
    while at < len(spans):
        start = text.rfind("\n", stop, spans[at][0]) + 1 or stop
        stop = text.find("\n", spans[at][1])
        stop = len(text) if stop < 0 else stop
        first = at
        while at < len(spans) and spans[at][0] < stop:
            at += 1
        yield start, stop, list(spans[first:at])


def _by_sentence(text: str, start: int, stop: int, spans: Sequence[Span]) -> Iterator[tuple[int, int, list[Span]]]:
    """Start, stop and spans of every sentence and every run of labels with a phrase, the blanks behind it included."""
    at = 0
    for end in _ends(text, start, stop, spans):
        first = at
        while at < len(spans) and spans[at][0] < end:
            at += 1
        yield start, end, list(spans[first:at])
        start = end


def _ends(text: str, start: int, stop: int, spans: Sequence[Span]) -> Iterator[int]:
    """Where the sentences and the runs of labels that have a phrase end."""
    phrases = [span[0] for span in spans]
    runs = [match.span() for match in _LABELS.finditer(text, start, stop)]
    for run_start, run_stop in [*runs, (stop, stop)]:
        if run_start < stop and bisect_left(phrases, run_start) == bisect_left(phrases, run_stop):
            continue
        yield from _sentence_ends(text, start, run_start)
        if run_stop > run_start:
            yield run_stop
        start = run_stop


def _sentence_ends(text: str, start: int, stop: int) -> Iterator[int]:
    for end in [*(match.end() for match in _SENTENCE_END.finditer(text, start, stop)), stop]:
        while start < end:
            bracket = _BRACKET.match(text, start, end)
            start = bracket.end() if bracket else end
            yield start


def _is_notice(text: str, start: int, stop: int, spans: Sequence[Span], cues: Phrases) -> bool:
    """Whether a sentence says little beside the phrases in it, is the value of a label, or speaks to the reader."""
    if _HEADING.match(text, start):
        return False
    words = _words_beside(text, start, stop, spans)
    if words <= _WORDS_BESIDE_PHRASES:
        return True
    if _is_label(text, spans[0]) and (not words_of(text[start : spans[0][0]]) or _LABELS.match(text, start, stop)):
        return words <= _WORDS_OF_LABEL
    return words <= _WORDS_WITH_CUE and bool(_CUE.search(text, start, stop) or cues.find(text[start:stop]))


def _words_beside(text: str, start: int, stop: int, spans: Sequence[Span]) -> float:
    """How much a sentence says that is in none of the spans."""
    pieces = []
    for span_start, span_stop in spans:
        pieces.append(text[start:span_start])
        start = span_stop
    return words_of("\n".join([*pieces, text[start:stop]]))


def _is_label(text: str, span: Span) -> bool:
    """Whether a colon ends the phrase or is right behind it."""
    return text[span[1] - 1] in ":：" or text[span[1] : span[1] + 1] in (":", "：")


def words_of(text: str) -> float:
    words, characters = native.word_counts(text)
    return words + characters / _CHARACTERS_PER_WORD
