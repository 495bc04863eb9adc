"""ds_configs for CPU ranks: valid for any number of them, the shipped one among them."""

from __future__ import annotations

import json

import pytest

from launch import plan
from recipe.base.ds_config import load_ds_config
from recipe.base.model_shape import load_model_shape
from recipe.planner.search.ds_writer import parsed
from recipe.planner.search.shipped import MODELS, cpu_config
from tests.conftest import ROOT

TINY = MODELS / "tiny"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 16, 24])
def test_any_number_of_cpu_ranks_has_a_valid_ds_config(ranks):
    shape = load_model_shape(TINY)
    ds = parsed(cpu_config(shape, ranks))
    assert ds.world_size == ranks
    assert ds.problems_with(shape, ranks) == []
    assert not ds.bf16_enabled


def test_the_command_writes_it_and_two_ranks_are_the_shipped_one(tmp_path, capsys):
    path = tmp_path / "new" / "cpu.json"
    assert plan.main(["--cpu-ranks", "2", "--model", str(TINY), "--write", str(path)]) == 0
    assert path.read_text() == (ROOT / "ds_configs" / "cpu_2.json").read_text()
    assert plan.main(["--cpu-ranks", "4", "--model", str(TINY), "--write", str(path)]) == 0
    assert (load_ds_config(path)[0].world_size, json.loads(path.read_text())["train_batch_size"]) == (4, 16)
    assert "start it with --num_gpus 4, or with a hostfile whose slots add up to 4" in capsys.readouterr().out


def test_cpu_ranks_are_not_planned(tmp_path, capsys):
    assert plan.main(["--cpu-ranks", "4", "--gpus", "4", "--ep", "2", "--model", str(TINY)]) == 2
    message = capsys.readouterr().err
    assert "--write is missing; give it; --gpus does not go with --cpu-ranks" in message
    assert "--ep does not go with --cpu-ranks" in message
