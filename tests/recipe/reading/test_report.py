"""The report of a run is a page that a browser shows, whatever happened and however long it took."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from recipe.report import report
from tests.clusters import need
from tests.conftest import ROOT, run_python

SCREENSHOTS = ROOT / "work" / "screenshots"  # kept, to be looked at


def page_of(run) -> str:
    done = run_python("recipe/report.py", run.path)
    assert done.returncode == 0, done.stderr
    return (run.path / "report.html").read_text(encoding="utf-8")


def screenshot(page, name: str, dark: bool = False) -> np.ndarray:
    """What a real browser, without network, makes of a page: pixels [height, width, 3]."""
    need("chromium", package="chromium")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    target = SCREENSHOTS / f"{name}.png"
    target.unlink(missing_ok=True)
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
             "--window-size=1100,3000", f"--screenshot={target}", *scheme, page.as_uri()]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(target).convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(pixels - np.array(colour)).max(axis=-1) < 12).sum())


@pytest.fixture
def faulted(written):
    run = written()
    run.start()
    run.steps(1, 100)
    run.event("step_skipped", 90, message="step skipped: loss 70 is 303 sigma above")
    run.fault(100, lost_s=40)
    run.start(60)
    run.steps(61, 200)
    run.event("straggler", 150, message="rank 1 on <b> is slow")
    run.event("straggler", 160, message="rank 1 on <b> is slow")
    run.event("finished", 200)
    return run


def test_a_faulted_run_shows_the_fault_the_loss_and_the_recovery(faulted):
    page = page_of(faulted)
    assert page.count('class="curve lost"') == 1
    assert "40 logged steps" in page
    assert "rank 1 on b killed by SIGKILL" in page
    assert "slow rank, 2 times" in page
    assert "rank 1 on &lt;b&gt; is slow" in page
    marks = re.findall(r'<g class="mark (bad|warn)">', page.split("<h2>What happened")[0])
    assert marks == ["warn", "bad", "warn"]
    assert not re.search(r"https?://|<script|<link|src=", page)


def test_a_browser_shows_it_light_and_dark(faulted):
    page_of(faulted)
    light = screenshot(faulted.path / "report.html", "report_light")
    dark = screenshot(faulted.path / "report.html", "report_dark", dark=True)
    assert light[:, :5].mean() > 250  # the page's own ground
    assert dark[:, :5].mean() < 40
    for pixels, curve, bad in ((light, (47, 111, 159), (200, 85, 61)), (dark, (106, 169, 214), (239, 127, 104))):
        assert near(pixels, curve) > 500
        assert near(pixels, bad) > 100


def test_a_million_steps_are_a_small_page(written):
    run = written()
    run.start()
    run.steps(10, 1_000_000, every=10, loss=lambda step: 70.0 if step == 500_000 else 2.0)
    page = page_of(run)
    assert len(page) < 400_000
    assert "1,000,000" in page
    assert 'class="band c0"' in page  # from the least to the most: the spike is there


def test_the_plan_stands_beside_what_was_measured(written):
    run = written(model="30b-a3b", config="pretrain_30b", ds="a100_256", device="NVIDIA A100-SXM4-80GB")
    run.start()
    run.steps(1, 20)
    page = page_of(run)
    row = re.search(r"<td>step time, s</td><td>([\d.]+)</td><td>1</td><td>([\d.]+)</td>", page)
    assert row is not None
    assert 1 / float(row[1]) == pytest.approx(float(row[2]), abs=0.006)


def test_downstream_results_are_a_table(faulted):
    tasks = {"cloze_zh": {"acc": {"value": 0.25, "stderr": 0.01}, "acc_norm": {"value": 0.5, "stderr": None}}}
    (faulted.path / "results.json").write_text(json.dumps({"step": 200, "tasks": tasks}))
    page = page_of(faulted)
    assert "<td>cloze_zh</td>" in page
    assert "0.2500" in page


def test_a_run_without_a_logged_step_is_refused(written):
    run = written()
    run.start()
    done = run_python("recipe/report.py", run.path)
    assert done.returncode == 2
    assert "no metrics.jsonl yet" in done.stderr


class Tags(HTMLParser):
    """The tags and their attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_what_a_run_folder_says_is_text_on_the_page(written, tmp_path):
    evil = "</title></svg></pre><script>alert(1)</script><img src=x onerror='a()'>\" onload=\"b()"
    run = written()
    start = run._start
    start["command"] = [evil]
    start["run_config"]["tokenizer"] = evil
    start["packages"] = {evil: evil}
    run.start()
    run.steps(1, 20)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(source_tokens={evil: 1.0}, phase_s={evil: 0.1}, comm_waited_s={evil: 0.1})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for kind in ("straggler", "rewind", evil):
        run.event(kind, 10, message=evil + "\ud800", slowest_host=evil)
    run.event("attempt_ended", 20, kind=evil, code=1, lost_s=0, message=evil)
    (run.path / "evaluations.jsonl").write_text(
        json.dumps({"step": 10, "time": run.now, "sources": {evil: {"bits_per_byte": 1.0}}}) + "\n"
    )
    scores = {"step": evil, "tasks": {evil: {evil: {"value": 0.5, "stderr": None}}}}
    (run.path / "results.json").write_text(json.dumps(scores))
    name = "<script>alert(2)</script><img src=x>".replace("/", "\udcff")  # a name that is not UTF-8
    page = report(run.path.rename(tmp_path / name), None)
    page.encode()
    assert page.count("&lt;script&gt;alert(1)") >= 15
    tags = Tags(page).tags
    assert not {tag for tag, _ in tags} & {"script", "img", "link", "iframe", "a", "object", "base"}
    assert not [
        name for _, attributes in tags for name in attributes if name.startswith("on") or name in ("src", "href")
    ]


def test_an_output_that_cannot_be_written_is_told_before_the_report_is_made(tmp_path):
    done = run_python("recipe/report.py", tmp_path / "none", "--output", "/proc/a.html")
    assert done.returncode == 2
    assert "--output /proc/a.html cannot be written" in done.stderr
