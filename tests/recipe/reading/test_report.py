"""The report of a run is a page that a browser shows, whatever happened and however long it took."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from recipe.base.pages.palette import SOURCES, TEXT
from recipe.report import main, report
from tests.conftest import run_python
from tests.pages import DESKTOP, PHONE, measured, screenshot
from tests.recipe.reading.conftest import WrittenRun


def page_of(run) -> str:
    main([str(run.path)])
    return (run.path / "report.html").read_text(encoding="utf-8")


def near(pixels: np.ndarray, colour: str) -> int:
    """How many pixels have about this colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - rgb).max(axis=-1) < 12).sum())


def text_of(page: str) -> str:
    """What a reader sees of a page's HTML."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.split("<body>")[1]))


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
    assert "Slow rank, 2 times" in page
    assert "rank 1 on &lt;b&gt; is slow" in page
    marks = re.findall(r'<g class="mark (bad|warn)">', page.split("<h2>What happened")[0])
    assert marks == ["warn", "bad", "warn"]
    assert not re.search(r"https?://|<script|<link|src=", page)


def test_a_browser_shows_it_light_and_dark(faulted):
    faulted.evaluate(100)
    faulted.evaluate(200)
    page_of(faulted)
    light = screenshot(faulted.path / "report.html", "report_light")
    dark = screenshot(faulted.path / "report.html", "report_dark", dark=True)
    assert light[:, :5].mean() > 250  # the page's own ground
    assert dark[:, :5].mean() < 40
    for scheme, pixels in enumerate((light, dark)):
        assert near(pixels, SOURCES[0][scheme]) > 500
        assert near(pixels, TEXT["bad"][scheme]) > 100


LONG = "a-language-with-a-long-name-and-_no_place_to_break_anywhere"


def test_pages_of_all_kinds_fit_on_a_phone_and_on_a_desk(tmp_path, faulted):
    many = WrittenRun(tmp_path / f"{LONG}_{LONG}", sources=[f"{LONG}_{number}" for number in range(12)], layers=48,
                      model="30b-a3b", config="pretrain_30b", ds="a100_256", device="NVIDIA A100-SXM4-80GB", ranks=256)  # fmt: skip
    many.start()
    many.steps(1, 40)
    many.evaluate(20)
    many.evaluate(40)
    many.fault(40, lost_s=40, message=LONG * 5)
    single = WrittenRun(tmp_path / "single", sources=["zh"])
    single.start()
    single.steps(10, 10)
    single.evaluate_after(10)
    runs = (faulted, many, single)
    for run in runs:
        page_of(run)
    results = measured([run.path / "report.html" for run in runs], PHONE, DESKTOP)
    assert len(results) == 6
    assert [(title, width, problems) for title, width, problems in results if problems] == []


def headline(page: str) -> list[str]:
    """What the cards of held-out loss say."""
    return [text_of(f"<body>{card}").strip() for card in re.findall(r'<div class="card .*?</div>', page)]


def test_held_out_loss_of_each_source_comes_first_with_its_change(faulted):
    faulted.evaluate(100, bits=lambda source, step: 2.0 + source)
    faulted.evaluate(200, bits=lambda source, step: 9.0)  # done again after the fault
    faulted.evaluate(150, bits=lambda source, step: 1.9 + source)
    faulted.evaluate(200, bits=lambda source, step: 1.75 + source)
    page = page_of(faulted)
    assert headline(page) == ["en 1.750 −0.250 since step 100", "zh 2.750 −0.250 since step 100"]
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[:3] == ["Held-out loss", "Held-out loss over training", "Training loss"]
    assert "9.0" not in page.split("<h2>Training loss")[0].split("Held-out loss over")[1]
    assert "evaluation.every_steps" not in page.split("<h2>What happened")[0]


def test_an_evaluation_after_the_run_is_the_headline(written):
    run = written()
    run.start()
    run.steps(1, 20)
    run.event("finished", 20)
    assert headline(page_of(run)) == []
    run.evaluate_after(20, bits=lambda source, step: 1.5 + source)
    page = page_of(run)
    assert headline(page) == ["en 1.500", "zh 2.500"]
    assert "measured on the checkpoint of step 20" in page
    first_chart = page.split('<figure class="chart"')[0]
    assert "Set <code>evaluation.every_steps</code>" in first_chart


def test_an_evaluation_that_the_run_went_back_before_does_not_count(written):
    run = written()
    run.start()
    run.steps(1, 200)
    run.evaluate(100, bits=lambda source, step: 2.0 + source)
    run.evaluate(200, bits=lambda source, step: 9.0)
    run.fault(200, lost_s=50)
    run.start(150)
    run.steps(151, 160)
    page = page_of(run)
    assert headline(page) == ["en 2.000", "zh 3.000"]
    assert "measured at step 100" in page


def test_a_source_that_newer_evaluations_lack_has_the_step_of_its_own(written):
    run = written()
    run.start()
    run.steps(1, 20)
    run.evaluate(10, bits=lambda source, step: 2.0)
    run.sources = ["zh"]
    run.evaluate(20, bits=lambda source, step: 1.5)
    assert headline(page_of(run)) == ["en 2.000 of step 10, later evaluations lack it", "zh 1.500 −0.500 since step 10"]


def test_a_run_whose_numbers_are_nan_has_a_page_and_no_warning_of_numpy(written, recwarn):
    run = written()
    run.start()
    run.steps(1, 20)
    nan = dict.fromkeys(("loss", "grad_norm", "tokens_per_s", "step_time_s", "memory_gib"), float("nan"))
    path = run.path / "metrics.jsonl"
    lines = [json.dumps({**json.loads(line), **nan}) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{line}\n" for line in lines))
    page = page_of(run)
    assert (fact(page, "training loss"), fact(page, "speed")) == ("nan nats per token", "")
    assert [str(warning.message) for warning in recwarn] == []


def fact(page: str, name: str) -> str:
    match = re.search(rf"<dt>{name}</dt><dd.*?>(.*?)</dd>", page)
    return "" if match is None else text_of(f"<body>{match[1]}").strip()


def test_the_facts_of_a_run_on_gpus_and_on_cpu(written, tmp_path):
    run = WrittenRun(tmp_path / "gpus", model="30b-a3b", config="pretrain_30b", ds="a100_256",
                     device="NVIDIA A100-SXM4-80GB", ranks=256)  # fmt: skip
    run.start()
    run.steps(1, 20)
    page = page_of(run)
    assert fact(page, "devices") == "256 GPUs NVIDIA A100-SXM4-80GB"
    assert fact(page, "parameters") == "30.4B 3.54B active per token"
    assert fact(page, "tokens").startswith("41k of 1T")
    assert fact(page, "state").startswith("running last update")
    assert fact(page, "last update").startswith("2023-11-14 22:13")
    run = written()
    run.start()
    run.steps(1, 300)
    run.event("finished", 300)
    page = page_of(run)
    assert fact(page, "devices") == "2 CPU ranks"
    assert fact(page, "state") == "finished"
    assert fact(page, "duration") == "5m 10s 1 start"
    assert fact(page, "goodput") == "87.1% of the time was training"
    assert (fact(page, "MFU"), fact(page, "time left"), fact(page, "last update")) == ("", "", "")


def test_every_axis_has_a_name(faulted):
    faulted.evaluate(100)
    figures = re.findall(r"<figure.*?</figure>", page_of(faulted), re.DOTALL)
    names = [re.findall(r'<div class="axis[^"]*">(.*?)</div>', figure) for figure in figures]
    assert [name for _, name in names] == ["optimizer step"] * 6
    assert [name for name, _ in names] == [
        "held-out loss, bits per byte", "training loss, nats per token", "speed, tokens per second", "time of a step, s",
        "MoE layer", "gradient norm before clipping",
    ]  # fmt: skip
    assert '<span class="scale"' in figures[4]


def test_a_source_has_one_colour_on_the_whole_page(written):
    run = written(sources=["en", "zh"])
    run.start()
    run.steps(1, 20)
    run.sources = ["zh"]  # the held-out text lacks a source
    run.evaluate(20)
    page = page_of(run)
    assert re.findall(r'class="card (\w+)"><span>(\w+)', page) == [("s1", "zh")]
    assert re.findall(r'class="key (s\d+)"></i>(\w+)', page) == [("s1", "zh"), ("s0", "en"), ("s1", "zh")]
    assert re.findall(r'<path class="dot (\w+)"', page.split("Training loss")[0]) == ["s1"]


def test_a_million_steps_are_a_small_page(written):
    run = written(layers=48)
    run.start()
    run.steps(50, 1_000_000, every=50, loss=lambda step: 70.0 if step == 500_000 else 2.0 + step % 3 / 100)
    page = page_of(run)
    assert len(page) < 400_000
    assert "1,000,000" in page
    assert 'class="band run"' in page  # from the least to the most
    assert "are cut, the largest is 70" in page  # the spike is there, and leaves room for the rest


def plan_rows(page: str) -> dict[str, list[str]]:
    table = page.split("<h2>Plan and measured</h2>")[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    return {name: cells for name, *cells in rows}


def test_the_plan_stands_beside_what_was_measured(written):
    run = written(model="30b-a3b", config="pretrain_30b", ds="a100_256", device="NVIDIA A100-SXM4-80GB", ranks=256)
    run.start()
    run.steps(1, 20)
    rows = plan_rows(page_of(run))
    assert set(rows) == {
        "step time, s",
        "tokens/s",
        "memory of rank 0 at its peak, GiB",
        "time left for the planned tokens",
    }
    planned, between, measured, ratio = rows["step time, s"]
    least, most = map(float, between.split(" to "))
    assert least < float(planned) < most
    assert measured == "1"
    assert 1 / float(planned) == pytest.approx(float(ratio), abs=0.006)


def test_a_run_on_cpu_has_no_plan(faulted):
    assert "Plan" not in page_of(faulted)


def test_downstream_results_are_a_table(faulted):
    tasks = {"cloze_zh": {"acc": {"value": 0.25, "stderr": 0.01}, "acc_norm": {"value": 0.5, "stderr": None}}}
    (faulted.path / "results.json").write_text(json.dumps({"step": 200, "tasks": tasks}))
    page = page_of(faulted)
    assert ">cloze_zh</td>" in page
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
