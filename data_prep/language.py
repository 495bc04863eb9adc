"""Which language a text is in, by script, and the counts that the rules of both languages share."""

from __future__ import annotations

import re
import unicodedata

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_HAN_WEIGHT = 2.5  # one Chinese character says about what 2.5 Latin letters say, so mixed pages weigh by content


def detect_script(text: str) -> str | None:
    """`"han"`, `"latin"`, or None where neither makes up half of the letters of the text."""
    sample = text if len(text) <= 20_000 else text[:10_000] + text[-10_000:]
    letters = sum(1 for ch in sample if unicodedata.category(ch)[0] == "L")
    han, latin = len(HAN.findall(sample)), len(LATIN.findall(sample))
    if letters == 0 or (han + latin) * 2 < letters:
        return None
    return "han" if han * _HAN_WEIGHT >= latin else "latin"


def normalize(text: str) -> str:
    """NFC, `\\n` line ends, no control characters but tab and newline, no trailing blanks, no runs of empty lines."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(ch for ch in text if ch in "\n\t" or unicodedata.category(ch) not in ("Cc", "Cs"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
