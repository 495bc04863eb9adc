"""Plain Python of what the native scans compute: the same definitions, one obvious loop each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.curation import characters as c

CLASSES, LOWER = c.classes(), c.lower()
LINE_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
CHANGING = {  # invisible, and they change their neighbours
    *map(chr, (0x34F, 0x200C, 0x200D, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10))),
    *map(chr, (*range(0xE0020, 0xE0080), *range(0xE0100, 0xE01F0))),
}
INVISIBLE = CHANGING | {
    *map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F))),
    *map(chr, (*range(0x2060, 0x2070), *range(0xFDD0, 0xFDF0), 0xFEFF, *range(0xE0000, 0xE1000))),
    *(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)),
} - {*LINE_ENDS, "\t", "\x1f"}
MASK = (1 << 64) - 1
START = 0x9E3779B97F4A7C15


def class_of(char: str) -> int:
    return int(CLASSES[ord(char)]) if ord(char) < len(CLASSES) and char not in INVISIBLE else 0


def visible(text: str) -> str:
    return "".join(char for char in text if char not in INVISIBLE)


def lower(char: str) -> int:
    return int(LOWER[ord(char)]) if ord(char) < len(LOWER) else ord(char)


def is_word(char: str) -> bool:
    return bool(class_of(char) & (c.LETTER | c.NUMBER | c.MARK))


def alone(char: str) -> bool:
    return bool(class_of(char) & c.HAN) or (bool(class_of(char) & c.LETTER) and "\u3040" <= char <= "\u30ff")


def is_space(char: str) -> bool:
    return bool(class_of(char) & c.SPACE)


def words(text: str, apostrophes: bool = False) -> list[tuple[int, int]]:
    """(start, stop) of each word: found in the visible text, told in the places of the whole one."""
    places = [place for place, char in enumerate(text) if char not in INVISIBLE]
    return [(places[start], places[stop - 1] + 1) for start, stop in _visible_words(visible(text), apostrophes)]


def _visible_words(text: str, apostrophes: bool) -> list[tuple[int, int]]:
    found, start = [], None
    for place, char in enumerate(text):
        inside = is_word(char) and not alone(char)
        if not inside and start is not None and apostrophes and char in "'\u2019":
            inside = place + 1 < len(text) and is_word(text[place + 1]) and not alone(text[place + 1])
        if inside:
            start = place if start is None else start
            continue
        if start is not None:
            found.append((start, place))
            start = None
        if alone(char):
            found.append((place, place + 1))
    if start is not None:
        found.append((start, len(text)))
    return found


def mix(value: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value ^= value >> 33
        value = value * factor & MASK
    return value ^ value >> 33


def word_hash(word: str) -> int:
    value = START
    for char in visible(word):
        value = (value ^ (ord("'") if char == "\u2019" else lower(char))) * 0x100000001B3 & MASK
    return mix(value)


def shingles(text: str, n: int) -> list[int]:
    hashes = [word_hash(text[a:b]) for a, b in words(text)]
    size = min(n, len(hashes))
    found = []
    for at in range(len(hashes) - size + 1 if hashes else 0):
        mixed = 0
        for value in hashes[at : at + size]:
            mixed = (mixed ^ value) * START & MASK
            mixed ^= mixed >> 32
        found.append(mix(mixed))
    return found


def signature(text: str, n: int, multipliers: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """The largest values where the text has fewer words than n."""
    seen = [h >> 32 for h in shingles(text, n)] if len(words(text)) >= n else []
    return [
        min(((x * a + b) & 0xFFFFFFFF for x in seen), default=0xFFFFFFFF)
        for a, b in zip(multipliers, offsets, strict=True)
    ]


def star_components(size: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Smallest node of each node's component, by union-find."""
    parent = list(range(size))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in edges:
        i, j = find(i), find(j)
        parent[max(i, j)] = min(i, j)
    return [find(node) for node in range(size)]


def normalize_layout(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\x1f", " ")
    text = "".join(char for char in text if char not in INVISIBLE or char in CHANGING)
    lines = [re.sub(r"[\s]+\Z", "", line) if line else line for line in re.split(f"[{LINE_ENDS}]", text)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def cut_rows(text: str, codes: Sequence[int], most: int) -> str:
    kept, row = [], 0
    for char in text:
        row = row + 1 if ord(char) in codes else 0
        kept.append(char if row <= most else "")
    return "".join(kept)


def exact_text(text: str) -> str:
    """Equal where exact hashes are: lower case, runs of blanks as one, none around."""
    text = "".join(" " if is_space(char) else chr(lower(char)) for char in visible(text))
    return re.sub(" +", " ", text).strip(" ")


def matches(text: str, phrases: Sequence[str], whole_words: bool) -> list[tuple[int, int]]:
    """(start, stop) of each phrase at each place, by stop, the longest first."""
    places = [place for place, char in enumerate(text) if char not in INVISIBLE]
    folded = [_folded(char) for char in visible(text)]
    found = []
    for stop in range(len(folded) + 1):
        for phrase in sorted(phrases, key=len, reverse=True):
            start = stop - len(phrase)
            if start < 0 or not phrase or folded[start:stop] != [_folded(char) for char in phrase]:
                continue
            if whole_words and (_joined(folded, start) or _joined(folded, stop)):
                continue
            found.append((places[start], places[stop - 1] + 1))
    return found


def _folded(char: str) -> str:
    return {"\u0130": "i", "ς": "σ"}.get(char, chr(lower(char)))


def _joined(chars: Sequence[str], place: int) -> bool:
    """Whether the characters before and at the place belong to one word."""
    around = chars[place - 1 : place + 1] if 0 < place < len(chars) else []
    return bool(around) and all(is_word(char) and not alone(char) for char in around)


def statistics(
    text: str,
    stop_words: Sequence[str] = (),
    traditional: Sequence[str] = (),
    odd_pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, float]:
    """What native/statistics.hpp measures, by name."""
    from tests.data_prep.curation import reference_layout as layout  # which is built on this one

    not_blank_of_all = [char for char in visible(text) if not is_space(char)]
    text = layout.prose(text)
    spans = words(text, apostrophes=True)
    hashes = [word_hash(text[a:b]) for a, b in spans]
    stop_hashes = {word_hash(word) for word in stop_words}
    spelled = [(a, b) for a, b in spans if not alone(text[a])]
    wording = _of_words(text, spans, stop_hashes, {(word_hash(a), word_hash(b)) for a, b in odd_pairs})
    length, text = len(text), visible(text)
    full = [line.strip(_SPACES) for line in text.split("\n") if line.strip(_SPACES)]
    told = [_told(line) for line in _left_stripped(text)]
    tokens = [token for token in text.translate(_BLANKS).split(" ") if any(_is_letter_or_digit(ch) for ch in token)]
    paragraphs = _paragraphs(text)
    not_blank = [char for char in text if not is_space(char)]
    long_lines = [line for line in _left_stripped(text) if len(line) >= 10]
    values: dict[str, float] = {
        "prose_share": _share(len(not_blank), len(not_blank_of_all)),
        "characters": length,
        "words": len(spans),
        "lines": len(full),
        "sentences": sum(line.sentences for line in told),
        "mean_word_length": _share(sum(b - a for a, b in spelled), len(spelled)),
        "longest_word": max((b - a for a, b in spans), default=0),
        "alphabetic_word_share": _share(sum(any(class_of(ch) & c.LETTER for ch in t) for t in tokens), len(tokens)),
        "stop_words": len(stop_hashes & set(hashes)),
        "stop_word_share": _share(sum(value in stop_hashes for value in hashes), len(hashes)),
        "long_numbers_per_word": _share(sum(len(run) >= 7 for run in re.findall("[0-9]+", text)), len(spans)),
        "separators_per_word": _share(sum(char in "|｜丨/_·•»›>→★☆◆■●【】#" for char in text), len(spans)),
        "mixed_word_share": _share(sum(bool(_MIXED.search(token)) for token in tokens), len(tokens)),
        "mojibake_per_word": _share(len(_MOJIBAKE.findall(text)), len(spans)),
        "hash_per_word": _share(sum(line.lstrip("#").count("#") for line in _left_stripped(text)), len(spans)),
        "ellipsis_per_word": _share(text.count("…") + _dots(text), len(spans)),
        "newlines_per_word": _share(text.count("\n"), len(spans)),
        "bullet_line_share": _share(sum(line.bullet for line in told), len(full)),
        "ellipsis_line_share": _share(
            sum(line.translate(_NO_BLANKS).endswith(("…", "...")) for line in full), len(full)
        ),
        "punctuated_line_share": _share(sum(line.punctuated for line in told), len(full)),
        "short_line_share": _share(sum(len(line) <= 30 for line in _left_stripped(text)), len(full)),
        "duplicate_line_share": _share(_repeats(long_lines)[0], len(long_lines)),
        "duplicate_line_character_share": _share(_repeats(long_lines)[1], length),
        "duplicate_paragraph_share": _share(_repeats(paragraphs)[0], len(paragraphs)),
        "duplicate_paragraph_character_share": _share(_repeats(paragraphs)[1], length),
    }
    for n in range(2, 11):
        name = f"top_{n}gram_share" if n <= 4 else f"duplicate_{n}gram_share"
        values[name] = _share((_top if n <= 4 else _repeated)(spans, hashes, n), length)
    letters = sum(bool(class_of(char) & c.LETTER) for char in text)
    han = [char for char in text if class_of(char) & c.HAN]
    values |= {
        "han_share": _share(len(han), len(not_blank)),
        "letter_share": _share(letters, len(not_blank)),
        "number_share": _share(sum(bool(class_of(char) & c.NUMBER) for char in text), len(not_blank)),
        "symbol_share": _share(sum(bool(class_of(char) & c.SYMBOL) for char in text), len(not_blank)),
        "upper_share": _share(sum(bool(class_of(char) & c.UPPER) for char in text), letters),
        "curly_brackets": text.count("{"),
        "private_or_replacement_share": _share(
            sum(char == "\ufffd" or "\ue000" <= char <= "\uf8ff" for char in text), len(not_blank)
        ),
        "traditional_share": _share(sum(char in traditional for char in han), len(han)),
    }
    return values | _of_lines(_left_stripped(text), len(spans)) | wording


def _of_words(text: str, spans, stop_hashes: set[int], odd_pairs: set[tuple[int, int]]) -> dict[str, float]:
    hashes = [word_hash(text[a:b]) for a, b in spans]
    firsts = [class_of(text[a]) for a, _ in spans]
    beside = [(i, i + 1) for i in range(len(spans) - 1) if spans[i + 1][0] == spans[i][1] + 1]
    odd = sum((hashes[i], hashes[j]) in odd_pairs for i, j in beside)
    names = [bool(first & c.UPPER) and h not in stop_hashes for h, first in zip(hashes, firsts, strict=True)]
    most = max(Counter(h for h, name in zip(hashes, names, strict=True) if name).values(), default=0)
    masked = ["" if name or first & c.NUMBER else h for h, name, first in zip(hashes, names, firsts, strict=True)]
    return {
        "odd_pair_share": _share(max(odd - 2, 0), len(spans)),
        "name_share": _share(max(most - 5, 0), len(spans)),
        "masked_5gram_share": _share(max(_in_masked_runs(masked) - 15, 0), len(spans)),
    }


def _in_masked_runs(masked: Sequence[int | str]) -> int:
    """Words in runs of five with at most two masks that came before, none counted twice."""
    seen, count, i = set(), 0, 0
    while i + 5 <= len(masked):
        run = tuple(masked[i : i + 5])
        if run.count("") <= 2 and run in seen:
            count, i = count + 5, i + 5
            continue
        seen.add(run)
        i += 1
    return count


def _of_lines(lines: Sequence[str], words: int) -> dict[str, float]:
    told = [(line, _told(line)) for line in lines]
    fragments = [line for line, says in told if not says.punctuated]
    starts = [start for line in fragments if len(start := _line_start(line)) == 6]
    return {
        "dated_line_share": _share(sum(bool(_DATE.search(line)) for line in fragments), len(lines)),
        "duplicate_line_start_share": _share(len(starts) - len(set(starts)), len(lines)),
        "fragment_character_share": _share(sum(map(len, fragments)), sum(map(len, lines))),
        "exclamations_per_sentence": _share(
            sum(char in "!！" for line in lines for char in line), sum(says.sentences for _, says in told)
        ),
        "han_gaps_per_word": _share(sum(len(_HAN_GAP.findall(line)) for line in lines), words),
    }


def _line_start(line: str) -> str:
    """The first six characters, each number as one; case aside."""
    start = re.sub("[0-9]+", "0", line).translate(_NO_BLANKS)
    return "".join(chr(lower(char)) for char in start[:6])


_HAN = "".join(chr(code) for code in np.flatnonzero(CLASSES & c.HAN).tolist())
_HAN_GAP = re.compile(
    rf"(?<=[{_HAN}])[{''.join(chr(code) for code in np.flatnonzero(CLASSES & c.SPACE).tolist())}]+(?=[{_HAN}])"
)
_DATE = re.compile(
    r"(?<![0-9])(?:[0-9]{1,2}(?:[:：](?=[0-9]{2}(?![0-9]))|月(?=[0-9]{1,2}日))|[0-9]{2}-(?=[0-9]{2}(?![0-9]))"
    r"|[0-9]{4}([-/.])[0-9]{1,2}\1[0-9]{1,2}(?![0-9])|[0-9]{1,2}([-/.])[0-9]{1,2}\2[0-9]{4}(?![0-9]))"
)


_MIXED = re.compile(r"[A-Za-z][0-9@!~|^*%$#?;](?=[A-Za-z])")
_MOJIBAKE = re.compile("Ã[\x80-\xbf]|â€|Â[^A-Z\n\xc0-\U0010ffff]")
_ENDERS = ".!?。！？…．｡।॥؟۔։።"
_CLOSERS = "\"'”’）)」』》〉】]"
_NUMERAL = "0-9一二三四五六七八九十"
_NUMBERED = re.compile(rf"[①-⑳]|[(（]?(?:[A-Za-z][)）]|[{_NUMERAL}]{{1,3}}(?:[)）、．]|\.(?![0-9])))")


class _Told(NamedTuple):
    sentences: int
    punctuated: bool
    bullet: bool


def _told(line: str) -> _Told:
    """Of a line without the blanks before it."""
    sentences, said = _sentences(line)
    open_end = line.rstrip(_CLOSERS + _SPACES)[-1:]
    is_open = open_end == "" or open_end not in _ENDERS
    punctuated = not is_open or open_end in tuple(";；:：") or sentences > 0
    punctuated = punctuated or (len(line) > 30 and any(char in "，；" for char in line))
    return _Told(
        sentences=sentences + (is_open and said >= 80),
        punctuated=punctuated,
        bullet=_is_bullet(line) or (not punctuated and bool(_NUMBERED.match(line))),
    )


def _is_bullet(line: str) -> bool:
    first, second = line[0], line[1:2]
    if first in "-*":
        return second != first
    return first in "•●○◦‣▪▶■□◆·»✓✔➢➤" or (first in "+>–" and (second == "" or is_space(second)))


def _sentences(line: str) -> tuple[int, int]:
    """How many sentences end in a line, and what comes after the last: 8 for a word, 5 for a Chinese character.

    A full stop ends a sentence before a blank, a closing mark or Chinese, and at the end.
    """
    sentences = said = 0
    full_stop, last, before = False, "", ""
    for char in line:
        han = bool(class_of(char) & c.HAN)
        if full_stop and (is_space(char) or han or char in _CLOSERS):
            sentences, said = sentences + 1, 0
        full_stop = full_stop and char in _ENDERS
        if han:
            said += 5
        elif is_word(char) and not (before and is_word(before)):
            said += 8
        if char in _ENDERS and last and last not in _ENDERS and not full_stop:
            full_stop = char in ".．"
            sentences, said = (sentences, said) if full_stop else (sentences + 1, 0)
        before, last = char, last if is_space(char) else char
    return sentences + full_stop, said


def _is_letter_or_digit(char: str) -> bool:
    return bool(class_of(char) & (c.LETTER | c.NUMBER))


_SPACES = "".join(chr(code) for code in np.flatnonzero(CLASSES & c.SPACE).tolist() if code != ord("\n"))


_BLANKS = dict.fromkeys(map(ord, _SPACES + "\n"), " ")
_NO_BLANKS = dict.fromkeys(map(ord, _SPACES))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _left_stripped(text: str) -> list[str]:
    return [line.lstrip(_SPACES) for line in text.split("\n") if line.strip(_SPACES)]


def _paragraphs(text: str) -> list[str]:
    found, current = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip(_SPACES):
            current.append(line.lstrip(_SPACES))
        elif current:
            found.append("\n".join(current))
            current = []
    return found


def _repeats(parts: Sequence[str]) -> tuple[int, int]:
    seen: set[str] = set()
    count = size = 0
    for part in parts:
        if part in seen:
            count, size = count + 1, size + len(part)
        seen.add(part)
    return count, size


def _top(spans, hashes, n: int) -> int:
    """Characters in the most frequent n-gram, each as long as its last one; the longest of equals."""
    grams = [tuple(hashes[i : i + n]) for i in range(len(hashes) - n + 1)]
    most = max(Counter(grams).values(), default=0)
    if most < 2:
        return 0
    counts, last = Counter(grams), {gram: i for i, gram in enumerate(grams)}
    return max((spans[i + n - 1][1] - spans[i][0]) * most for gram, i in last.items() if counts[gram] == most)


def _repeated(spans, hashes, n: int) -> int:
    seen, size, i = set(), 0, 0
    while i + n <= len(hashes):
        gram = tuple(hashes[i : i + n])
        if gram in seen:
            size += spans[i + n - 1][1] - spans[i][0]
            i += n
        else:
            seen.add(gram)
            i += 1
    return size


def _dots(text: str) -> int:
    """Runs of three full stops or more, blanks between them aside, within a line."""
    return sum(len(re.findall(r"\.{3,}", "".join(ch for ch in line if not is_space(ch)))) for line in text.split("\n"))
