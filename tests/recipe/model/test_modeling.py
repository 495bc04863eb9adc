"""Our decoder against transformers' Glm4Moe: same names, same maths, same gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe.base.errors import UserError
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_qk_norm": False, "attention_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
        {"n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
        {"first_k_dense_replace": 0, "num_key_value_heads": 4},
    ],
    ids=lambda changes: ",".join(changes) or "tiny",
)
def test_logits_and_gradients_equal_glm4_moe(changes):
    config = small_config(**changes)
    ours = initialized(config)
    theirs = Glm4MoeForCausalLM(Glm4MoeConfig(**config.to_glm4_moe()))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = torch.randint(0, config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))
    mine, reference = ours(tokens, labels=tokens), theirs(tokens, labels=tokens)
    torch.testing.assert_close(mine.logits, reference.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.loss, reference.loss, rtol=1e-6, atol=0)
    mine.loss.backward()
    reference.loss.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


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


def test_the_model_is_registered_with_the_auto_classes(tmp_path):
    model = initialized(small_config())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RecipeMoeForCausalLM
    assert type(AutoConfig.from_pretrained(tmp_path)) is RecipeMoeConfig
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name


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


def test_softmax_routing_trains_but_is_not_exportable():
    config = small_config(scoring_func="softmax")
    tokens = torch.randint(0, 256, (2, 16))
    loss = initialized(config)(tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(UserError, match="scoring_func 'softmax' has no equal in glm4_moe"):
        config.to_glm4_moe()


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


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputing_layers_changes_no_gradient(use_reentrant):
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model = initialized(small_config())
        calls = []
        model.model.layers[1].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(calls) == 1 + recompute
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.filterwarnings("error")
def test_recompute_is_silent_where_no_gradient_is_wanted():
    model = initialized(small_config())
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
