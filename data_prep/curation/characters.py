"""The native scans, with the classes and lower case of code points that they work by.

The database is Unicode 3.2's, which every Python carries beside its own: so a signature does not depend on the
version of Python. Characters that came later are letters, but for the blocks of pictographs, which are symbols.
Invisible characters have no class in the scans, whatever they have here; native/characters.hpp lists them.
"""

from __future__ import annotations

import unicodedata

import numpy as np

from data_prep import _native as native

LETTER, NUMBER, HAN, SPACE, PUNCTUATION, MARK, UPPER, SYMBOL = (1 << bit for bit in range(8))
_BY_CATEGORY = {"L": LETTER, "N": NUMBER, "P": PUNCTUATION, "M": MARK, "S": SYMBOL, "Z": SPACE}
_HAN_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_BLANK_CONTROLS = (*range(0x09, 0x0E), *range(0x1C, 0x20), 0x85)  # those that str.isspace has
_DATABASE = unicodedata.ucd_3_2_0
_SCANNED = 0x20000  # planes 0 and 1; of those above only the Han blocks have a class


def _class_of(code: int) -> int:
    category = _DATABASE.category(chr(code))
    if category == "Cn":
        return SYMBOL if code >= 0x1F000 else LETTER
    if code in _BLANK_CONTROLS:
        return SPACE
    return _BY_CATEGORY.get(category[0], 0) | (UPPER if category == "Lu" else 0)


def classes() -> np.ndarray:
    """uint8 [0x323B0]: the class bits of each code point."""
    table = np.zeros(_HAN_BLOCKS[-1][1] + 1, np.uint8)
    table[:_SCANNED] = [_class_of(code) for code in range(_SCANNED)]
    for first, last in _HAN_BLOCKS:
        table[first : last + 1] = LETTER | HAN
    return table


def lower() -> np.ndarray:
    """uint32 [0x20000]: the lower case of each code point that has a single one in Unicode 3.2, else itself."""
    table = np.arange(_SCANNED, dtype=np.uint32)
    for code in range(_SCANNED):
        small = chr(code).lower()
        if len(small) == 1 and ord(small) != code and "Cn" not in map(_DATABASE.category, (chr(code), small)):
            table[code] = ord(small)
    return table


native.set_characters(classes(), lower())  # so the scans are to be had from here alone
