"""The ladder of shapes: copies spend equal planned time on the same tokens, and a fast path computes what the model does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import shape_ladder
from recipe.data.indexed import Shard, ShardWriter, token_dtype
from recipe.data.token_folder import Source
from recipe.model import RecipeMoeConfig
from recipe.model.modeling import Experts
from recipe.planner.tables.shape_tables import BASELINE, SHAPES

WIDE, COARSE = "24 × 3,072, 6 of 96 × 1,408", "24 × 3,072, 3 of 48 × 2,816"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small vocabulary in which each token tells the next one, for all splits; and a planner that knows two steps."""
    writer = ShardWriter(tmp_path / "shard", token_dtype(64))
    writer.add_document(np.arange(12_000) * 7 % 64)
    writer.close()
    shard = Shard(writer.prefix)
    source = Source("en", (shard,), shard.num_tokens, 1)
    tokens = SimpleNamespace(tokenizer={"vocab_size": 64}, sources=lambda split: [source], sizes=lambda split: {"en": shard.num_tokens})  # fmt: skip
    monkeypatch.setattr(shape_ladder, "TokenFolder", lambda path: tokens)
    steps = {BASELINE: 10.0, WIDE: 5.0}
    monkeypatch.setattr(
        shape_ladder, "planned", lambda name: SimpleNamespace(expected=SimpleNamespace(step_s=steps[name]))
    )
    return tmp_path


def test_copies_spend_equal_planned_time_and_learn(folder, monkeypatch, capsys):
    monkeypatch.setattr(shape_ladder, "HELD_OUT", shape_ladder.MICRO_BATCH)
    words = ["--tokens", str(folder), "--shapes", WIDE, "--steps", "5", "--quick", "--output", str(folder / "out.json")]
    assert not shape_ladder.main(words)
    capsys.readouterr()
    result = json.loads((folder / "out.json").read_text())
    assert list(result["ladder"]) == [BASELINE, WIDE]
    deep, wide = result["ladder"].values()
    assert (deep["steps"], wide["steps"]) == (5, 10)
    assert deep["steps"] * deep["planned_step_s"] == wide["steps"] * wide["planned_step_s"]
    assert wide["tokens"] == 10 * shape_ladder.SEQ_LENGTH * shape_ladder.MICRO_BATCH
    for found in (deep, wide):
        assert found["loss"]["median"] < np.log(64) - 0.2
        assert found["loss_at_equal_tokens"]["median"] < np.log(64)
    assert not shape_ladder.main(["--table", str(folder / "out.json")])
    table = capsys.readouterr().out
    difference = wide["loss"]["median"] - deep["loss"]["median"]
    assert f"| {WIDE} |" in table
    assert f"| {difference:+.3f} |" in table


def test_each_copy_takes_the_best_of_its_rates_and_all_seeds(folder, monkeypatch):
    asked = []

    def train(shape, folder, steps, at, rate, seed):
        asked.append((shape.num_hidden_layers, steps, at, rate, seed))
        return {"loss": 5 - 100 * rate + seed, "loss_at_equal_tokens": 6.0, "cpu_s": 1.0}

    monkeypatch.setattr(shape_ladder, "train", train)
    ladder = shape_ladder.climb(shape_ladder.TokenFolder(folder), [BASELINE, WIDE], 10, 3, (1e-3, 2e-3))
    assert asked[:4] == [(12, 10, 8, 1e-3, 0), (12, 10, 8, 2e-3, 0), (12, 10, 8, 2e-3, 1), (12, 10, 8, 2e-3, 2)]
    assert [steps for _, steps, *_ in asked[4:]] == [20] * 4
    assert {at for _, _, at, *_ in asked} == {8}  # the loss at equal tokens is after as many steps for all
    assert ladder[WIDE]["loss"] == {"median": 5.8, "lowest": 4.8, "highest": 6.8}
    assert ladder[WIDE]["rate"] == 2e-3


def test_copies_keep_the_proportions_of_what_they_stand_for():
    deep, coarse = (shape_ladder.copy_of(SHAPES[name], 1000) for name in (BASELINE, COARSE))
    assert (deep.num_hidden_layers, deep.hidden_size, deep.num_attention_heads * deep.head_dim) == (12, 64, 128)
    assert (coarse.num_hidden_layers, coarse.hidden_size, coarse.moe_intermediate_size) == (6, 96, 88)
    assert (deep.num_experts_per_tok, deep.n_routed_experts) == (6, 48)
    assert (coarse.num_experts_per_tok, coarse.n_routed_experts) == (3, 24)
    active = [sum(shape.active_parameters().values()) for shape in (deep, coarse)]
    assert active[1] == pytest.approx(active[0], rel=0.2)
    assert all(shape_ladder.copy_of(SHAPES[name], 1000).problems() == [] for name in shape_ladder.CANDIDATES)


def test_grouped_experts_are_the_models():
    config = RecipeMoeConfig.from_shape(shape_ladder.copy_of(SHAPES[BASELINE], 64))
    experts, generator = Experts(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    x_TD = torch.randn(50, 64, generator=generator)
    weights_TK = torch.rand(50, 6, generator=generator)
    experts_TK = torch.rand(50, 48, generator=generator).topk(6).indices % 40  # some experts have no token
    expected = experts(x_TD, weights_TK, experts_TK)
    torch.testing.assert_close(shape_ladder.grouped_experts(experts, x_TD, weights_TK, experts_TK), expected)


def test_a_run_without_tokens_is_refused(capsys):
    assert shape_ladder.main([]) == 2
    assert "--tokens is missing" in capsys.readouterr().err
