"""The README's figure: planned days and cost of 1T tokens for each shipped ds_config, as an SVG file.

The file brings its own background and follows the reader's light or dark scheme, which a page cannot do for an image.
Text is large for its width, so that it can be read on a phone: 18 of 640 units are 10 of 358 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from recipe.planner.plan import Plan
from recipe.planner.search.shipped import named, plans
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC

WIDTH, MARGIN, GAP = 640, 24, 32
TOP, ROW, FOOT = 116, 62, 66  # of the first row, a row, and the axes below the rows
BAR_AT, BAR = 25, 16  # of a bar below the top of its row, and its height
PANEL = (WIDTH - 2 * MARGIN - GAP) / 2
DRAWN = 0.82  # of a panel's width, up to the largest number; the rest is for the number beside it
STYLE = """
  .panel { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; font: 18px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
  .title { font-size: 23px; font-weight: 600; }
  .soft { fill: #59636e; }
  .value { font-weight: 600; }
  .grid { stroke: #d8dee4; }
  .days { fill: #54aeff; } .cost { fill: #4ac26b; }
  .range { stroke: #1f2328; stroke-width: 2; fill: none; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #0d1117; stroke: #3d444d; }
    text { fill: #f0f6fc; }
    .soft { fill: #9198a1; }
    .grid { stroke: #30363d; }
    .days { fill: #1f6feb; } .cost { fill: #238636; }
    .range { stroke: #f0f6fc; }
  }
"""


@dataclass(frozen=True)
class Range:
    """What is expected of a plan, between the optimistic and the conservative end."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One quantity of all plans, on an axis from 0."""

    name: str
    style: str
    left: float
    ranges: tuple[Range, ...]
    step: float  # between two ticks

    def across(self, value: float) -> float:
        return self.left + value / max(r.high for r in self.ranges) * DRAWN * PANEL


def plans_figure() -> str:
    """The SVG text."""
    shipped = plans()
    labels = [_label(name, model, plan) for name, (model, plan) in shipped.items()]
    ranges = {quantity: tuple(_range(plan, quantity) for _, plan in shipped.values()) for quantity in ("days", "usd")}
    panels = (
        Panel("days of training", "days", MARGIN, ranges["days"], step=50),
        Panel("cost, 1,000 USD", "cost", MARGIN + PANEL + GAP, ranges["usd"], step=100),
    )
    height, title = TOP + ROW * len(labels) + FOOT, "Planned days and cost of one trillion tokens"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(MARGIN, 38, title, "title"),
        _text(MARGIN, 66, "Planned, not measured. Cost at list prices of a GPU-hour.", "soft"),
        _text(MARGIN, 91, "Bar: expected. Line: optimistic to conservative.", "soft"),
        *(part for panel in panels for part in _axis(panel, len(labels), height - FOOT)),
    ]
    for number, label in enumerate(labels):
        y = TOP + ROW * number
        parts.append(_text(MARGIN, y + 16, label))
        parts += [_bar(panel, panel.ranges[number], y + BAR_AT) for panel in panels]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _label(name: str, model: str, plan: Plan) -> str:
    """The model, which differs from row to row, the GPUs, and their network and expert parallelism where not the usual."""
    network = ", a NIC per GPU" if named(name).interconnect.startswith("8x") and plan.work.cluster.nodes > 1 else ""
    ep = f", EP {plan.work.ep}" if named(name).beside else ""
    return f"{model} on {plan.work.ranks:,} {plan.work.cluster.accelerator.name.upper()}{network}{ep}"


def _range(plan: Plan, quantity: str) -> Range:
    costs = [plan.cost(assumed) for assumed in (OPTIMISTIC, EXPECTED, CONSERVATIVE)]
    return Range(*(cost.days if quantity == "days" else cost.usd / 1000 for cost in costs))


def _axis(panel: Panel, rows: int, bottom: float) -> Iterator[str]:
    """Lines behind the bars at round numbers, the numbers, and their unit."""
    most = max(r.high for r in panel.ranges)
    for k in range(int(most / panel.step) + 1):
        x = panel.across(k * panel.step)
        lines = "".join(f"M{x:.1f} {TOP + ROW * row + BAR_AT - 3}v{BAR + 6}" for row in range(rows))
        yield f'<path class="grid" d="{lines}"/>'
        yield _text(x, bottom + 20, f"{k * panel.step:g}", "soft", anchor="middle" if k else "start")
    yield _text(panel.left, bottom + 46, panel.name)


def _bar(panel: Panel, r: Range, y: float) -> str:
    low, expected, high = (panel.across(value) for value in (r.low, r.expected, r.high))
    middle = y + BAR / 2
    shown = f"{r.expected:.1f}" if r.expected < 10 else f"{r.expected:.0f}"
    return (
        f'<rect class="{panel.style}" x="{panel.left:.1f}" y="{y}" width="{expected - panel.left:.1f}" height="{BAR}"/>'
        f'<path class="range" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {y + 3}v{BAR - 6}M{high:.1f} {y + 3}v{BAR - 6}"/>'
        + _text(high + 8, y + 14, shown, "value")
    )


def _text(x: float, y: float, words: str, style: str = "", *, anchor: str = "start") -> str:
    of_style = f' class="{style}"' if style else ""
    at = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{of_style}{at} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
