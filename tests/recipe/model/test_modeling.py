"""Our decoder against transformers' Glm4Moe: same names, same maths, same gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRMSNorm

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape
from recipe.huggingface.architectures import export_config
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM, RecipeMoeModel
from recipe.model.modeling import (
    CACHE,
    LanguageModelHead,
    MoeBlock,
    initialize_parameter,
    inverse_frequencies,
    rms_norm,
)
from tests.conftest import ROOT


def small_config(**changes) -> RecipeMoeConfig:
    config = RecipeMoeConfig.from_folder(ROOT / "recipe/configs/models/tiny")
    config.vocab_size, config.num_hidden_layers = 256, 3
    for name, value in changes.items():
        setattr(config, name, value)
    config._attn_implementation = "sdpa"
    return config


def initialized(config: RecipeMoeConfig, seed: int = 1) -> RecipeMoeForCausalLM:
    model = RecipeMoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, config, seed)
        for module in model.modules():
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return model


def test_a_bf16_norm_is_transformers_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    x_TD = (4 * torch.randn(64, 96, generator=generator)).bfloat16()
    plain = Glm4MoeRMSNorm(96, eps=1e-5).bfloat16()
    with torch.no_grad():
        plain.weight.copy_(1 + 0.3 * torch.randn(96, generator=generator))
    assert torch.equal(rms_norm(x_TD, plain.weight, 1e-5), plain(x_TD))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_qk_norm": False, "attention_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
        {"n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
        {"first_k_dense_replace": 0, "num_key_value_heads": 4},
        {"n_shared_experts": 0},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items() if name != "rope_parameters"),
)
def test_logits_and_gradients_equal_glm4_moe(changes):
    check_equal(*glm4_moe_pair(**changes))


def glm4_moe_config(config: RecipeMoeConfig, **more) -> Glm4MoeConfig:
    shape = ModelShape(**{name: getattr(config, name) for name in ModelShape.model_fields})
    return Glm4MoeConfig(**export_config(shape, dtype="float32", max_position_embeddings=2048), **more)


def glm4_moe_pair(attention: str = "sdpa", **changes) -> tuple[RecipeMoeForCausalLM, Glm4MoeForCausalLM]:
    """Our model and transformers' with the same weights; where there are no shared experts, its have no width."""
    config = small_config(**changes)
    config._attn_implementation = attention
    ours = initialized(config)
    theirs = Glm4MoeForCausalLM(glm4_moe_config(config, attn_implementation=attention))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert not [name for name in missing if theirs.get_parameter(name).numel()]
    return ours, theirs


def random_tokens(rows: int = 2, length: int = 33) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0))


def check_equal(ours: RecipeMoeForCausalLM, theirs: PreTrainedModel, length: int = 33) -> None:
    tokens = random_tokens(length=length)
    mine, reference = ours(tokens, labels=tokens), theirs(tokens, labels=tokens)
    torch.testing.assert_close(mine.logits, reference.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.loss, reference.loss, rtol=1e-6, atol=0)
    mine.loss.backward()
    reference.loss.backward()
    for name, parameter in theirs.named_parameters():
        if parameter.numel():
            torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def softmax_pair(stock: type, stock_config: type, special: Callable, **changes) -> tuple:
    config = small_config(scoring_func="softmax", n_shared_experts=0, **changes)
    ours = initialized(config)
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "num_experts_per_tok", "rms_norm_eps", "rope_parameters", "max_position_embeddings")  # fmt: skip
    theirs = stock(stock_config(**{name: getattr(config, name) for name in same}, **special(config)))
    biases = {name for name in ours.state_dict() if name.endswith("e_score_correction_bias")}
    with torch.no_grad():
        for name in biases:
            ours.get_buffer(name).zero_()  # which neither has
    theirs.load_state_dict({name: t for name, t in ours.state_dict().items() if name not in biases}, strict=True)
    return ours, theirs


def qwen3_moe_pair(**changes) -> tuple[RecipeMoeForCausalLM, Qwen3MoeForCausalLM]:
    return softmax_pair(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        lambda config: {
            "num_experts": config.n_routed_experts,
            "moe_intermediate_size": config.moe_intermediate_size,
            "intermediate_size": config.intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "mlp_only_layers": list(range(config.first_k_dense_replace)),
        },
        **changes,
    )


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_softmax_routing_without_shared_experts_equals_qwen3_moe(norm_topk_prob):
    check_equal(*qwen3_moe_pair(norm_topk_prob=norm_topk_prob))


def mixtral_pair(**changes) -> tuple[RecipeMoeForCausalLM, MixtralForCausalLM]:
    return softmax_pair(
        MixtralForCausalLM,
        MixtralConfig,
        lambda config: {
            "num_local_experts": config.n_routed_experts,
            "intermediate_size": config.moe_intermediate_size,
            "sliding_window": None,
        },
        first_k_dense_replace=0,
        use_qk_norm=False,
        **changes,
    )


def test_softmax_routing_without_shared_experts_and_qk_norm_equals_mixtral():
    check_equal(*mixtral_pair())


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "factor": 32.0, "original_max_position_embeddings": 64}  # fmt: skip
BEYOND = 150  # positions, of which YARN's original context has less than half


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 5e5, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"attention_factor": 1.5},
        {"mscale": 0.7, "mscale_all_dim": 1.2},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_yarn_is_that_of_glm4_moe_beyond_the_original_context(changes):
    ours, theirs = glm4_moe_pair(rope_parameters={**YARN, **changes})
    check_equal(ours, theirs, BEYOND)
    ours.config.rope_parameters = {**ours.config.rope_parameters, "rope_type": "default"}
    tokens = random_tokens(length=BEYOND)
    assert (ours(tokens).logits - theirs(tokens).logits).abs().max() > 0.01  # or the comparison sees nothing of it


@pytest.mark.parametrize("pair", [qwen3_moe_pair, mixtral_pair], ids=["qwen3_moe", "mixtral"])
def test_yarn_is_that_of_softmax_architectures_beyond_the_original_context(pair):
    check_equal(*pair(rope_parameters=YARN), BEYOND)


class Devices(TorchDispatchMode):
    """On which the tensors are that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {result.device.type} if isinstance(result, torch.Tensor) else set()
        return result


def test_frequencies_of_yarn_are_made_on_the_device():
    with Devices() as devices:  # a tensor made elsewhere would be copied, for which a GPU's host waits
        _, scaling = inverse_frequencies(small_config(rope_parameters=YARN), torch.device("meta"))
    assert (devices.seen, scaling) == ({"meta"}, pytest.approx(1 + 0.1 * math.log(32)))


def test_null_keys_of_yarn_mean_what_they_mean_in_our_config_json():
    config = RecipeMoeConfig(rope_parameters={**YARN, "truncate": None})
    assert "truncate" not in config.rope_parameters  # transformers takes null for false


def test_hidden_states_and_attentions_are_those_of_glm4_moe():
    ours, theirs = glm4_moe_pair("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    mine, reference = ours(random_tokens(), **asked), theirs(random_tokens(), **asked)
    for name in ("hidden_states", "attentions"):
        assert len(mine[name]) == len(reference[name]) >= 3
        for tensor, expected in zip(mine[name], reference[name], strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
    assert not set(ours(random_tokens())) & {"hidden_states", "attentions", "router_logits"}


def test_router_logits_are_those_of_qwen3_moe():
    ours, theirs = qwen3_moe_pair(first_k_dense_replace=1)
    mine = ours(random_tokens(), output_router_logits=True).router_logits
    reference = theirs(random_tokens(), output_router_logits=True).router_logits
    assert len(mine) == len(reference) == 2
    for tensor, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
    ours.config.output_router_logits = True
    assert len(ours(random_tokens()).router_logits) == 2


def test_router_logits_of_replaced_layers_are_refused():
    model = initialized(small_config())
    model.model.layers[1].mlp = torch.nn.Identity()  # as AutoEP's layer does
    with pytest.raises(UserError, match="output_router_logits needs the model's own routers"):
        model(random_tokens(), output_router_logits=True)


SHIFTED = torch.cat((random_tokens()[:, 1:], torch.full((2, 1), -100)), dim=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": random_tokens(), "num_items_in_batch": 7},
        {"labels": random_tokens(), "shift_labels": SHIFTED.flip(1), "num_items_in_batch": torch.tensor(50)},
        {"logits_to_keep": 3},
        {"logits_to_keep": torch.tensor([0, 5, 32])},
        {"labels": random_tokens(), "return_dict": False, "use_cache": False},
    ],
    ids=",".join,
)
@pytest.mark.parametrize("embedded", [False, True])
def test_arguments_mean_what_they_mean_for_glm4_moe(arguments, embedded):
    ours, theirs = glm4_moe_pair()
    results = []
    for model in (ours, theirs):
        tokens = random_tokens()
        given = {"inputs_embeds": model.get_input_embeddings()(tokens)} if embedded else {"input_ids": tokens}
        results.append(model.eval()(**given, **arguments))
    mine, reference = results
    if arguments.get("return_dict") is False:
        assert [type(value) for value in mine] == [type(value) for value in reference] == [torch.Tensor] * 2
        mine, reference = ({"loss": loss, "logits": logits} for loss, logits in results)
    torch.testing.assert_close(mine["logits"], reference["logits"], rtol=1e-5, atol=1e-5)
    if "labels" in arguments:
        torch.testing.assert_close(mine["loss"], reference["loss"], rtol=1e-6, atol=0)


def test_targets_already_shifted_need_no_labels_beside_them():
    model, tokens = initialized(small_config()), random_tokens()
    expected = model(tokens, labels=tokens).loss
    torch.testing.assert_close(model(tokens, shift_labels=SHIFTED).loss, expected)
    torch.testing.assert_close(model(tokens, targets=SHIFTED).loss / (SHIFTED != -100).sum(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_attention": True}, "no argument 'output_attention'"),
        ({"token_type_ids": random_tokens()}, "no argument 'token_type_ids'"),
        ({"cache_position": torch.arange(33)}, "no argument 'cache_position'"),
        ({"is_causal": False}, "no argument 'is_causal'"),
        ({"output_attentions": True}, "sdpa has no attention weights to return"),
        ({"input_ids": None}, "give either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(2, 33, 128)}, "give either input_ids or inputs_embeds"),
        ({"past_key_values": object(), "cache": object()}, "two names of one argument"),
        ({"targets": random_tokens(), "labels": random_tokens()}, "leave labels, shift_labels and logits_to_keep out"),
        ({"targets": random_tokens(), "logits_to_keep": 1}, "leave labels, shift_labels and logits_to_keep out"),
        ({"per_token": True}, "give targets"),
        ({"logits_to_keep": torch.ones(2, 33, dtype=torch.bool)}, "2 dimensions"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_nothing_reads_is_refused_by_name(arguments, message):
    model = initialized(small_config())
    with pytest.raises((UserError, TypeError), match=message):
        model(**{"input_ids": random_tokens(), **arguments})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
        ("tie_word_embeddings", True),
        ("attention_dropout", 0.1),
        ("hidden_act", "gelu"),
        ("scoring_func", "topk"),
        ("num_key_value_heads", 3),
    ],
)
def test_a_configuration_that_the_model_does_not_implement_is_refused(name, value):
    with pytest.raises(UserError, match=name):
        RecipeMoeForCausalLM(small_config(**{name: value}))


def test_a_configuration_without_arguments_is_a_model():
    config = RecipeMoeConfig()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    assert RecipeMoeConfig(rope_theta=500.0).rope_parameters["rope_theta"] == 500.0
    assert RecipeMoeModel(config)(random_tokens()).last_hidden_state.shape == (2, 33, 128)


def test_a_resized_vocabulary_keeps_the_head_that_computes_losses():
    model, tokens = initialized(small_config()), random_tokens()
    before = model(tokens).logits
    model.resize_token_embeddings(300, mean_resizing=False)
    assert isinstance(model.lm_head, LanguageModelHead)
    torch.testing.assert_close(model(tokens).logits[..., :256], before)
    torch.testing.assert_close(model(tokens, targets=SHIFTED).loss / 64, model(tokens, labels=tokens).loss)
    with pytest.raises(UserError, match="no bias"):
        model.set_output_embeddings(torch.nn.Linear(128, 300))


def test_padding_on_the_left_does_not_change_the_logits():
    model = initialized(small_config()).eval()
    tokens = torch.randint(0, 256, (1, 9))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), tokens), dim=1)
    mask = torch.cat((torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)), dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    plain, shifted = model(tokens).logits, model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(plain, shifted, rtol=1e-4, atol=1e-5)


def test_generation_with_the_cache_equals_full_forward_passes():
    model = initialized(small_config()).eval()
    tokens = torch.randint(0, 256, (1, 5), generator=torch.Generator().manual_seed(3))
    generated = model.generate(tokens, max_new_tokens=8, do_sample=False)
    expected = tokens
    for _ in range(8):
        expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # before and from transformers 5.24 on
@pytest.mark.parametrize("part", ["causal_lm", "model"])
def test_tokens_after_a_cache_of_either_name_are_as_in_one_pass(name, part):
    whole = initialized(small_config()).eval()
    model = whole if part == "causal_lm" else whole.model
    tokens = random_tokens(length=12)
    expected = model(tokens, use_cache=False)[0]
    first = model(tokens[:, :5])  # the configuration asks for a cache
    assert first[CACHE].get_seq_length() == 5
    rest = model(tokens[:, 5:], **{name: first[CACHE]})
    torch.testing.assert_close(torch.cat((first[0], rest[0]), dim=1), expected, rtol=1e-4, atol=1e-5)
    assert rest[CACHE].get_seq_length() == 12


def test_a_cache_is_made_where_it_is_of_use():
    model = initialized(small_config())
    assert CACHE not in model(random_tokens())  # training
    assert CACHE in model(random_tokens(), use_cache=True)
    assert CACHE not in model.eval()(random_tokens(), targets=SHIFTED)
    model.train().recompute_layers(use_reentrant=False)
    with pytest.raises(UserError, match="recomputed would fill a cache twice"):
        model(random_tokens(), use_cache=True)


def test_the_model_is_registered_with_the_auto_classes(tmp_path):
    model = initialized(small_config())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RecipeMoeForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path)) is RecipeMoeModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is RecipeMoeConfig
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name


def test_files_have_one_tensor_per_expert_and_matrix_like_those_of_glm4_moe(tmp_path):
    ours, theirs = glm4_moe_pair()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    tensors, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    # A folder with the experts of a layer together, as the class once wrote, is read as well.
    save_file(ours.state_dict(), tmp_path / "ours/model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in ours.state_dict().items())


def test_weights_that_a_folder_lacks_are_initialised(tmp_path):
    model = initialized(small_config())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lacking = [name for name in tensors if "layers.1.mlp.gate" in name or "layers.2.mlp.experts" in name]
    for name in lacking:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)  # what is drawn has few elements, so its deviation scatters
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).model.layers
    blocks = [layer.mlp for layer in loaded if isinstance(layer.mlp, MoeBlock)]
    assert torch.equal(blocks[0].gate.e_score_correction_bias, torch.zeros(8))
    for drawn in (blocks[0].gate.weight, blocks[1].experts.gate_up_proj, blocks[1].experts.down_proj):
        assert drawn.std().item() == pytest.approx(model.config.initializer_range, rel=0.05)


@torch.no_grad()
def test_initial_weights_depend_on_name_and_seed_alone():
    config = small_config()
    first, again, other = initialized(config), initialized(config), initialized(config, seed=2)
    shorter = initialized(small_config(num_hidden_layers=2))
    for name, parameter in shorter.named_parameters():
        assert torch.equal(parameter, first.get_parameter(name)), name
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other.get_parameter(name)), name
            assert parameter.std().item() == pytest.approx(config.initializer_range, rel=0.05)
            rounded = torch.empty_like(parameter, dtype=torch.bfloat16)
            initialize_parameter(rounded, name, config, seed=1)
            assert torch.equal(rounded, parameter.bfloat16()), name


def test_rotary_angles_survive_a_cast_to_bf16():
    # A buffer of inverse frequencies would be rounded by the cast; position 1000 would be off by radians.
    model = initialized(small_config())
    tokens = torch.randint(0, 256, (1, 16))
    positions = torch.arange(1000, 1016).unsqueeze(0)
    exact = model(tokens, position_ids=positions).logits
    rounded = model.to(torch.bfloat16)(tokens, position_ids=positions).logits
    assert (exact - rounded.float()).abs().max() < 0.1 * exact.abs().max()


def test_softmax_routing_trains():
    tokens = torch.randint(0, 256, (2, 16))
    loss = initialized(small_config(scoring_func="softmax"))(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_packed_documents_are_as_if_alone():
    model = initialized(small_config()).eval()
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(2))
    cuts = ((0, 6, 13, 20), (0, 1, 17, 20))
    positions = torch.stack([torch.cat([torch.arange(b - a) for a, b in pairwise(c)]) for c in cuts])
    packed = model(tokens, position_ids=positions).logits
    for row, cut in enumerate(cuts):
        alone = [model(tokens[row : row + 1, a:b]).logits[0] for a, b in pairwise(cut)]
        torch.testing.assert_close(packed[row], torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(packed, model(tokens).logits, atol=1e-3)


def test_what_keeps_documents_apart_reaches_an_attention_that_gets_no_mask():
    seen = []

    def attention(module, query, key, value, mask, *, position_ids, cu_seq_lens_q=None, **kwargs):
        seen.append((mask, position_ids, cu_seq_lens_q))
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("probe", attention)
    config = small_config()
    config._attn_implementation = "probe"
    model, tokens = initialized(config), torch.randint(0, 256, (1, 6))
    positions, lengths = torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor([0, 3, 6])
    model(tokens, position_ids=positions, cu_seq_lens_q=lengths)
    assert len(seen) == config.num_hidden_layers
    assert all(mask is None and p is positions and q is lengths for mask, p, q in seen)
    seen.clear()
    model(tokens)
    assert set(seen) == {(None, None, None)}  # one document: nothing to look for


def test_recomputing_layers_in_full_changes_no_gradient():  # without the parts nobody reads: test_recompute.py
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model = initialized(small_config())
        calls = []
        model.model.layers[1].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if recompute:
            model.recompute_layers(use_reentrant=True)
        model(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(calls) == 1 + recompute
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.filterwarnings("error")
def test_recompute_is_silent_where_no_gradient_is_wanted():
    model = initialized(small_config())
    model.recompute_layers(use_reentrant=True)
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
