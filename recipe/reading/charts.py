"""Charts for a page: curves as inline SVG that is stretched to the width there is, and axes as text that keeps its size.

Colours are classes of the page's style sheet, so that they follow its light and dark scheme. No script.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from recipe.reading.history import DRAWABLE, bucketed

WIDTH, HEIGHT = 1000, 240  # units of the drawing; the page decides how many pixels they are
LEAST_RANGE = 1e-200  # of an axis; below it is one number
BUCKETS = 500  # points of a curve, two pixels each on a wide screen
FAR = 3  # times the range of nearly all values; what is farther above them is cut
HEADROOM = 0.05  # of the range, above and below the curves
STEPS = "optimizer step"
NEAR = 0.045 * WIDTH  # labels of marks that are nearer than this are one
SHADES = 24  # of a heatmap
MOST_CELLS = 6000  # of a heatmap
NOTHING = Markup('<p class="soft">Nothing is logged yet.</p>')


@dataclass(frozen=True)
class Curve:
    name: str
    x: np.ndarray
    y: np.ndarray
    style: str  # class of the page's style sheet, see recipe/base/pages/palette.py


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a line across the chart with a number that the table of events repeats."""

    step: float
    number: int
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
        return (x - self.x_least) / (self.x_most - self.x_least) * WIDTH

    def up(self, y: float) -> float:
        return HEIGHT - (y - self.y_least) / (self.y_most - self.y_least) * HEIGHT

    def joined(self, xs: np.ndarray, ys: np.ndarray) -> list[str]:
        """Points as SVG lists them."""
        return [f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in zip(xs, ys, strict=True)]


def line_chart(
    curves: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    y: str,
    from_zero: bool = False,
    cut: bool = False,
    until: float | None = None,
) -> Markup:
    """Curves over steps; where several points fall into one, their mean with a band from the least to the most.

    Args:
        y: name of the vertical axis, with its unit.
        cut: end the axis below values that are far above the others, and say so.
        until: the step that the axis reaches at least.
    """
    drawn = [(curve, bucketed(curve.x, curve.y, BUCKETS)) for curve in curves]
    drawn = [(curve, points) for curve, points in drawn if len(points[0])]
    if not drawn:
        return NOTHING
    limit, largest = _limit([points for _, points in drawn]), max(float(most.max()) for _, (*_, most) in drawn)
    if cut and largest > limit:
        y = f"{y}; values above {short(limit, 3)} are cut, the largest is {short(largest)}"
        drawn = [(curve, _cut(points, limit)) for curve, points in drawn]
    axes = _axes([points for _, points in drawn], from_zero, until)
    drawing = [part for curve, points in drawn for part in _curve(axes, curve, points)]
    inside = sorted((m for m in marks if axes.x_least <= m.step <= axes.x_most), key=lambda m: m.step)
    drawing += [part for mark in inside for part in _mark(axes, mark)]
    return _figure(axes, [curve for curve, _ in drawn], drawing, y, _mark_labels(axes, inside))


def area_chart(curves: Sequence[Curve], *, y: str) -> Markup:
    """Curves of the same steps on top of each other, the first at the bottom; what is no number is 0."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return NOTHING
    heights = np.array([np.where(np.abs(curve.y) < DRAWABLE, curve.y, 0.0) for curve in curves])
    tops = [bucketed(curves[0].x, top, BUCKETS) for top in np.cumsum(heights, axis=0)]
    axes, x = _axes(tops, from_zero=True), tops[0][0]
    if len(x) == 1:  # a single point has no area
        x = np.array([x[0] - 0.5, x[0] + 0.5])
    drawing: list[str] = []
    below = np.zeros(len(x))
    for curve, (_, mean, *_) in zip(curves, tops, strict=True):
        top = np.broadcast_to(mean, x.shape) if len(mean) == 1 else mean
        points = " ".join([*axes.joined(x, top), *axes.joined(x[::-1], below[::-1])])
        drawing.append(
            f'<polygon class="area {curve.style}" points="{points}"><title>{escape(curve.name)}</title></polygon>'
        )
        below = top
    return _figure(axes, curves, drawing, y)


def _figure(axes: Axes, curves: Sequence[Curve], drawing: Sequence[str], y: str, labels: Sequence[str] = ()) -> Markup:
    legend = "".join(
        f'<span><i class="key {curve.style}"></i>{escape(curve.name)}</span>' for curve in curves if curve.name
    )
    lines, numbers = _grid(axes)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}"'
    return _framed(legend, y, svg, [*lines, *drawing], [*numbers, *labels])


def _framed(legend: str, y: str, svg: str, drawing: Sequence[str], labels: Sequence[str], style: str = "") -> Markup:
    """A chart with its legend and the names of its axes; `svg` is how the tag of the drawing begins."""
    return Markup(
        f'<figure class="chart"><figcaption class="legend">{legend}</figcaption><div class="axis">{escape(y)}</div>'
        f'<div class="plot"{style}>{svg} preserveAspectRatio="none" role="img" aria-label="{escape(y)} by {STEPS}">'
        f'{"".join(drawing)}</svg>{"".join(labels)}</div><div class="axis across">{STEPS}</div></figure>'
    )


def _limit(drawn: list[Points]) -> float:
    """The end of an axis that shows nearly all values in most of its height; infinity where they are all alike."""
    low = np.percentile(np.concatenate([least for _, _, least, _ in drawn]), 2)
    high = np.percentile(np.concatenate([most for *_, most in drawn]), 98)
    return float(high + FAR * (high - low)) if high > low else math.inf


def _cut(points: Points, limit: float) -> Points:
    x, *ys = points
    mean, least, most = (np.minimum(values, limit) for values in ys)
    return x, mean, least, most


def _axes(drawn: list[Points], from_zero: bool, until: float | None = None) -> Axes:
    """Ranges that hold all curves, none of them empty."""
    y_least = 0.0 if from_zero else min(float(least.min()) for _, _, least, _ in drawn)
    y_most = max(float(most.max()) for _, _, _, most in drawn)
    if y_most - y_least < LEAST_RANGE:
        half = max(0.5, abs(y_least) / 1000)
        y_least, y_most = (0.0 if from_zero else y_least - half), y_least + half
    headroom = HEADROOM * (y_most - y_least)
    x_least, x_most = min(float(x[0]) for x, *_ in drawn), max(float(x[-1]) for x, *_ in drawn)
    x_most = max(x_most, until or x_most)
    if x_least == x_most:
        x_least, x_most = x_least - 1, x_most + 1
    return Axes(x_least, x_most, y_least - (0 if from_zero else headroom), y_most + headroom)


def _grid(axes: Axes) -> tuple[list[str], list[str]]:
    """Lines of the drawing, and the numbers beside it."""
    across = ticks(axes.y_least, axes.y_most, 5)
    lines = [f'<line class="grid" x1="0" x2="{WIDTH}" y1="{axes.up(t):.1f}" y2="{axes.up(t):.1f}"/>' for t in across]
    numbers = [
        f'<span class="y" style="top: {100 * axes.up(t) / HEIGHT:.2f}%">{label}</span>'
        for t, label in zip(across, labels_of(across), strict=True)
    ]
    return lines, numbers + _x_numbers(axes, _x_ticks(axes.x_least, axes.x_most))


def _x_numbers(axes: Axes, steps: list[float]) -> list[str]:
    return [
        f'<span class="x" style="left: {100 * axes.across(step) / WIDTH:.2f}%">{label}</span>'
        for step, label in zip(steps, labels_of(steps), strict=True)
    ]


def _x_ticks(least: float, most: float) -> list[float]:
    return [tick for tick in ticks(least, most, 7) if tick == round(tick)]


def _curve(axes: Axes, curve: Curve, points: Points) -> Iterator[str]:
    x, mean, least, most = points
    if (most > least).any():
        band = [*axes.joined(x, most), *axes.joined(x[::-1], least[::-1])]
        yield f'<polygon class="band {curve.style}" points="{" ".join(band)}"/>'
    line, name = " ".join(axes.joined(x, mean)), escape(curve.name)
    yield f'<polyline class="curve {curve.style}" points="{line}"><title>{name}</title></polyline>'
    if len(x) <= 12:  # few points are seen as points; a stroke of no length keeps round in a stretched drawing
        dots = "".join(f"M{at.replace(',', ' ')}h0" for at in axes.joined(x, mean))
        yield f'<path class="dot {curve.style}" d="{dots}"/>'


def _mark(axes: Axes, mark: Mark) -> Iterator[str]:
    x = axes.across(mark.step)
    yield f'<g class="mark {mark.style}"><title>{escape(mark.message)}</title>'
    yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/></g>'


def _mark_labels(axes: Axes, marks: Sequence[Mark]) -> list[str]:
    """The numbers above the marks; of those too near to each other, the first and the last."""
    groups: list[list[Mark]] = []
    for mark in marks:
        if groups and axes.across(mark.step) - axes.across(groups[-1][0].step) < NEAR:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [_mark_label(axes, group) for group in groups]


def _mark_label(axes: Axes, group: Sequence[Mark]) -> str:
    numbers = sorted({mark.number for mark in group})
    text = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
    style = min((mark.style for mark in group), key=("bad", "warn", "soft").index)
    x = (axes.across(group[0].step) + axes.across(group[-1].step)) / 2
    return f'<span class="number {style}" style="left: {100 * x / WIDTH:.2f}%">{text}</span>'


def heatmap(
    steps: np.ndarray, values_TL: np.ndarray, *, least: float, most: float, y: str, scale: tuple[str, str]
) -> Markup:
    """A cell per layer (down) and stretch of steps (across), shaded by the largest value in it; what is no number is 0.

    Args:
        y: name of the vertical axis.
        scale: what the ends of the scale of shades mean.
    """
    if len(steps) == 0 or values_TL.ndim < 2 or values_TL.shape[1] == 0:
        return NOTHING
    layers = values_TL.shape[1]
    values_TL = np.nan_to_num(values_TL, nan=0.0, posinf=most, neginf=0.0).clip(max=DRAWABLE / 10)
    columns = min(160, max(20, MOST_CELLS // layers))
    cells = [bucketed(steps, values_TL[:, layer], columns) for layer in range(layers)]
    shades_LC = np.array([largest for *_, largest in cells])
    shades_LC = np.rint(((shades_LC - least) / (most - least)).clip(0, 1) * (SHADES - 1)).astype(int)
    height = min(22, max(7, 320 // layers))  # px of a layer
    legend = f"<span>{escape(scale[0])}</span>{_scale()}<span>{escape(scale[1])}</span>"
    svg = f'<svg class="heat" viewBox="0 0 {shades_LC.shape[1]} {layers}"'
    drawing = [*_shaded(shades_LC), *_ranges(values_TL, shades_LC.shape[1])]
    return _framed(legend, y, svg, drawing, _heat_labels(steps, layers), f' style="height: {height * layers}px"')


def _ranges(values_TL: np.ndarray, width: int) -> Iterator[str]:
    """What a pointer over a layer shows."""
    for layer, values in enumerate(values_TL.T):
        text = f"MoE layer {layer}: {values.min():.2f} to {values.max():.2f}, last {values[-1]:.2f}"
        yield f'<rect class="hover" x="0" y="{layer}" width="{width}" height="1"><title>{text}</title></rect>'


def _heat_labels(steps: np.ndarray, layers: int) -> list[str]:
    """The numbers of layers and steps."""
    shown = range(0, layers, 1 if layers <= 16 else 4)
    numbers = [f'<span class="y" style="top: {100 * (at + 0.5) / layers:.2f}%">{at}</span>' for at in shown]
    first, last = float(steps[0]), float(steps[-1])
    axes = Axes(first, last, 0.0, 1.0) if last > first else Axes(first - 1, first + 1, 0.0, 1.0)
    return numbers + _x_numbers(axes, _x_ticks(first, last))


def _shaded(shades_LC: np.ndarray) -> Iterator[str]:
    """A path per shade, of the stretches of cells that have it."""
    paths: dict[int, list[str]] = {}
    for layer, row in enumerate(shades_LC):
        begins = np.flatnonzero(np.diff(row, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(row)], strict=True):
            paths.setdefault(int(row[begin]), []).append(f"M{begin} {layer}h{end - begin}v1h-{end - begin}z")
    for shade, parts in sorted(paths.items()):
        yield f'<path class="cell" style="--heat: {_percent(shade)}%" d="{"".join(parts)}"/>'


def _scale() -> str:
    """The shades from the least to the most."""
    steps = "".join(f'<b style="--heat: {_percent(shade)}%"></b>' for shade in range(SHADES))
    return f'<span class="scale" aria-hidden="true">{steps}</span>'


def _percent(shade: int) -> int:
    return round(100 * shade / (SHADES - 1))


def ticks(least: float, most: float, about: int) -> list[float]:
    """Round numbers between two, about so many."""
    if most - least < LEAST_RANGE:
        return [least]
    raw = (most - least) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10) if m * power >= raw), default=10 * power)
    first = math.ceil(least / step)
    return [k * step for k in range(first, math.floor(most / step) + 1)]


def labels_of(values: Sequence[float]) -> list[str]:
    """Short texts of the numbers of an axis, with as many digits as tell them apart."""
    for digits in range(4, 16):
        labels = [short(value, digits) for value in values]
        if len(set(labels)) == len(values):
            break
    return labels if values else []


def short(value: float, digits: int = 4) -> str:
    """A number of few characters: 1.2M, 350k, 0.05. B is billion, as for tokens and parameters."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.{digits}g}{letter}"
    return f"{value:.{digits}g}"
