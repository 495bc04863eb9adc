"""The flow of text through the stages, drawn as SVG: columns of text by language, bands of what stays, red for what goes.

It is drawn twice, for wide screens from left to right and for narrow ones from top to bottom, so that text keeps its size. Both
have one geometry: `along` is the direction of the flow, `across` that of the amounts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from data_prep.core.tally import merged
from data_prep.reporting.flow import Column, Lost
from data_prep.reporting.quantities import counted, percent, size
from data_prep.reporting.stages import OTHERS
from recipe.base.pages.palette import OTHER

BAR = 14  # px, of a column along the flow
LEAST = 2.0  # px, of what is not nothing
LINE, LETTER, BOLD = 17, 7.2, 7.9  # px, from line to line of text, and of a letter of it
WIDTH = 1088  # px, of the page
HEIGHT, BELOW = 250, 46  # px, of the largest column of the wide drawing, and from there to where what goes ends


Styles = Mapping[str, str]  # language -> its style on the page, in the order of the styles; others have OTHER


def _grouped(amounts: Mapping[str, int], styles: Styles) -> dict[str, int]:
    """Amounts by style, in the order of the styles."""
    named = {styles[lang]: amounts[lang] for lang in styles if lang in amounts and styles[lang] != OTHER}
    others = sum(amounts.values()) - sum(named.values())
    return {**named, OTHER: others} if others else named


@dataclass(frozen=True)
class Frame:
    """Where a drawing has its parts, in px.

    Args:
        wide: along the flow is x; otherwise it is y.
        starts: of the columns, along the flow.
        across: where amounts begin, and their whole length.
    """

    wide: bool
    starts: list[float]
    across: float
    length: float

    def point(self, along: float, across: float) -> str:
        return f"{along:.1f},{across:.1f}" if self.wide else f"{across:.1f},{along:.1f}"

    def rect(self, kind: str, along: float, across: float, thick: float, length: float) -> str:
        x, y, w, h = (along, across, thick, length) if self.wide else (across, along, length, thick)
        return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>'

    def band(self, kind: str, start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
        """From (along, across, length) to the same of the other end."""
        (a, b, m), (c, d, n) = start, end
        middle, p = (a + c) / 2, self.point
        return (
            f'<path class="{kind}" d="M{p(a, b)} C{p(middle, b)} {p(middle, d)} {p(c, d)} '
            f'L{p(c, d + n)} C{p(middle, d + n)} {p(middle, b + m)} {p(a, b + m)} Z"/>'
        )


def _text(x: float, y: float, lines: Sequence[tuple[str, str]]) -> str:
    """Lines below each other, each with its class."""
    return "".join(
        f'<text class="{kind}" x="{x:.1f}" y="{y + number * LINE:.1f}">{escape(line)}</text>'
        for number, (kind, line) in enumerate(lines)
    )


def _label(column: Column) -> list[tuple[str, str]]:
    return [("name", column.name), *(("", line) for line in column.lines)]


def _lost_lines(lost: Lost, before: Column) -> list[tuple[str, str]]:
    """What is written at the red part: how much goes, and why most of it does."""
    lines: list[tuple[str, str]] = []
    if lost.documents:
        lines.append(("lost", f"− {counted(lost.documents, 'document')}"))
    if lost.bytes:
        lines.append(("lost", f"− {size(lost.bytes)} ({percent(lost.bytes / sum(before.amounts.values()))})"))
    if lost.main is not None:
        lines.append(("why", f"most ({lost.main.documents:,}): {lost.main.sentence}"))
    return lines


def sankey(flow: Sequence[Column], styles: Styles) -> Markup:
    """Both drawings of one flow; the page's style shows the one that fits."""
    return Markup(_wide(flow, styles) + _narrow(flow, styles))


def _wide(flow: Sequence[Column], styles: Styles) -> str:
    token_lines = _token_lines(flow[-1], styles)
    right = BAR + 8 + LETTER * max((len(line) for _, lines in token_lines for line in lines), default=0)
    right = max(right, BOLD * max(len(line) for _, line in _label(flow[-1])))
    step = max(_label_width(flow), (WIDTH - right) / max(1, len(flow) - 1))
    top = 11 + LINE * max(len(_label(column)) for column in flow)
    frame = Frame(True, [step * i for i in range(len(flow))], top, HEIGHT)
    shapes, ends = _shapes(frame, flow, styles, BELOW)
    texts = []
    deepest = 0
    for number, column in enumerate(flow):
        start = frame.starts[number]
        texts.append(_text(start, 14, _label(column)))
        if column.lost is not None:
            lines = _wrapped(_lost_lines(column.lost, flow[number - 1]), step - 10)
            texts.append(_text(frame.starts[number - 1], top + HEIGHT + BELOW + LINE, lines))
            deepest = max(deepest, len(lines))
    texts.append(_languages_in(frame, ends[0], styles))
    tokens, bottom = _tokens_beside(frame.starts[-1] + BAR + 8, token_lines, ends[-1])
    width = frame.starts[-1] + right
    height = max(bottom, top + HEIGHT + (BELOW + (deepest + 1) * LINE if deepest else LINE))
    return _svg("wide", width, height, [*shapes, *texts, tokens], flow)


def _label_width(flow: Sequence[Column]) -> float:
    """What the labels of two columns and of what is lost between them need from one column to the next."""
    names = [BOLD * len(column.name) for column in flow]
    labels = [LETTER * len(line) for column in flow[:-1] for line in column.lines]
    lost = [BOLD * len(f"− {counted(column.lost.documents, 'document')}") for column in flow if column.lost]
    return 8 + max(names + labels + lost)


def _narrow(flow: Sequence[Column], styles: Styles) -> str:
    across, beside, width = 170, 188, 358
    starts, texts, at = [0.0], [], 0.0
    for number, column in enumerate(flow):
        lines = _wrapped(_label(column), width - beside)
        following = flow[number + 1] if number + 1 < len(flow) else None
        if following is not None and following.lost is not None:
            lines += [("", ""), *_wrapped(_lost_lines(following.lost, column), width - beside)]
        texts.append(_text(beside, at + 12, lines))
        at += max(90.0, len(lines) * LINE + 16)
        starts.append(at)
    frame = Frame(False, starts[:-1], 0, across)
    shapes, _ = _shapes(frame, flow, styles, 8)
    bottom = starts[-2] + max(BAR, len(_wrapped(_label(flow[-1]), width - beside)) * LINE) + 14
    tokens = _wrapped([("", ", ".join(lines)) for _, lines in _token_lines(flow[-1], styles)], width)
    texts.append(_text(0, bottom + 4, tokens))
    return _svg("narrow", width, bottom + len(tokens) * LINE, shapes + texts, flow)


def _wrapped(lines: Sequence[tuple[str, str]], width: float) -> list[tuple[str, str]]:
    """Lines that are no wider than so many px."""
    return [
        (kind, part)
        for kind, line in lines
        for part in textwrap.wrap(line, int(width / (BOLD if kind in ("name", "lost") else LETTER))) or [""]
    ]


def _svg(kind: str, width: float, height: float, shapes: Sequence[str], flow: Sequence[Column]) -> str:
    name = "Text through " + ", ".join(column.name for column in flow[1:])
    size_ = f'style="min-width: {width:.0f}px" ' if kind == "wide" else ""
    return (
        f'<svg class="flow {kind}" {size_}viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(name)}">{"".join(shapes)}</svg>'
    )


Ends = dict[str, tuple[float, float]]  # style -> where its amount begins across the flow, and its length


def _shapes(frame: Frame, flow: Sequence[Column], styles: Styles, below: float) -> tuple[list[str], list[Ends]]:
    """Columns and bands, and where the amounts of each column lie; what goes ends `below` the amounts."""
    whole = max(1, *(sum(column.amounts.values()) for column in flow))
    scale = (frame.length - LEAST * (len(set(styles.values())) + 1)) / whole
    bands, bars = [], []
    every: list[Ends] = []
    for number, column in enumerate(flow):
        start = frame.starts[number]
        amounts = _grouped(column.amounts, styles)
        ends = _stacked(amounts, scale, frame.across)
        for style, (across, length) in ends.items():
            bars.append(frame.rect(f"{style}{' passed' if column.passed else ''}", start, across, BAR, length))
        for style, amount in _grouped(column.held_out, styles).items():
            across, length = ends[style]
            held = min(length, max(LEAST, amount * scale))
            bars.append(frame.rect("held", start, across + length - held, BAR, held))
        if number:
            left = frame.starts[number - 1] + BAR
            bands += _bands(frame, (left, every[-1]), (start, ends), column.lost, below)
        every.append(ends)
    return bands + bars, every


def _stacked(amounts: Mapping[str, int], scale: float, start: float) -> Ends:
    at_the_end: Ends = {}
    for style, amount in amounts.items():
        if amount:
            length = max(LEAST, amount * scale)
            at_the_end[style] = (start, length)
            start += length
    return at_the_end


def _bands(
    frame: Frame, before: tuple[float, Ends], after: tuple[float, Ends], lost: Lost | None, below: float
) -> list[str]:
    """What stays of each language, and what goes: all of it together, beyond the end of the amounts."""
    (left, sources), (right, targets) = before, after
    bands, gone = [], []
    for style, (across, length) in sources.items():
        target = targets.get(style)
        stays = min(length, target[1]) if target else 0.0
        if target:
            bands.append(frame.band(f"{style} band", (left, across, stays), (right, *target)))
        if lost is not None and length - stays > 0.01:
            gone.append((across + stays, max(LEAST, length - stays)))
    if not gone:
        return bands
    total = sum(length for _, length in gone)
    middle = left + 0.55 * (right - left)
    across = frame.across + frame.length + below - max(LEAST, total)
    first = across
    for start, length in gone:
        bands.append(frame.band("bad band", (left, start, length), (middle, across, length)))
        across += length
    bands.append(frame.rect("bad", middle, first, 6, max(LEAST, total)))
    return bands


def _languages_in(frame: Frame, ends: Ends, styles: Styles) -> str:
    """The names of the languages in the first band of each, where it is high enough."""
    return "".join(
        _text(frame.starts[0] + BAR + 6, ends[style][0] + 15, [("", lang)])
        for lang, style in styles.items()
        if style != OTHER and style in ends and ends[style][1] >= 20
    )


def _token_lines(column: Column, styles: Styles) -> list[tuple[str, list[str]]]:
    """The style and the tokens of each language, of those without a colour together."""
    others = merged(tokens for lang, tokens in column.tokens.items() if styles.get(lang, OTHER) == OTHER)
    shown = [
        (style, lang, column.tokens[lang]) for lang, style in styles.items() if style != OTHER and lang in column.tokens
    ]
    of_each = []
    for style, name, tokens in [*shown, *([(OTHER, OTHERS, others)] if others else [])]:
        held_out = [f"{tokens['held_out']:,} held out"] if tokens.get("held_out") else []
        of_each.append((style, [f"{name}: {tokens.get('train', 0):,} training", *held_out]))
    return of_each


def _tokens_beside(x: float, tokens: Sequence[tuple[str, list[str]]], ends: Ends) -> tuple[str, float]:
    """Tokens beside their part of the last column and not over one another, and where they end."""
    texts, at = [], 0.0
    for style, lines in tokens:
        at = max(at, ends.get(style, (at, 0.0))[0] + 12)
        texts.append(_text(x, at, [("", line) for line in lines]))
        at += LINE * len(lines) + 4
    return "".join(texts), at
