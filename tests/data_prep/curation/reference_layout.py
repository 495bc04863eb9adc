"""Plain Python of native/layout.hpp and native/punctuation.hpp: the same definitions, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.curation import characters as c
from tests.data_prep.curation.reference import INVISIBLE, alone, class_of, is_space, is_word

BLANK, PROSE, CODE, TABLE = "blank", "prose", "code", "table"
NUMERALS = "一二三四五六七八九十"


class Piece(NamedTuple):
    """A visible character of a line, or, with an empty one, an address or code in backquotes."""

    char: str
    text: str


def pieces(line: str) -> Iterator[Piece]:
    at, before = 0, ""
    while at < len(line):
        start = at
        if line[at] == "`" and before != "`":
            at = _behind_quoted_code(line, at)
        elif line[at] in "hw" and not _is_name(before):
            address = re.compile(r"(?:https?://|www\.)[\x21-\x7e]*").match(line, at)
            at = address.end() if address else at
        skipped = at > start
        at = at if skipped else at + 1
        if skipped or line[start] not in INVISIBLE:
            before = "" if skipped else line[start]
            yield Piece(before, line[start:at])


def _behind_quoted_code(line: str, start: int) -> int:
    run = re.compile("`+").match(line, start)[0]
    for other in re.compile("`+").finditer(line, start + len(run)):
        if other[0] == run:
            return other.end()
    return start


def _is_letter(char: str) -> bool:
    return bool(re.fullmatch("[A-Za-z]", char))


def _is_name(char: str) -> bool:
    return bool(re.fullmatch("[A-Za-z0-9_]", char))


def _is_blank(char: str) -> bool:
    return not char or is_space(char)


def is_sign(before: str, char: str, after: str) -> bool:
    return {
        **dict.fromkeys("{}=\\", True),
        **dict.fromkeys("([", _is_name(before) or before in (")", "]")),
        "_": _is_name(before) and _is_name(after),
        ":": after in (":", "=") and before != ":",
        ">": before in ("-", "=", "/", ">"),
        "<": _is_letter(after) or after in ("/", "!", "<"),
        "$": not before or _is_letter(after) or after in ("{", "("),
        **dict.fromkeys("&|", after == char),
        ".": "a" <= before <= "z" and _is_letter(after),
        "/": before in ("/", "*") or after == "*",
        "-": _is_blank(before) and (after == "-" or _is_letter(after)),
        **dict.fromkeys("#@", not before and _is_letter(after)),
        ";": not after and (_is_name(before) or before in (")", "]", "}", '"', "'")),
    }.get(char, False)


class Line(NamedTuple):
    text: str
    kind: str
    words: int
    signs: int


def measured(text: str) -> Line:
    chars = [piece.char or " " for piece in pieces(text)]
    while chars and is_space(chars[0]):
        chars.pop(0)
    if not chars:
        return Line(text, CODE if any(not piece.char for piece in pieces(text)) else BLANK, 0, 0)
    signs = sum(is_sign("".join(chars[i - 1 : i]), chars[i], "".join(chars[i + 1 : i + 2])) for i in range(len(chars)))
    words = sum(
        alone(char) or (is_word(char) and (i == 0 or not is_word(chars[i - 1]) or alone(chars[i - 1])))
        for i, char in enumerate(chars)
    )
    pipes, tabs = chars.count("|"), chars.count("\t")
    is_row = (chars[0] == "|" and pipes >= 2) or pipes >= 3 or tabs >= 2
    if is_row and words < 6 * max(pipes, tabs + 1):
        return Line(text, TABLE, words, signs)
    is_code = words and sum(map(alone, chars)) <= 20 and 3 * signs >= words
    return Line(text, CODE if is_code else PROSE, words, signs)


def lines_of(text: str) -> list[Line]:
    lines = [measured(line) for line in text.split("\n")]
    if text.endswith("\n") or not text:
        lines.pop()
    for i in range(1, len(lines)):
        line = lines[i]
        if line.kind != PROSE or lines[i - 1].kind != CODE:
            continue
        inside = i + 1 < len(lines) and lines[i + 1].kind == CODE
        if not line.words or (inside and (line.words <= 4 or line.signs)):
            lines[i] = line._replace(kind=CODE)
    return _fenced(lines)


def _fenced(lines: list[Line]) -> list[Line]:
    i = 0
    while i < len(lines):
        opening = re.match(r"[ \t]*(?:(`{3,})[^`]*|(~{3,})[^~]*)\Z", lines[i].text)
        mark = opening and (opening[1] or opening[2])[0]
        closing = mark and re.compile(rf"[ \t]*{mark}{{3,}}[\x00-\x20]*\Z")
        close = next((j for j in range(i + 1, len(lines)) if closing.match(lines[j].text)), None) if closing else None
        if close is not None:
            for j in range(i, close + 1):
                lines[j] = lines[j]._replace(kind=CODE)
            i = close
        i += 1
    return lines


def prose(text: str) -> str:
    out, empty = "", True
    for line in lines_of(text):
        if line.kind == PROSE:
            out += _without_skipped(line.text) + "\n"
        elif line.kind == BLANK or not empty:
            out += "\n"
        empty = line.kind != PROSE
    return out.rstrip("\n")


def _without_skipped(line: str) -> str:
    """The invisible characters of a line stay."""
    out, at = "", 0
    for piece in pieces(line):
        start = line.index(piece.text, at)
        out += line[at:start] + (piece.char or " ")
        at = start + len(piece.text)
    return out + line[at:]


def shape(text: str) -> tuple[int, ...]:
    visible = code = lines = spoken = named = items = verses = ended = even = before = 0
    for line in lines_of(text):
        size = sum(not is_space(char) and char not in INVISIBLE for char in line.text)
        visible += size
        code += size if line.kind == CODE else 0
        if line.kind != PROSE:
            continue
        lines += 1
        told = _line_of_prose(line.text)
        spoken += told.spoken
        named += told.named and not told.spoken
        items += told.item
        verses += told.verse
        ended += told.verse and told.ended
        even += told.verse and told.length >= 5 and told.length == before
        before = told.length if told.verse else 0
    return visible, code, lines, spoken, named, items, verses, ended, even


class Told(NamedTuple):
    length: int
    spoken: bool
    named: bool
    item: bool
    verse: bool
    ended: bool


_MARKS = ",.;:!?'\"()-，。；：！？、…—–“”‘’「」『』《》（）·～"


def _line_of_prose(text: str) -> Told:
    """Of a line too long for verse, the beginning and the end: the first 64 bytes, and the last character."""
    size = sum(not is_space(char) and char not in INVISIBLE for char in text)
    last = next(char for char in reversed(text) if not is_space(char) and char not in INVISIBLE)
    if size > 60:
        start, text = text, ""
        while len(text.encode()) < 64 and len(text) < len(start):
            text = start[: len(text) + 1]
    chars = [piece.char for piece in pieces(text)]
    plain = all(char and (is_space(char) or class_of(char) & (c.LETTER | c.MARK) or char in _MARKS) for char in chars)
    while chars and is_space(chars[0] or " "):
        chars.pop(0)
    full = [char for char in chars if not _is_blank(char)]
    last = last if size > 60 else full[-1]
    first, second = "".join(full[:1]), (chars[1] or " ") if len(chars) > 1 else ""
    blanks = sum(_is_blank(char) for char in chars)
    width = blanks + sum(2 if alone(char) or char in "，。；：！？、“”" else 1 for char in full)
    colon = next((i for i, char in enumerate(full, 1) if char in ":："), 0)
    item = first in tuple("•●○◦‣▪▶■□◆·") or (_is_blank(second) and first in tuple("-*+>–"))
    return Told(
        length=len(full),
        spoken=first in tuple('“「『"') or (first == second == "—"),
        named=1 < colon <= 12 and size > colon + 1 and last in '.!?。！？…"”」',
        item=item or bool(re.fullmatch("[0-9]", first)),
        verse=size <= 60 and plain and not item and width <= 60,
        ended=last in ',.;:!?，。；：！？…—"”’」』)）',
    )


def widen_punctuation(text: str) -> tuple[str, int]:
    lines, count = [], 0
    for line in lines_of(text):
        wide, widened = _wide(line.text) if line.kind == PROSE else (line.text, 0)
        lines.append(wide)
        count += widened
    end = "\n" if text.endswith("\n") else ""
    return "\n".join(lines) + end, count


def _wide(line: str) -> tuple[str, int]:
    found, at = [], 0
    for piece in pieces(line):
        start = line.index(piece.text, at)
        at = start + len(piece.text)
        found.append((piece.char or "`", start, at))
    out, copied, count, numbered, before = "", 0, 0, True, ""
    for (char, start, stop), following in zip(found, [*found[1:], None], strict=True):
        after = following[0] if following else ""
        numbered = numbered and (before == "" or before in NUMERALS)
        wide = _full_width(before, char, after, numbered)
        if wide:
            out += line[copied:start] + wide
            copied = following[2] if following and after == " " else stop
            count += 1
        before = wide or char
    return out + line[copied:], count


def _full_width(before: str, char: str, after: str, numbered: bool) -> str:
    def has(chars: str, one: str) -> bool:
        return one != "" and (alone(one) or one in chars)

    inside, opens = has("”’》」』）？！", before), has("“‘《「『（", after)
    joins = opens and (_is_name(before) or (before != "" and before in '%)"]'))
    if char in ",;?!" and (inside or joins):
        return "，；？！"[",;?!".index(char)]
    if char == ":" and inside:
        return "："
    ends = _is_blank(after) or opens or after in '”’」』）)"'
    after_number = opens and before != "" and before in "%)"
    return "。" if char == "." and ((inside and ends and not numbered) or after_number) else ""
