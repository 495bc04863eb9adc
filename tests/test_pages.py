"""The measure of a page's layout sees what does not fit, and nothing else."""

from __future__ import annotations

from tests.pages import DESKTOP, PHONE, measured

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"></head><body>
<p>Text that wraps. <svg viewBox="0 0 780 40" style="width: 100%"><text y="20" font-size="12">shrunk</text></svg></p>
<div style="overflow-x: auto"><div style="width: 2000px">in a box that scrolls</div></div>
WIDE</body></html>"""


def test_what_leaves_a_page_or_is_too_small_to_read_is_named(tmp_path):
    good, wide = tmp_path / "good.html", tmp_path / "wide.html"
    good.write_text(PAGE.replace("WIDE", ""))
    wide.write_text(PAGE.replace("WIDE", '<div class="wide" style="width: 700px">wide</div>'))
    problems = {(title, width): kinds for title, width, kinds in measured([good, wide], PHONE, DESKTOP)}
    folder = tmp_path.name
    assert [(kind, element) for kind, element, _ in problems[f"{folder}/good.html", PHONE]] == [("small", "text")]
    assert problems[f"{folder}/good.html", DESKTOP] == []
    assert problems[f"{folder}/wide.html", DESKTOP] == []
    assert {element for kind, element, _ in problems[f"{folder}/wide.html", PHONE] if kind == "leaves"} == {
        "div.wide",
        "document",
    }
