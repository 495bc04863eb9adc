"""Charts as inline SVG whose colours are the page's, so that they follow its light and dark scheme. No script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from recipe.reading.history import DRAWABLE, bucketed

WIDTH, HEIGHT = 1000, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 20, 30
LEAST_RANGE = 1e-200  # of an axis; below it is one number
BUCKETS = 500  # points of a curve, two pixels each


@dataclass(frozen=True)
class Curve:
    name: str
    x: np.ndarray
    y: np.ndarray
    style: str  # class of the page's style sheet: c0, c1, ..., lost


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a line across the chart with a number that the table of events repeats."""

    step: float
    label: str
    message: str
    style: str = "bad"


def line_chart(
    curves: Sequence[Curve], marks: Sequence[Mark] = (), *, unit: str = "", from_zero: bool = False
) -> Markup:
    """Curves over steps; where several points fall into one, their mean with a band from the least to the most."""
    drawn = [(curve, bucketed(curve.x, curve.y, BUCKETS)) for curve in curves]
    drawn = [(curve, points) for curve, points in drawn if len(points[0])]
    if not drawn:
        return Markup('<p class="soft">nothing logged yet</p>')
    x_most = max(float(points[0][-1]) for _, points in drawn)
    x_least = min(float(points[0][0]) for _, points in drawn)
    y_least = 0.0 if from_zero else min(float(points[2].min()) for _, points in drawn)
    y_most = max(float(points[3].max()) for _, points in drawn)
    if y_most - y_least < LEAST_RANGE:
        half = max(0.5, abs(y_least) / 1000)
        y_least, y_most = y_least - half, y_least + half
    across = lambda x: LEFT + (x - x_least) / max(x_most - x_least, 1) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    up = lambda y: HEIGHT - BOTTOM - (y - y_least) / (y_most - y_least) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = []
    for tick in ticks(y_least, y_most, 5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{up(tick) + 4:.1f}">{short(tick)}</text>')
    for tick in ticks(x_least, x_most, 8):
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{across(tick):.1f}" y="{HEIGHT - 10}">{short(tick)}</text>'
        )
    for curve, (x, mean, least, most) in drawn:
        if (most > least).any():
            band = [f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, most, strict=True)]
            band += [f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x[::-1], least[::-1], strict=True)]
            parts.append(f'<polygon class="band {curve.style}" points="{" ".join(band)}"/>')
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, mean, strict=True))
        parts.append(
            f'<polyline class="curve {curve.style}" points="{points}"><title>{escape(curve.name)}</title></polyline>'
        )
        if len(x) == 1:
            parts.append(f'<circle class="dot {curve.style}" cx="{across(x[0]):.1f}" cy="{up(mean[0]):.1f}" r="3"/>')
    for mark in marks:
        if x_least <= mark.step <= x_most:
            at = across(mark.step)
            parts.append(f'<g class="mark {mark.style}"><title>{escape(mark.message)}</title><line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')  # fmt: skip
            parts.append(f'<text text-anchor="middle" x="{at:.1f}" y="{TOP - 6}">{escape(mark.label)}</text></g>')
    parts.append(f'<text class="tick" x="4" y="12">{escape(unit)}</text>')
    legend = "".join(
        f'<span class="key {curve.style}"></span>{escape(curve.name)} &nbsp; ' for curve, _ in drawn if curve.name
    )
    return Markup(
        f'<div class="legend">{legend}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    )


def heatmap(steps: np.ndarray, values_TL: np.ndarray, *, least: float, most: float, columns: int = 160) -> Markup:
    """A cell per layer (down) and stretch of steps (across), coloured by the largest value in it; what is no number is 0."""
    if len(steps) == 0:
        return Markup('<p class="soft">nothing logged yet</p>')
    layers = values_TL.shape[1]
    values_TL = np.nan_to_num(values_TL, nan=0.0, posinf=most, neginf=0.0).clip(max=DRAWABLE / 10)
    cells = [bucketed(steps, values_TL[:, layer], columns) for layer in range(layers)]
    count, height = len(cells[0][0]), max(6, min(22, 280 // layers))
    width = (WIDTH - LEFT - RIGHT) / count
    parts = []
    for layer, (x, _, _, largest) in enumerate(cells):
        for column, value in enumerate(largest):
            share = min(max((value - least) / (most - least), 0), 1)
            parts.append(
                f'<rect class="cell" x="{LEFT + column * width:.1f}" y="{layer * height}" width="{width + 0.3:.1f}" height="{height - 1}" '
                f'style="--heat: {100 * share:.0f}%"><title>MoE layer {layer}, step {x[column]:,.0f}: {value:.2f}</title></rect>'
            )
        if layers <= 16 or layer % 4 == 0:
            parts.append(
                f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{layer * height + height - 3}">{layer}</text>'
            )
    bottom = layers * height + 16
    for left, anchor, step in ((LEFT, "start", steps[0]), (WIDTH - RIGHT, "end", steps[-1])):
        parts.append(f'<text class="tick" text-anchor="{anchor}" x="{left}" y="{bottom}">step {int(step):,}</text>')
    return Markup(f'<svg viewBox="0 0 {WIDTH} {bottom + 6}" role="img">{"".join(parts)}</svg>')


def ticks(least: float, most: float, about: int) -> list[float]:
    """Round numbers between two, about so many."""
    if most - least < LEAST_RANGE:
        return [least]
    raw = (most - least) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10) if m * power >= raw), default=10 * power)
    first = math.ceil(least / step)
    return [k * step for k in range(first, math.floor(most / step) + 1)]


def short(value: float) -> str:
    """A number of few characters: 1.2M, 350k, 0.05."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"
