"""Charts as inline SVG whose colours are the page's, so that they follow its light and dark scheme. No script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


Points = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # of a curve: x, and mean, least and most of y


@dataclass(frozen=True)
class Axes:
    """The ranges of a chart, and where on it a point lies."""

    x_least: float
    x_most: float
    y_least: float
    y_most: float

    def across(self, x: float) -> float:
        return LEFT + (x - self.x_least) / max(self.x_most - self.x_least, 1) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y_least) / (self.y_most - self.y_least) * (HEIGHT - TOP - BOTTOM)

    def joined(self, xs: np.ndarray, ys: np.ndarray) -> list[str]:
        """Points as SVG lists them."""
        return [f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in zip(xs, ys, strict=True)]


def line_chart(
    curves: Sequence[Curve], marks: Sequence[Mark] = (), *, unit: str = "", from_zero: bool = False
) -> Markup:
    """Curves over steps; where several points fall into one, their mean with a band from the least to the most."""
    drawn = [(curve, bucketed(curve.x, curve.y, BUCKETS)) for curve in curves]
    drawn = [(curve, points) for curve, points in drawn if len(points[0])]
    if not drawn:
        return Markup('<p class="soft">nothing logged yet</p>')
    axes = _axes([points for _, points in drawn], from_zero)
    parts = [*_grid(axes)]
    for curve, points in drawn:
        parts += _curve(axes, curve, points)
    for mark in marks:
        if axes.x_least <= mark.step <= axes.x_most:
            parts += _mark(axes.across(mark.step), mark)
    parts.append(f'<text class="tick" x="4" y="12">{escape(unit)}</text>')
    legend = "".join(
        f'<span class="key {curve.style}"></span>{escape(curve.name)} &nbsp; ' for curve, _ in drawn if curve.name
    )
    return Markup(
        f'<div class="legend">{legend}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    )


def _axes(drawn: list[Points], from_zero: bool) -> Axes:
    """Ranges that hold all curves, none of them empty."""
    y_least = 0.0 if from_zero else min(float(least.min()) for _, _, least, _ in drawn)
    y_most = max(float(most.max()) for _, _, _, most in drawn)
    if y_most - y_least < LEAST_RANGE:
        half = max(0.5, abs(y_least) / 1000)
        y_least, y_most = y_least - half, y_least + half
    return Axes(min(float(x[0]) for x, *_ in drawn), max(float(x[-1]) for x, *_ in drawn), y_least, y_most)


def _grid(axes: Axes) -> Iterator[str]:
    for tick in ticks(axes.y_least, axes.y_most, 5):
        y = axes.up(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{short(tick)}</text>'
    for tick in ticks(axes.x_least, axes.x_most, 8):
        x = axes.across(tick)
        yield f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{HEIGHT - 10}">{short(tick)}</text>'


def _curve(axes: Axes, curve: Curve, points: Points) -> Iterator[str]:
    x, mean, least, most = points
    if (most > least).any():
        band = [*axes.joined(x, most), *axes.joined(x[::-1], least[::-1])]
        yield f'<polygon class="band {curve.style}" points="{" ".join(band)}"/>'
    line, name = " ".join(axes.joined(x, mean)), escape(curve.name)
    yield f'<polyline class="curve {curve.style}" points="{line}"><title>{name}</title></polyline>'
    if len(x) == 1:
        yield f'<circle class="dot {curve.style}" cx="{axes.across(x[0]):.1f}" cy="{axes.up(mean[0]):.1f}" r="3"/>'


def _mark(x: float, mark: Mark) -> Iterator[str]:
    yield f'<g class="mark {mark.style}"><title>{escape(mark.message)}</title>'
    yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    yield f'<text text-anchor="middle" x="{x:.1f}" y="{TOP - 6}">{escape(mark.label)}</text></g>'


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
