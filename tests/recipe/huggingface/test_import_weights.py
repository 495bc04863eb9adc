"""A model from a HuggingFace folder computes what its own class of transformers does, or is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape
from recipe.base.strict import strict_model
from recipe.huggingface.architectures import export_architecture, export_config
from recipe.huggingface.import_weights import ImportedWeights, same_model, shape_values, upcycled
from recipe.huggingface.weights_folder import SafetensorsFolder
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter

DECODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
ROTARY = {"rope_type": "default", "rope_theta": 500.0}
YARN = {**ROTARY, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
GLM = {**DECODER, "head_dim": 12, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2}
QWEN = {**DECODER, "head_dim": 12, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}
MIXTRAL = {**DECODER, "num_local_experts": 6, "num_experts_per_tok": 2}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("glm4_moe", GLM),  # half rotary, no QK-norm
    "glm4_moe, groups and biases": (
        "glm4_moe",
        {**GLM, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "attention_bias": True, "use_qk_norm": True,
         "first_k_dense_replace": 2, "n_shared_experts": 2, "norm_topk_prob": False, "rms_norm_eps": 1e-6},
    ),
    "glm4_moe, full rotary": (
        "glm4_moe",
        {**GLM, "first_k_dense_replace": 0, "rope_parameters": {**ROTARY, "partial_rotary_factor": 1.0}},
    ),
    "glm4_moe, no shared": ("glm4_moe", {**GLM, "n_shared_experts": 0, "head_dim": 8}),
    "glm4_moe, tied": ("glm4_moe", {**GLM, "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", QWEN),  # norm_topk_prob false
    "qwen3_moe, dense layers": (
        "qwen3_moe", {**QWEN, "mlp_only_layers": [1, 0], "norm_topk_prob": True, "rope_parameters": ROTARY}
    ),
    "glm4_moe, yarn": (
        "glm4_moe", {**GLM, "rope_parameters": {**YARN, "partial_rotary_factor": 0.5, "beta_fast": 2.0, "attention_factor": 1.3}}
    ),
    "qwen3_moe, yarn": ("qwen3_moe", {**QWEN, "rope_parameters": {**YARN, "truncate": False, "beta_fast": 1.1}}),
    # without head_dim transformers 5.24 cannot compute its YaRN
    "mixtral, yarn": ("mixtral", {**MIXTRAL, "head_dim": 8, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.5}}),
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral, one key head, a window of all": (
        "mixtral", {**MIXTRAL, "num_key_value_heads": 1, "rope_parameters": ROTARY, "sliding_window": 64}
    ),
}  # fmt: skip
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("glm4_moe", {**GLM, "first_k_dense_replace": 3, "use_qk_norm": True}),
    "llama": ("llama", {**DECODER, "rope_parameters": ROTARY, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**DECODER, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("qwen2", DECODER),
    "qwen2, yarn": ("qwen2", {**DECODER, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {**DECODER, "head_dim": 12, "num_key_value_heads": 4}),
    "qwen3_moe": ("qwen3_moe", {**QWEN, "mlp_only_layers": [0, 1, 2]}),
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Of a source by its name: a random model of stock transformers, and its folder. Made once each."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(name: str, of: tuple[str, dict[str, Any]]):
        if name not in made:
            torch.manual_seed(0)
            model_type, values = of
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()
            with torch.no_grad():
                for part in model.state_dict().values():  # norms and biases too, or a lost one goes unseen
                    part.add_(torch.randn_like(part) * 0.2)
            made[name] = model, tmp_path_factory.mktemp("stock") / "model"
            model.save_pretrained(made[name][1])
        return made[name]

    return make


def rewritten(folder: Path, output: Path, change=None, tensors=None) -> Path:
    """A copy of a model's folder with another config.json, or other tensors."""
    output.mkdir(parents=True)
    config = json.loads((folder / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config if change is None else change(config)))
    values = load_file(folder / "model.safetensors")
    save_file(values if tensors is None else tensors(values), output / "model.safetensors")
    return output


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """As 4.57 writes it."""
    rope = config.pop("rope_parameters")
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    if config["model_type"] == "glm4_moe":
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        del config["num_nextn_predict_layers"]
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config


def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote before 4.5x, and as people write: a key that its class would fill in is left out."""
    config = as_transformers_4(config)
    defaults = AutoConfig.for_model(config["model_type"]).to_dict()
    defaults |= {"rope_theta": 1_000_000.0 if config["model_type"] == "mixtral" else 10_000.0}
    defaults |= {"partial_rotary_factor": 0.5, "num_experts": 128}
    return {name: value for name, value in config.items() if name == "model_type" or defaults.get(name, ...) != value}


def logits(model) -> torch.Tensor:
    tokens = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(tokens).logits


def ours(weights: ImportedWeights, shape: ModelShape) -> RecipeMoeForCausalLM:
    model = RecipeMoeForCausalLM(RecipeMoeConfig.from_shape(shape))
    values = {name: weights(name) for name in model.state_dict()}
    model.load_state_dict(values)
    return model


def exported(model: RecipeMoeForCausalLM, shape: ModelShape, folder: Path) -> Path:
    """As an export writes it: one tensor per expert and matrix, in the architecture's names."""
    folder.mkdir()
    architecture, tensors = export_architecture(shape), {}
    for name, value in model.state_dict().items():
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for expert, halves in enumerate(value):
                gate, up = halves.chunk(2)
                tensors |= {f"{prefix}.{expert}.gate_proj.weight": gate, f"{prefix}.{expert}.up_proj.weight": up}
        elif kind == "down_proj":
            tensors |= {f"{prefix}.{expert}.down_proj.weight": part for expert, part in enumerate(value)}
        elif kind != "e_score_correction_bias" or architecture.correction_bias:
            tensors[name] = value
    tensors = {architecture.export_name(name): value.contiguous().clone() for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = export_config(shape, dtype="float32", max_position_embeddings=shape.max_position_embeddings, **special)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layout", [None, as_transformers_4, without_defaults], ids=["v5", "v4", "without defaults"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_model_computes_what_its_own_class_does_and_so_does_its_export(name, layout, stock, tmp_path):
    model, folder = stock(name, SOURCES[name])
    folder = rewritten(folder, tmp_path / "source", layout)
    shape = ModelShape(**shape_values(folder))
    weights = same_model(folder, shape)
    imported = ours(weights, shape)
    expected = logits(model)
    torch.testing.assert_close(logits(imported), expected, rtol=1e-5, atol=1e-5)
    assert ["copy of the embedding" in note for note in weights.notes] == [True] * ("tied" in name)
    if layout is None:
        export = exported(imported, shape, tmp_path / "export")
        assert ModelShape(**shape_values(export)) == shape
        same_model(export, shape)
        again, report = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True)
        assert type(again) is type(model)
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
        shared = {
            f"model.layers.{n}.mlp.shared_experts.{m}_proj.weight" for n in range(3) for m in ("gate", "up", "down")
        }
        assert not report["unexpected_keys"]
        assert report["missing_keys"] <= (set() if shape.n_shared_experts else shared)  # of no values


@pytest.mark.parametrize(
    "routing",
    [{}, {"scoring_func": "softmax", "n_shared_experts": 1, "moe_intermediate_size": 16}],
    ids=["derived", "softmax"],
)
@pytest.mark.parametrize("layout", [None, as_transformers_4], ids=["v5", "v4"])
@pytest.mark.parametrize("name", DENSE)
def test_an_upcycled_model_computes_what_the_dense_one_does(name, layout, routing, stock, tmp_path):
    model, folder = stock(f"dense {name}", DENSE[name])
    folder = rewritten(folder, tmp_path / "source", layout)
    shape = ModelShape(**{**shape_values(folder, upcycle=True), **routing})
    config = RecipeMoeConfig.from_shape(shape)
    weights = upcycled(folder, shape, lambda name, rows: initialize_parameter(rows, name, config, 3))
    torch.testing.assert_close(logits(ours(weights, shape)), logits(model), rtol=1e-5, atol=1e-5)
    rows = weights("model.layers.1.mlp.gate.weight")
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_leading_dense_layers_stay_when_a_model_is_upcycled(stock, tmp_path):
    model, folder = stock("dense qwen3", DENSE["qwen3"])
    shape = ModelShape(
        **{**shape_values(folder, upcycle=True), "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
    )
    config = RecipeMoeConfig.from_shape(shape)
    weights = upcycled(folder, shape, lambda name, rows: initialize_parameter(rows, name, config, 3))
    torch.testing.assert_close(logits(ours(weights, shape)), logits(model), rtol=1e-5, atol=1e-5)


def test_experts_may_be_fused_as_transformers_5_holds_them(stock, tmp_path):
    for name in ("glm4_moe", "qwen3_moe", "mixtral"):
        model, _ = stock(name, SOURCES[name])
        model.save_pretrained(tmp_path / name, save_original_format=False)
        assert any(key.endswith("mlp.experts.gate_up_proj") for key in load_file(tmp_path / name / "model.safetensors"))
        shape = ModelShape(**shape_values(tmp_path / name))
        weights = same_model(tmp_path / name, shape)
        torch.testing.assert_close(logits(ours(weights, shape)), logits(model), rtol=1e-5, atol=1e-5)


def test_weights_are_cast_and_what_says_nothing_is_left_out(stock, tmp_path):
    model, folder = stock("glm4_moe", SOURCES["glm4_moe"])

    def tensors(values):
        predictor = {
            f"model.layers.3.{name}": torch.ones(4) for name in ("eh_proj.weight", "enorm.weight", "mlp.gate.weight")
        }
        values = {name: value.half() for name, value in values.items()}
        return {**values, **predictor, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}

    folder = rewritten(folder, tmp_path / "source", tensors=tensors)
    shape = ModelShape(**shape_values(folder))
    weights = same_model(folder, shape)
    assert weights.notes == ["multi-token-prediction layers are left out: 1, of 3 tensors"]
    torch.testing.assert_close(logits(ours(weights, shape)), logits(model), rtol=1e-2, atol=1e-2)


def with_values(**values):
    return lambda config: {**config, **values}


def without(*names):
    return lambda config: {name: value for name, value in config.items() if name not in names}


def with_rope(**values):
    return lambda config: {**config, "rope_parameters": {**config["rope_parameters"], **values}}


@pytest.mark.parametrize(
    ("source", "change", "sentence"),
    [
        ("glm4_moe", with_values(rope_theta=77.0), "rope_parameters.rope_theta is 10000.0 and rope_theta is 77.0"),
        ("glm4_moe", with_values(partial_rotary_factor=1.0), "partial_rotary_factor is 0.5 and partial_rotary_factor is 1.0"),
        ("glm4_moe", lambda c: with_values(rope_scaling={"type": "linear", "factor": 2.0})(as_transformers_4(c)), "rope_scaling is linear"),
        ("qwen3_moe, yarn", lambda c: with_values(rope_scaling={**c["rope_parameters"], "factor": 4.0})(c), "rope_scaling is .*which are one thing"),
        ("qwen3_moe", with_values(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_scaling is .*which are one thing"),
        ("mixtral", with_rope(rope_type="dynamic", factor=2.0), "rope_scaling is dynamic"),
        ("mixtral", with_values(rope_parameters={"full_attention": {"rope_theta": 1.0}}), "differ from layer to layer"),
        ("mixtral", with_values(rope_scaling={"rope_type": "default", "rope_theta": 9.0}), "which are one thing"),
        ("glm4_moe", with_values(quantization_config={"quant_method": "fp8"}), "the weights are fp8; give the model in bfloat16"),
        ("qwen3_moe", with_values(auto_map={"AutoModel": "modeling.Mine"}), "auto_map says"),
        ("glm4_moe", with_values(hidden_act="gelu"), "hidden_act is gelu"),
        ("glm4_moe", with_values(is_causal=False), "attention is not causal"),
        ("qwen3_moe", with_values(is_causal=None), "attention is not causal"),
        ("mixtral", with_values(use_bidirectional_attention=True), "attention is not causal"),
        ("mixtral", with_values(per_layer_config={"1": {"num_attention_heads": 2}}), "per_layer_config makes layers differ"),
        ("glm4_moe", with_values(scoring_func="softmax"), "glm4_moe routes by sigmoid"),
        ("qwen3_moe", with_values(attention_bias=True), "o_proj has one too"),
        ("qwen3_moe", with_values(use_sliding_window=True, sliding_window=16), "sliding_window is 16"),
        ("mixtral", with_values(sliding_window=16), "sliding_window is 16"),
        ("qwen3_moe", with_values(decoder_sparse_step=2), "decoder_sparse_step is 2"),
        ("qwen3_moe", with_values(mlp_only_layers=[1]), r"mlp_only_layers is \[1\]"),
        ("qwen3_moe", with_values(num_experts=6), "num_experts is 6 and num_local_experts is 8"),
        ("glm4_moe", with_values(layer_types=["linear_attention"] * 3), "linear_attention"),
        ("glm4_moe", with_values(norm_topk_prob="yes"), "no config that transformers reads"),
        ("glm4_moe", with_values(model_type="olmoe"), "with QK-norm over all heads together.*cannot be imported: models of glm4_moe"),
        ("glm4_moe", with_values(model_type="deepseek_v3"), "with latent attention"),
        ("glm4_moe", with_values(model_type="somethingnew"), "is a somethingnew; it cannot be imported"),
        ("glm4_moe", with_values(first_k_dense_replace=3), "is a dense glm4_moe.*add --upcycle"),
        ("dense mistral", lambda c: with_values(max_position_embeddings=8192)(without("sliding_window")(c)), "sliding_window is 4096"),
        ("dense llama", with_values(mlp_bias=True), "mlp_bias is true"),
        ("dense llama", with_values(attention_bias=True), "o_proj has one too"),
        ("dense llama", with_values(partial_rotary_factor=0.5), "a llama rotates whole heads"),
        ("dense qwen3", with_values(use_sliding_window=True, sliding_window=16, max_window_layers=1, layer_types=None), "sliding_window is 16"),
        ("dense qwen3", with_values(layer_types=["full_attention", "sliding_attention", "full_attention"]), "sliding_window is None"),
    ],
)  # fmt: skip
def test_a_config_that_the_decoder_does_not_compute_is_refused(source, change, sentence, stock, tmp_path):
    dense = source.startswith("dense ")
    _, folder = stock(source, DENSE[source[6:]] if dense else SOURCES[source])
    folder = rewritten(folder, tmp_path / "source", change)
    with pytest.raises(UserError, match=sentence):
        shape_values(folder, *[True] * dense)


NO_COUNT = [0, -1, 1.5, "x", "", [], ["a"], {}, {"a": 1}, True, False, float("nan"), float("inf"), 10**30]
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "max_position_embeddings")  # fmt: skip


@pytest.mark.parametrize("source", ["glm4_moe", "qwen3_moe", "mixtral", "dense llama", "dense mistral", "dense qwen2"])
def test_a_number_that_is_no_count_ends_in_a_sentence(source, stock, tmp_path):
    dense = source.startswith("dense ")
    _, folder = stock(source, DENSE[source[6:]] if dense else SOURCES[source])
    config = json.loads((folder / "config.json").read_text())
    for name in COUNTS:
        for value in NO_COUNT:  # without head_dim, which is else computed of two of them
            changed = {**without(*{"head_dim"} - {name})(config), name: value}
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with pytest.raises(UserError, match=f"{name} is .*; it must be a whole number from 1 to"):
                shape_values(tmp_path, dense)


@pytest.mark.parametrize("source", ["glm4_moe", "qwen3_moe", "mixtral", "dense llama", "dense mistral", "dense qwen2"])
def test_any_value_of_a_config_gives_a_shape_or_a_sentence(source, stock, tmp_path):
    dense = source.startswith("dense ")
    _, folder = stock(source, DENSE[source[6:]] if dense else SOURCES[source])
    config = json.loads((folder / "config.json").read_text())
    others = ("sliding_window", "layer_types", "decoder_sparse_step", "mlp_only_layers", "rope_scaling", "scoring_func")
    for name in {*config, *others} - {"transformers_version"}:
        for value in (None, 0, -1, 1.5, "x", ["a"], {"a": 1}, 10**12):
            (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
            with suppress(UserError):  # another error fails the test
                strict_model(ModelShape, shape_values(tmp_path, dense), tmp_path)


@pytest.mark.parametrize(
    "content", [[], "text", None, {}, *({"model_type": v} for v in (None, "", [], ["a"], {}, 5, True))]
)
def test_a_config_without_a_model_type_is_told(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json names no model_type; give a folder that save_pretrained"):
        shape_values(tmp_path)


def dropped(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


def replaced(name, value):
    return lambda values: {**values, name: value(values)}


@pytest.mark.parametrize(
    ("source", "tensors", "sentence"),
    [
        ("glm4_moe", dropped("model.layers.1.mlp.gate.e_score_correction_bias"), "no tensor 'model.layers.1.mlp.gate.e_score"),
        ("glm4_moe", dropped("model.layers.2.mlp.experts.7.up_proj.weight"), "no tensor 'model.layers.2.mlp.experts.7.up_proj"),
        ("mixtral", dropped("model.layers.2.block_sparse_moe.experts.5.w3.weight"), "no tensor 'model.layers.2.block_sparse_moe.experts.5.w3"),
        ("glm4_moe", dropped("lm_head.weight"), "no tensor 'lm_head.weight'"),
        ("glm4_moe", lambda values: {name.removeprefix("model."): value for name, value in values.items()}, r"no tensors 'model.*and \d+ more"),
        ("glm4_moe", replaced("model.embed_tokens.weight", lambda v: v["lm_head.weight"][:60].clone()), "'model.embed_tokens.weight' is 60x32, and by the config.json it is 64x32"),
        ("glm4_moe", replaced("model.layers.1.mlp.experts.0.up_proj.weight", lambda v: v["model.layers.1.mlp.experts.0.down_proj.weight"].clone()), "is 32x16, and by the config.json it is 16x32"),
        ("qwen3_moe", replaced("lm_head.weight", lambda v: v["lm_head.weight"].to(torch.float8_e4m3fn)), "'lm_head.weight' is of F8_E4M3"),
        ("qwen3_moe", replaced("lm_head.weight_scale_inv", lambda v: torch.ones(1)), "holds tensor 'lm_head.weight_scale_inv'.*quantized"),
        ("qwen3_moe", replaced("model.layers.0.self_attn.o_proj.bias", lambda v: torch.ones(32)), "o_proj.bias', which the run's model has no parameter for"),
        ("qwen3_moe", replaced("model.layers.1.mlp.gate.e_score_correction_bias", lambda v: torch.ones(8)), "e_score_correction_bias', which"),
        ("mixtral", replaced("model.layers.3.input_layernorm.weight", lambda v: torch.ones(32)), "model.layers.3.input_layernorm"),
        ("glm4_moe", replaced("model.layers.3.input_layernorm.weight", lambda v: torch.ones(32)), "model.layers.3.input_layernorm"),
        ("glm4_moe", replaced("model.layers.4.eh_proj.weight", lambda v: torch.ones(32)), "model.layers.4.eh_proj"),
        ("glm4_moe", replaced("model.layers.1.mlp.experts.8.up_proj.weight", lambda v: torch.ones(16, 32)), "experts.8.up_proj"),
        ("glm4_moe, tied", replaced("lm_head.weight", lambda v: v["model.embed_tokens.weight"] + 1), "lm_head.weight is not the embedding"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_config_are_refused_before_one_is_read(
    source, tensors, sentence, stock, tmp_path, monkeypatch
):
    _, folder = stock(source, SOURCES[source])
    folder = rewritten(folder, tmp_path / "source", tensors=tensors)
    shape = ModelShape(**shape_values(folder))
    monkeypatch.setattr(SafetensorsFolder, "__call__", lambda self, name: pytest.fail(f"{name} is read"))
    with pytest.raises(UserError, match=sentence):
        same_model(folder, shape)


def test_a_tied_head_may_be_there_as_well(stock, tmp_path):
    model, folder = stock("glm4_moe, tied", SOURCES["glm4_moe, tied"])
    folder = rewritten(folder, tmp_path / "source", tensors=replaced("lm_head.weight", lambda v: v["model.embed_tokens.weight"].clone()))  # fmt: skip
    shape = ModelShape(**shape_values(folder))
    torch.testing.assert_close(logits(ours(same_model(folder, shape), shape)), logits(model), rtol=1e-5, atol=1e-5)


def test_a_shape_that_is_not_the_models_is_refused(stock):
    _, folder = stock("qwen3_moe", SOURCES["qwen3_moe"])
    values = shape_values(folder)
    for name, other in {
        "hidden_size": 64,
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-5,
    }.items():
        with pytest.raises(UserError, match=f"{name} is {values[name]} there and {other} in the run's model"):
            same_model(folder, ModelShape(**{**values, name: other}))
    same_model(folder, ModelShape(**{**values, "intermediate_size": 7, "max_position_embeddings": 9}))  # of no layer
    with pytest.raises(UserError, match="--upcycle is for a dense model"):
        upcycled(folder, ModelShape(**values), lambda name, rows: None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_experts_per_tok": 4}, "the dense MLP is 48 wide, and shared and chosen experts together 96"),
        ({"n_routed_experts": 7}, "n_routed_experts 7 is no multiple of num_experts_per_tok 2"),
        ({"norm_topk_prob": False}, "upcycling needs norm_topk_prob true"),
        ({"use_qk_norm": False}, "use_qk_norm is True there and False in the run's model"),
    ],
)
def test_experts_that_an_mlp_cannot_be_cut_into_are_refused(values, sentence, stock):
    _, folder = stock("dense qwen3", DENSE["qwen3"])
    shape = ModelShape(**{**shape_values(folder, upcycle=True), **values})
    with pytest.raises(UserError, match=sentence):
        upcycled(folder, shape, lambda name, rows: None)
    with pytest.raises(UserError, match="is a dense qwen3"):
        same_model(folder, shape)
