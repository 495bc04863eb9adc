"""Text is repaired and composed without harm to what was right, in linear time."""

from __future__ import annotations

import random
import unicodedata

import pytest

from data_prep.curation.cleaning import normalize


def is_mark(char: str) -> bool:
    return unicodedata.combining(char) > 0


@pytest.mark.parametrize(
    "marks", ["\u0301", "\u0301\u0327", "\u0344", "\u0f73\u0f74", "\u0610\U0001d165", "\u1ab0"], ids=ascii
)
@pytest.mark.parametrize("base", ["a", "\u01d8", "中", ""], ids=ascii)
def test_of_marks_in_a_row_the_first_thirty_stay(base, marks):
    for times in (1, 5, 10, 30, 31, 1000):
        text = normalize(f"one {base}{marks * times}b two")
        first = unicodedata.normalize("NFC", base + (marks * times)[:30])
        assert first.startswith(text[4:-5])
        assert sum(map(is_mark, text)) == min(30, sum(map(is_mark, first)))
        assert text == normalize(text) == unicodedata.normalize("NFC", text)
        assert (text[:4], text[-5:]) == ("one ", "b two")


def test_a_mark_is_counted_in_its_own_row():
    rng = random.Random(5)
    zalgo = "".join(
        c + "".join(chr(rng.randrange(0x300, 0x340)) for _ in range(rng.randrange(31))) for c in "zalgo" * 9
    )
    assert normalize(zalgo) == unicodedata.normalize("NFC", zalgo)
    assert normalize("x" + "\u0301\u0327" * 15 + "\u0301") == normalize("x" + "\u0301\u0327" * 15)


def test_unicode_orders_no_long_row(monkeypatch):
    """Python takes 29 s for these 200,000 marks."""
    rows = []
    monkeypatch.setattr(
        "data_prep.curation.cleaning.unicodedata",
        type("Rows", (), {"normalize": lambda form, text: rows.append(len(text)) or text}),
    )
    normalize("a" + "\u0301\u200b\u0327" * 100_000)  # nor one that appears once the invisible is gone
    assert rows == [31]


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\x0c", "\x1c", "\r", "\r\n"], ids=ascii)
@pytest.mark.parametrize(
    "line",
    [
        "The café’s menu is here.",
        "Beyoncé’s song",
        "the café’s “café”",
        "the café’s «café»",
        "L’ÉTÉ’S CAFÉ",
        "中文é’",
        "itâ€™s a cafÃ©",
        "itâ\x80\x99s a cafÃ©",
    ],
)
def test_a_line_end_is_one_beside_letters_that_can_be_wrongly_read_bytes(line, end):
    repaired = normalize(line)
    assert normalize(f"{line}{end}Second{end}{end}third") == f"{repaired}\nSecond\n\nthird"


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("don\x92t wait\x85 no", "don’t wait… no"),
        ("a café \x93yes\x94\x85 no", "a café “yes”… no"),
        ("\x80 5 for the café’s menu\x85", "€ 5 for the café’s menu…"),
        ("Â\x93yesÂ\x94Â\x85 no", "“yes”… no"),
        ("mogÄ\x85 byÄ\x87", "mogą być"),
        ("Ñ\x85Ð¾Ñ\x80Ð¾Ñ\x88Ð¾", "хорошо"),
        ("Ù\x85Ø±Ø\xadØ¨Ø§", "مرحبا"),
        ("å\x85¨é\x83¨", "全部"),
    ],
)
def test_the_byte_of_a_next_line_is_what_it_was_in_text_wrongly_read(text, repaired):
    assert normalize(text) == repaired
