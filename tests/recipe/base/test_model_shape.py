"""Parameter and FLOP counts against the real model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipe.base.errors import ConfigError
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.strict import load_json, strict_model
from recipe.describe_models import shipped_models
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from tests.conftest import ROOT, run_python

TINY = ROOT / "recipe/configs/models/tiny"
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}


@pytest.fixture(scope="module")
def tiny() -> tuple[ModelShape, RecipeMoeForCausalLM]:
    shape = load_model_shape(TINY)
    config = RecipeMoeConfig.from_shape(shape)
    config._attn_implementation = "sdpa"
    return shape, RecipeMoeForCausalLM(config)


def test_parameter_terms_sum_to_the_model(tiny):
    shape, model = tiny
    assert sum(shape.parameters().values()) == sum(p.numel() for p in model.parameters())


def test_parameter_terms_are_those_of_the_modules(tiny):
    shape, model = tiny
    named = dict(model.named_parameters())
    count = lambda part: sum(p.numel() for n, p in named.items() if part in n)  # noqa: E731
    terms = shape.parameters()
    assert terms["routed_experts"] == count(".experts.")
    assert terms["shared_experts"] == count("shared_experts")
    assert terms["router"] == count(".gate.weight")
    assert terms["attention"] == count(".self_attn.") - count("q_norm") - count("k_norm")
    assert terms["norm"] == count("norm")


def test_training_flops_are_three_times_the_counted_forward(tiny):
    shape, model = tiny
    batch, seq = 2, 64
    # The math kernel is made of matmuls, which the counter knows.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.randint(0, shape.vocab_size, (batch, seq)))
    # The counter takes attention as full; ours counts the causal half.
    causal_half = shape.num_hidden_layers * 2 * 2 * shape.num_attention_heads * shape.head_dim * seq / 2
    assert counter.get_total_flops() == batch * seq * (shape.training_flops_per_token(seq) / 3 + causal_half)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_siz": 1}, "unknown key 'hidden_siz'; did you mean 'hidden_size'?"),
        ({"first_k_dense_replace": 4}, "leaves no MoE layer"),
        ({"num_key_value_heads": 3}, "is not a multiple of"),
        ({"num_experts_per_tok": 9}, "exceeds n_routed_experts"),
        ({"n_group": 3}, "does not divide n_routed_experts"),
        ({"n_group": 8}, "needs at least 2 experts"),
        ({"n_group": 2, "topk_group": 3}, "exceeds n_group"),
        ({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "fewer than num_experts_per_tok"),
        ({"head_dim": 33}, "must be even"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'rope_parameters.rope_type' is 'linear'"),
        (YARN | {"factor": 0.5}, "'rope_parameters.factor' is 0.5"),
        (YARN | {"factor": None}, "rope_type yarn needs factor; set what is missing"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "needs factor and original_max_position_embeddings"),
        (YARN | {"rope_type": "default"}, "factor is for rope_type yarn; set that, or remove it"),
        (YARN | {"original_max_position_embeddings": 4096}, "4096 exceeds max_position_embeddings 2048"),
        (YARN | {"factor": 2}, "factor 2 times original_max_position_embeddings 256 is less than max_position_embeddings 2048; set factor 8.0"),
        (YARN | {"rope_theta": 1}, "rope_theta 1 must exceed 1"),
        (YARN | {"beta_fast": 0.5}, "beta_fast 0.5 is less than beta_slow 1"),
        (YARN | {"mscale": 1.0}, "mscale has no effect alone"),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}, "leaves mscale and mscale_all_dim without effect"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_work_are_refused(changes, message):
    if "rope_type" in changes:
        changes = {"rope_parameters": changes}
    with pytest.raises(ConfigError) as caught:
        strict_model(ModelShape, {**load_json(TINY / "config.json"), **changes}, "config.json")
    assert message in str(caught.value)


def test_a_dump_has_the_keys_of_yarn_that_are_set_and_no_others():
    values = {**load_json(TINY / "config.json"), "rope_parameters": YARN}
    shape = strict_model(ModelShape, values, "config.json")
    assert shape.model_dump(mode="json")["rope_parameters"] == {"rope_theta": 1e4, "partial_rotary_factor": 1.0, **YARN}
    assert strict_model(ModelShape, shape.model_dump(mode="json"), "config.json") == shape
    plain = load_model_shape(TINY).model_dump()["rope_parameters"]
    assert plain.keys() == {"rope_type", "rope_theta", "partial_rotary_factor"}


def test_the_strict_reader_and_the_hf_config_have_the_same_fields():
    own = set(RecipeMoeConfig.__annotations__) - {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert own == set(ModelShape.model_fields) - {"model_type"}


# Millions of parameters: embedding and head together, attention, router, shared experts, routed experts; total, active.
SHIPPED = {
    "tiny": (1.048576, 0.196608, 0.003072, 0.110592, 0.884736, 2.392448, 1.728896),
    "1b-a0.3b": (201.326592, 25.165824, 0.737280, 13.271040, 849.346560, 1096.952576, 327.232256),
    "7b-a1b": (402.653184, 188.743680, 2.260992, 94.961664, 6077.546496, 6794.558976, 1286.782464),
    "30b-a3b": (805.306368, 528.482304, 6.782976, 298.450944, 28651.290624, 30403.716096, 3543.131136),
    "30b-a3b-deep": (536.870912, 905.969664, 9.240576, 295.698432, 28387.049472, 30185.371648, 3572.512768),
    "100b-a10b": (1073.741824, 1811.939328, 24.641536, 739.246080, 94623.498240, 98424.471552, 9714.941952),
}


def test_every_shipped_model_is_pinned():
    assert {folder.name for folder in shipped_models()} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_have_the_parameters_that_their_names_say(name):
    shape = load_model_shape(ROOT / "recipe/configs/models" / name)
    terms = shape.parameters()
    found = (
        terms["embedding"] + terms["lm_head"],
        terms["attention"],
        terms["router"],
        terms["shared_experts"],
        terms["routed_experts"],
        sum(terms.values()),
        sum(shape.active_parameters().values()),
    )
    assert [count / 1e6 for count in found] == pytest.approx(SHIPPED[name], abs=1e-6)
    config = RecipeMoeConfig.from_shape(shape)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = RecipeMoeForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == sum(terms.values())


def test_the_table_of_models_is_printed_and_a_missing_one_refused():
    printed = run_python("recipe/describe_models.py")
    assert printed.returncode == 0, printed.stderr
    assert all(f"| {name} |" in printed.stdout for name in SHIPPED)
    refused = run_python("recipe/describe_models.py", "nowhere")
    assert (refused.returncode, "nowhere/config.json does not exist" in refused.stderr) == (2, True)
