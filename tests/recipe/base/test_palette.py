"""The colours of the pages are seen on both of its grounds, and none has two meanings."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from recipe.base.pages.palette import (
    GROUND,
    LOST,
    OTHER,
    RUN,
    SOURCES,
    TEXT,
    TIMES,
    source_styles,
    style_sheet,
    time_style,
)
from tests.conftest import ROOT

DRAWN = [*SOURCES, *TIMES.values()]
Colour = tuple[float, float, float]


def linear(colour: str) -> Colour:
    """Red, green and blue of a colour, in proportion to light."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return red, green, blue


def contrast(a: str, b: str) -> float:
    """As WCAG 2.2 defines it, from 1 to 21."""
    dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in (linear(a), linear(b)))
    return (light + 0.05) / (dark + 0.05)


def oklab(colour: str) -> Colour:
    """Lightness and two opponent colours (Björn Ottosson, 2020), in which distances are about as people see them."""
    red, green, blue = linear(colour)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the grey that just fails


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_are_seen_on_the_page(scheme):
    for ground in ("page", "panel"):
        low = {name: contrast(pair[scheme], GROUND[ground][scheme]) for name, pair in TEXT.items()}
        assert {name: value for name, value in low.items() if value < 4.5} == {}, ground
    curves = {pair[scheme]: contrast(pair[scheme], GROUND["page"][scheme]) for pair in DRAWN}
    assert {colour: value for colour, value in curves.items() if value < 3} == {}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_no_two_meanings_look_alike(scheme):
    meanings = [pair[scheme] for pair in (*DRAWN, TEXT["bad"], TEXT["warn"])]
    alike = [(a, b) for a, b in itertools.combinations(meanings, 2) if math.dist(oklab(a), oklab(b)) < 0.04]
    assert alike == []


def test_every_style_has_a_colour_in_both_schemes_and_the_template_uses_no_colour_of_its_own():
    sheet = style_sheet()
    styles = [
        *source_styles(map(str, range(20))).values(),
        *map(time_style, (*TIMES, "lost steps", "unheard of")),
        RUN,
        LOST,
    ]
    assert source_styles(map(str, range(20)))["9"] == OTHER  # the last by name
    for style in styles:
        variable = re.search(rf"\.{style} {{ color: var\((--[\w-]+)\)", sheet)
        assert variable is not None, style
        assert len(re.findall(rf"{variable[1]}: #", sheet)) == 3, style  # light, dark, and print
    for template in ("recipe/base/pages/page.html.j2", "recipe/reading/report.html.j2", "data_prep/report.html.j2"):
        text = (ROOT / template).read_text(encoding="utf-8")
        assert re.findall(r"#[0-9a-f]{3,6}\b", text) == [], template
        used = set(re.findall(r"var\((--[\w-]+)\)", text)) - {"--heat", "--shade"}
        assert {name for name in used if f"{name}: #" not in sheet} == set(), template


def test_pages_that_show_the_same_names_give_them_the_same_colours():
    assert source_styles(["zh", "en", "zh"]) == source_styles(["en", "zh"]) == {"en": "s0", "zh": "s1"}
