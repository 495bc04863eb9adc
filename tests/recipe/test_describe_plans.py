"""The ds_configs that the repository ships are those that the planner chooses, and so is what is said of them."""

from __future__ import annotations

import pytest

from recipe.base.settings import load_run_config
from recipe.planner.search import shipped
from tests.conftest import ROOT
from tests.in_process import run_script
from tests.test_docs import between

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


def test_the_table_of_ds_configs_is_what_the_planner_prints():
    text = (ROOT / "ds_configs" / "README.md").read_text(encoding="utf-8")
    assert between(text, "clusters") == run_script("recipe/describe_plans.py", "ds_configs").stdout.strip()


@pytest.mark.parametrize("words", [(), ("scaling", "--write-ds-configs"), ("nothing",)])
def test_a_command_that_says_neither_or_both_is_refused(words):
    done = run_script("recipe/describe_plans.py", *words)
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_the_run_config_of_the_design_point_has_what_its_ds_configs_are_planned_with():
    run = load_run_config(ROOT / "recipe/configs/runs/pretrain_30b.yaml")
    for config in shipped.SHIPPED:
        if config.model == run.model.name and config.interconnect == "400g":
            facts = shipped.chosen(config).plan.work.run
            assert facts.seq_length == run.data.seq_length
            assert (facts.recompute, facts.loss_chunk_tokens) == (run.compute.recompute, run.compute.loss_chunk_tokens)
            assert facts.compile == run.compute.compile
