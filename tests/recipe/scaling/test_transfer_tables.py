"""The tables of rules: a run's own numbers beside what rules say at its batch."""

from __future__ import annotations

from recipe.base.ds_config import load_ds_config
from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import load_run_config
from recipe.describe_models import main
from recipe.scaling.transfer_tables import describe_rules
from tests.conftest import ROOT, Called

CONFIG, DS_CONFIG = ROOT / "recipe/configs/runs/pretrain_30b.yaml", ROOT / "ds_configs/a100_256.json"


def cells(table: str, first: str) -> list[str]:
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_flagship_is_compared_at_the_batch_of_its_longest_phase():
    run = load_run_config(CONFIG)
    shape = load_model_shape(run.model)
    table = describe_rules("flagship", shape, resolve_phases(run, shape, *load_ds_config(DS_CONFIG)))
    assert cells(table, "`flagship`")[3] == "8.4M"  # neither the ramp's nor the long phases'
    assert cells(table, "Ling (")[2:] == ["4.6e-4", "9.0M", "4.4e-4"]
    assert cells(table, "rotary base at 65,536")[3] == "1,000,000"
    assert cells(table, "vocabulary")[3] == "131,072"


def test_a_run_config_without_its_ds_config_is_refused(capsys):
    done = Called(main, capsys, "--config", CONFIG)
    assert done.returncode == 2
    assert "go together" in done.stderr
