"""The ds_configs that the repository ships are those that the planner chooses, and so is what is said of them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from recipe.base.settings import load_run_config
from recipe.planner.search import shipped
from recipe.planner.search.search import EQUAL
from recipe.planner.tables.design_tables import ideas_table, megatron_table
from recipe.planner.timing.timeline import EXPECTED
from tests.conftest import ROOT
from tests.in_process import run_script

pytestmark = pytest.mark.xdist_group("planner")  # as tests/test_docs.py


def test_the_shipped_ds_configs_are_what_the_planner_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "DS_CONFIGS", tmp_path)
    done = run_script("recipe/describe_plans.py", "--write-ds-configs")
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "ds_configs").glob("*.json")}
    assert written == committed, "run python recipe/describe_plans.py --write-ds-configs"
    assert done.stdout.splitlines() == [f"wrote {tmp_path / name}" for name in written_in_order()]


def written_in_order() -> list[str]:
    return ["cpu_2.json", *(f"{s.name}.json" for s in shipped.SHIPPED)]


def test_the_readmes_figure_is_what_the_planner_draws(tmp_path):
    done = run_script("recipe/describe_plans.py", "--write-figure", str(tmp_path / "plans.svg"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "plans.svg").read_text(encoding="utf-8")
    committed = (ROOT / "docs/figures/plans.svg").read_text(encoding="utf-8")
    assert written == committed, "run python recipe/describe_plans.py --write-figure docs/figures/plans.svg"


def texts_of(figure: str) -> list[tuple[str | None, str]]:
    """(class, words) of each text of a figure of docs/, and with it that the file is well-formed."""
    tree = ElementTree.parse(ROOT / "docs/figures" / figure)
    return [(text.get("class"), text.text or "") for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_the_figure_says_that_it_is_planned_and_has_the_numbers_of_every_plan():
    texts = texts_of("plans.svg")
    assert texts[0] == ("title", "Planned days and cost of one trillion tokens")
    values = [float(words) for style, words in texts if style == "value"]
    expected = [plan.cost(EXPECTED) for _, plan in shipped.plans().values()]
    wanted = [number for cost in expected for number in (cost.days, cost.usd / 1000)]
    assert values == pytest.approx(wanted, abs=0.5)
    assert {words for _, words in texts} >= {"days of training", "cost, 1,000 USD"}


def test_the_bars_of_the_figure_are_as_long_as_their_numbers():
    tree = ElementTree.parse(ROOT / "docs/figures/plans.svg")
    bars = [r for r in tree.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == "days"]
    days = [plan.cost(EXPECTED).days for _, plan in shipped.plans().values()]
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert [length / max(lengths) for length in lengths] == pytest.approx([d / max(days) for d in days], abs=0.002)


def test_every_command_of_the_pipelines_figure_exists():
    results = {"token shards", "served model"}
    commands = [words for style, words in texts_of("pipeline.svg") if style is None and words not in results]
    assert len(commands) > 10
    for name in commands:
        assert re.fullmatch(r"\w+", name)
        assert any(list((ROOT / folder).glob(f"{name}*.py")) for folder in ("data_prep", "launch", "recipe")), name


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("scaling", "--write-ds-configs"),
        ("nothing",),
        ("--write-figure", "no_such_folder/plans.svg"),
        ("--write-ds-configs", "--write-figure", "plans.svg"),
    ],
)
def test_a_command_without_one_thing_that_it_can_write_is_refused(words):
    done = run_script("recipe/describe_plans.py", *words)
    assert done.returncode == 2
    assert "error: " in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "recipe/configs/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_config_has_what_the_ds_configs_of_its_model_are_planned_with(path):
    run = load_run_config(path)
    configs = [c for c in shipped.SHIPPED if c.model == run.model.name]
    assert bool(configs) == (path.stem != "quickstart")
    for config in configs:
        facts = shipped.chosen(config).plan.work.run
        assert facts.seq_length == run.data.seq_length
        assert (facts.recompute, facts.loss_chunk_tokens) == (run.compute.recompute, run.compute.loss_chunk_tokens)
        assert facts.compile == run.compute.compile


def test_each_idea_is_planned_and_all_together_are_the_fastest():
    header, _, *lines = (line.strip("| ").split(" | ") for line in ideas_table().splitlines())
    assert header[1:4] == ["step, s, EP 8", "MFU, EP 8", "peak GiB, EP 8"]
    steps = {name: float(step) for name, step, *_ in lines}
    without, way_home, selective, parts, *_ = steps.values()
    assert without > way_home > max(selective, parts)
    chosen = shipped.chosen(shipped.named("a100_256"))
    assert chosen.step_s <= (1 + EQUAL) * min(steps.values()) + 0.01
    together = f"`selective`, {chosen.choice.exchange_parts} parts{', weights kept' * chosen.choice.keep_weights}"
    assert steps[together] == pytest.approx(chosen.step_s, abs=0.01)


def test_the_design_point_is_ahead_of_megatron_core_with_and_without_its_overlap():
    ours, _, *theirs = (line.strip("| ").split(" | ") for line in megatron_table().splitlines()[2:])
    assert len(theirs) == 2
    assert all(float(row[1]) > float(ours[1]) for row in theirs)
