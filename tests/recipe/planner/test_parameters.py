"""The planner's list of a model's parameters is that of its modules."""

from __future__ import annotations

import pytest
import torch

from recipe.base.model_shape import load_model_shape
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.planner.parameters import decoder
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_shared_experts": 0}, {"n_shared_experts": 2, "use_qk_norm": False, "attention_bias": True}],
    ids=str,
)
def test_names_and_sizes_are_those_of_the_model(changes):
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny").model_copy(update=changes)
    with torch.device("meta"):
        model = RecipeMoeForCausalLM(RecipeMoeConfig.from_shape(shape))
    expected = {}
    for name, parameter in model.named_parameters():
        prefix, gate_up, _ = name.partition("gate_up_proj")
        if gate_up:  # which AutoEP takes apart, and renames the others
            expected.update({f"{prefix}w1": parameter.numel() // 2, f"{prefix}w3": parameter.numel() // 2})
        else:
            name = name.replace(".mlp.experts.down_proj", ".mlp.experts.w2").replace(".mlp.gate.", ".mlp.router.gate.")
            expected[name] = parameter.numel()
    assert {parameter.name: parameter.numel for parameter in decoder(shape, 1).parameters} == expected
    assert sum(shape.parameters().values()) == sum(expected.values())
