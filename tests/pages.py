"""What a real browser, without network, makes of an HTML page: its pixels, and what does not fit on a screen of some width."""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.clusters import need
from tests.conftest import ROOT

SCREENSHOTS = ROOT / "work" / "screenshots"  # kept, to be looked at
PHONE, DESKTOP = 390, 1280  # px, widths of screens
LEAST_TEXT_PX = 11

# Runs in a frame that holds a page. An element that its own box scrolls or cuts does not leave
# the page; text that leaves its drawing is cut.
_MEASURE = """
addEventListener("load", () => {
  const width = document.documentElement.clientWidth, problems = [];
  const name = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + [...e.classList].map(c => "." + c).join("");
  const fits = box => box.right <= width + 0.5 && box.left >= -0.5;
  const boxed = e => {
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== "visible") return true;
    return false;
  };
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width === 0 || box.height === 0) continue;
    if (!fits(box) && !boxed(e)) problems.push(["leaves", name(e), Math.round(box.right)]);
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const svg = e.ownerSVGElement?.getBoundingClientRect();
    if (svg && (box.right > svg.right + 0.5 || box.bottom > svg.bottom + 0.5)) problems.push(["leaves", name(e), Math.round(box.right)]);
    const scale = e.ownerSVGElement ? e.getScreenCTM().d : 1, size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (size < LEAST_TEXT - 0.05) problems.push(["small", name(e), size.toFixed(1)]);
  }
  const whole = document.documentElement.scrollWidth;
  if (whole > width) problems.push(["leaves", "document", whole]);
  const line = parent.document.createElement("pre");
  line.className = "measured";
  line.textContent = JSON.stringify([TITLE, width, problems]);
  parent.document.body.append(line);
});
"""


def leaving(pages: Path | Sequence[Path], *widths: int) -> list[str]:
    """The elements that reach past the edge of a screen of these widths, in px, in one start of the browser."""
    return _named(measured(pages, *widths), "leaves", "reaches {} px")


def small_text(pages: Path | Sequence[Path], *widths: int) -> list[str]:
    """The elements whose text is smaller than LEAST_TEXT_PX on a screen of these widths."""
    return _named(measured(pages, *widths), "small", "has text of {} px")


Measured = list[tuple[str, int, list[tuple[str, str, float]]]]  # name of a page, width, problems: kind, element, px


def measured(pages: Path | Sequence[Path], *widths: int) -> Measured:
    """All that is wrong with the layout of pages at all widths, in one start of the browser."""
    paths = [pages] if isinstance(pages, Path) else list(pages)
    frames = [_frame(path, width) for path in paths for width in widths]
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "frames.html"
        wrapper.write_text("<!doctype html><meta charset=utf-8>" + "".join(frames), encoding="utf-8")
        dom = _browse(
            wrapper, "--dump-dom", "--hide-scrollbars", "--window-size=1600,1000", f"--user-data-dir={folder}/user"
        )
    results = [json.loads(html.unescape(line)) for line in re.findall(r'<pre class="measured">(.*?)</pre>', dom)]
    assert len(results) == len(frames), f"the browser measured {len(results)} of {len(frames)} frames"
    return [
        (title, width, [(kind, element, px) for kind, element, px in problems]) for title, width, problems in results
    ]


def _named(results: Measured, wanted: str, phrase: str) -> list[str]:
    return [
        f"{title} at {width} px: {element} {phrase.format(px)}"
        for title, width, problems in results
        for kind, element, px in problems
        if kind == wanted
    ]


def _frame(page: Path, width: int) -> str:
    """A frame as wide as a screen; its page and this script see no other one."""
    script = _MEASURE.replace("TITLE", json.dumps(f"{page.parent.name}/{page.name}")).replace(
        "LEAST_TEXT", str(LEAST_TEXT_PX)
    )
    text = page.read_text(encoding="utf-8") + f"<script>{script}</script>"
    return f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(text)}"></iframe>\n'


def screenshot(page: Path, name: str, *, width: int = 1100, height: int = 3000, dark: bool = False) -> np.ndarray:
    """A picture of a page, kept as SCREENSHOTS/name.png: pixels [height, width, 3]."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    target = SCREENSHOTS / f"{name}.png"
    target.unlink(missing_ok=True)
    scheme = "dark" if dark else "light"
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "frame.html"  # a window is never narrower than 500 px, a frame is
        wrapper.write_text(
            f'<!doctype html><meta charset=utf-8><style>:root {{ color-scheme: {scheme}; }} body {{ margin: 0; }}</style>'
            f'<iframe style="width: {width}px; height: {height}px; border: 0; display: block" '
            f'srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe>',
            encoding="utf-8",
        )  # fmt: skip
        _browse(wrapper, f"--screenshot={target}", f"--window-size={max(width, 500)},{height}", "--hide-scrollbars",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder}/user")  # fmt: skip
    pixels = np.asarray(Image.open(target).convert("RGB"))[:height, :width]
    Image.fromarray(pixels).save(target)
    return pixels.astype(int)


def _browse(page: Path, *options: str) -> str:
    """The browser's output."""
    need("chromium", package="chromium")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [*words, *options, page.as_uri()], check=True, capture_output=True, timeout=120, encoding="utf-8"
    )
    return done.stdout
