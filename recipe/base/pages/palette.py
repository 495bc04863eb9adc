"""The colours of the pages: each has one meaning, in a light and in a dark scheme.

Ink is the run as a whole, red a fault or text that is dropped, amber a warning. Sources and languages of text are saturated
colours, parts of time muted ones; neither is near red or amber. tests/recipe/base/test_palette.py holds them to the contrast of WCAG 2.2 (1.4.3, 1.4.11).
"""

from __future__ import annotations

from collections.abc import Iterable

# Variable of the style sheet -> its colour on a light page, on a dark page.
TEXT = {
    "ink": ("#1b2430", "#e7ecf2"),
    "soft": ("#56616e", "#a3afbc"),
    "bad": ("#b3261e", "#ff8a7a"),
    "warn": ("#8a5a00", "#e5b04a"),
}
GROUND = {"page": ("#ffffff", "#14181d"), "line": ("#e1e6ec", "#2c343e"), "panel": ("#f6f8fa", "#1b2128")}
SOURCES = (
    ("#0465af", "#499ded"),
    ("#239d6a", "#79d4a5"),
    ("#6e34b3", "#966bd8"),
    ("#d446a1", "#ff96d3"),
    ("#707900", "#a2ad58"),
    ("#1f9cb4", "#84e1f7"),
    ("#3334a0", "#5d6ac8"),
    ("#2b641d", "#5e8f53"),
    ("#c364d9", "#e6a2f8"),
    ("#912061", "#ba5a8c"),
    ("#056965", "#52948f"),
    ("#8a84e4", "#cccbfd"),
)
# Parts of goodput and phases of a step, by the name that the page shows.
TIMES = {
    "training": ("#3a4f6b", "#7f95b3"),
    "forward": ("#4f7183", "#8fb4c4"),
    "backward": ("#8590ab", "#9aa5c4"),
    "optimizer": ("#8a7a96", "#c8b8d4"),
    "data wait": ("#9b8e74", "#e0d1b8"),
    "checkpoint": ("#705c4b", "#ab9583"),
    "evaluation": ("#6b8f88", "#a9cfc6"),
    "other": ("#57423f", "#84706d"),
    "starting": ("#735a6c", "#a98ea1"),
    "down": ("#2b3f34", "#566b5f"),
}
LOST = "lost"  # style of work that a fault undid: red and dashed
RUN = "run"  # style of a curve of the whole run
OTHER = "soft"  # style of the sources and languages beyond the palette


def source_styles(names: Iterable[str]) -> dict[str, str]:
    """The style of each source or language, by the order of the names: pages that show the same names give them one colour."""
    return {name: f"s{number}" if number < len(SOURCES) else OTHER for number, name in enumerate(sorted(set(names)))}


def time_style(name: str) -> str:
    """The style of a part of time."""
    if name == "lost steps":
        return LOST
    return "t-" + (name if name in TIMES else "other").replace(" ", "-")


def style_sheet() -> str:
    """The variables of both schemes, and a class per style that sets `color`."""
    colours: dict[str, tuple[str, str]] = {**GROUND, **TEXT, **{f"s{n}": pair for n, pair in enumerate(SOURCES)}}
    colours |= {time_style(name): pair for name, pair in TIMES.items()}
    classes = {**{name: name for name in (*TEXT, *colours) if name not in GROUND}, RUN: "ink", LOST: "bad"}
    return "\n".join(
        [
            f":root {{ color-scheme: light dark; {_variables(colours, 0)} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(colours, 1)} }} }}",
            f"@media print {{ :root {{ color-scheme: light; {_variables(colours, 0)} }} }}",
            " ".join(f".{name} {{ color: var(--{variable}); }}" for name, variable in classes.items()),
        ]
    )


def _variables(colours: dict[str, tuple[str, str]], scheme: int) -> str:
    return " ".join(f"--{name}: {pair[scheme]};" for name, pair in colours.items())
