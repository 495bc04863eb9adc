"""Plain Python of what the native scans compute: the same definitions, one obvious loop each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_prep import characters as c

CLASSES, LOWER = c.classes(), c.lower()
MASK = (1 << 64) - 1
START = 0x9E3779B97F4A7C15


def class_of(char: str) -> int:
    return int(CLASSES[ord(char)]) if ord(char) < len(CLASSES) else 0


def lower(char: str) -> int:
    return int(LOWER[ord(char)]) if ord(char) < len(LOWER) else ord(char)


def is_word(char: str) -> bool:
    return bool(class_of(char) & (c.LETTER | c.NUMBER | c.MARK))


def alone(char: str) -> bool:
    return bool(class_of(char) & c.HAN) or (bool(class_of(char) & c.LETTER) and "\u3040" <= char <= "\u30ff")


def is_space(char: str) -> bool:
    return bool(class_of(char) & c.SPACE)


def words(text: str, apostrophes: bool = False) -> list[tuple[int, int]]:
    """(start, stop) of each word."""
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
    for char in word:
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
    seen = [h >> 32 for h in shingles(text, n)]
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
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    invisible = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\ufeff", "\u200b", "\u2060"} - {"\n", "\t"}
    text = "".join(char for char in text if char not in invisible)
    lines = [re.sub(r"[\s]+\Z", "", line) if line else line for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def statistics(text: str, stop_words: Sequence[str] = (), traditional: Sequence[str] = ()) -> dict[str, float]:
    """What native/statistics.hpp measures, by name."""
    spans = words(text, apostrophes=True)
    tokens = [text[a:b] for a, b in spans]
    hashes = [word_hash(token) for token in tokens]
    lines = [line.strip(_SPACES) for line in text.split("\n")]
    full = [line for line in lines if line]
    paragraphs = _paragraphs(text)
    visible = [char for char in text if not is_space(char)]
    long_lines = [line for line in _left_stripped(text) if len(line) >= 10]
    length = len(text)
    values: dict[str, float] = {
        "characters": length,
        "words": len(tokens),
        "lines": len(full),
        "sentences": _sentences(text),
        "mean_word_length": _share(sum(b - a for a, b in spans), len(spans)),
        "longest_word": max((b - a for a, b in spans), default=0),
        "alphabetic_word_share": _share(sum(bool(class_of(t[0]) & c.LETTER) for t in tokens), len(tokens)),
        "stop_words": len({word_hash(w) for w in stop_words} & set(hashes)),
        "hash_per_word": _share(text.count("#"), len(tokens)),
        "ellipsis_per_word": _share(text.count("…") + _dots(text), len(tokens)),
        "newlines_per_word": _share(text.count("\n"), len(tokens)),
        "bullet_line_share": _share(sum(line[0] in "-*•●○◦‣▪▶■□◆·" for line in full), len(full)),
        "ellipsis_line_share": _share(sum(line.endswith(("…", "...")) for line in full), len(full)),
        "punctuated_line_share": _share(
            sum(line.rstrip("\"'”’）)」』》〉】]" + _SPACES)[-1:] in tuple(".!?。！？…；;:：") for line in full),
            len(full),
        ),
        "short_line_share": _share(sum(len(line) <= 30 for line in _left_stripped(text)), len(full)),
        "duplicate_line_share": _share(_repeats(long_lines)[0], len(long_lines)),
        "duplicate_line_character_share": _share(_repeats(long_lines)[1], length),
        "duplicate_paragraph_share": _share(_repeats(paragraphs)[0], len(paragraphs)),
        "duplicate_paragraph_character_share": _share(_repeats(paragraphs)[1], length),
    }
    for n in range(2, 11):
        name = f"top_{n}gram_share" if n <= 4 else f"duplicate_{n}gram_share"
        values[name] = _share((_top if n <= 4 else _repeated)(spans, hashes, n), length)
    full_width = sum(char in "，。；：？！、（）《》“”" for char in text)
    half_width = _half_width(text)
    letters = sum(bool(class_of(char) & c.LETTER) for char in text)
    han = [char for char in text if class_of(char) & c.HAN]
    values |= {
        "han_share": _share(len(han), len(visible)),
        "letter_share": _share(letters, len(visible)),
        "number_share": _share(sum(bool(class_of(char) & c.NUMBER) for char in text), len(visible)),
        "symbol_share": _share(sum(bool(class_of(char) & c.SYMBOL) for char in text), len(visible)),
        "upper_share": _share(sum(bool(class_of(char) & c.UPPER) for char in text), letters),
        "curly_brackets": text.count("{"),
        "full_width_punctuation_share": _share(full_width, full_width + half_width),
        "private_or_replacement_share": _share(
            sum(char == "\ufffd" or "\ue000" <= char <= "\uf8ff" for char in text), len(visible)
        ),
        "traditional_share": _share(sum(char in traditional for char in han), len(han)),
    }
    return values


_SPACES = "".join(chr(code) for code in np.flatnonzero(CLASSES & c.SPACE).tolist() if code != ord("\n"))


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


def _sentences(text: str) -> int:
    count = 0
    for line in text.split("\n"):
        before = ""
        for char in line:
            count += char in ".!?。！？…" and before != "" and before not in ".!?。！？…"
            before = char if not is_space(char) else before
    return count


def _dots(text: str) -> int:
    """Runs of three full stops or more, blanks between them aside, within a line."""
    return sum(len(re.findall(r"\.{3,}", "".join(ch for ch in line if not is_space(ch)))) for line in text.split("\n"))


def _half_width(text: str) -> int:
    count = 0
    for line in text.split("\n"):
        before = ""
        for char in line:
            count += char in ",.;:?!()" and before != "" and bool(class_of(before) & c.HAN)
            before = char if not is_space(char) else before
    return count
