"""What a mask that keeps documents apart costs in memory, beside what autograd keeps, and in time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe.base.hardware import GIB, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.model import RecipeMoeConfig
from recipe.planner.memory import mask_bytes, masked_layer_bytes
from recipe.planner.plan import Plan, with_kept
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/tiny")
FLAGSHIP = load_model_shape(ROOT / "recipe/configs/models/30b-a3b").model_copy(
    update={"max_position_embeddings": 1 << 17}
)
ROWS, SEQ = 2, 128


def work_of(shape, *, micro_batch: int, gpus: int = 8, **facts) -> Workload:
    ds = parsed(ds_config_for(shape, gpus, stage=3, ep_size=8, micro_batch=micro_batch, accumulation=1))
    return Workload(shape, cluster_of("a100-80gb", gpus, "400g"), ds, RunFacts(**{"recompute": "selective", **facts}))


def long(length: int, **facts) -> Plan:
    return Plan(work_of(FLAGSHIP, micro_batch=1, gpus=256, seq_length=length, **facts))


def bytes_saved(mask: torch.Tensor | None) -> int:
    """That autograd keeps of attention, each storage once, without its mask of all layers."""
    heads, width = (SHAPE.num_attention_heads, SHAPE.num_key_value_heads), SHAPE.head_dim
    query, key, value = (
        torch.randn(ROWS, n, SEQ, width, dtype=torch.bfloat16, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    )
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    module = SimpleNamespace(num_key_value_groups=heads[0] // heads[1], is_causal=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask)
    held = 0 if mask is None else mask.untyped_storage().data_ptr()
    return sum(t.untyped_storage().nbytes() for address, t in storages.items() if address != held)


def test_the_mask_and_what_a_layer_keeps_for_it_are_as_many_bytes_as_planned():
    config = RecipeMoeConfig.from_shape(SHAPE)
    config._attn_implementation = "sdpa"
    positions = torch.arange(SEQ).remainder(SEQ // 2).expand(ROWS, SEQ)
    x = torch.zeros(ROWS, SEQ, 1, dtype=torch.bfloat16)
    mask = create_causal_mask(
        config=config, inputs_embeds=x, attention_mask=None, position_ids=positions, past_key_values=None
    )
    work = work_of(SHAPE, micro_batch=ROWS, seq_length=SEQ, document_attention=True)
    assert mask.untyped_storage().nbytes() == mask_bytes(work)
    assert bytes_saved(mask) - bytes_saved(None) == masked_layer_bytes(work)


def test_only_torchs_attention_inside_documents_has_a_mask():
    for facts in ({}, {"document_attention": True, "attention": "flash_attention_2"}):
        assert "attention mask" not in long(32768, **facts).memory.at("loss")
    masked = long(32768, document_attention=True)
    assert masked.memory.at("loss")["attention mask"] == 1.0  # 32,768 squared bytes
    assert masked.memory.peak_gib > long(32768).memory.peak_gib + 3


def test_a_layer_that_is_not_recomputed_has_a_mask_of_its_own():
    plan = long(4096, document_attention=True)
    layer = masked_layer_bytes(plan.work) / GIB
    whole = Plan(with_kept(plan.work, plan.kept_gib_that_fills()))
    assert whole.work.kept.whole == 24
    bare = Plan(replace(whole.work, run=replace(whole.work.run, attention="flash_attention_2")))
    more = [p.memory.at("loss")["kept results"] for p in (whole, bare)]
    assert more[0] - more[1] == (24 * layer)


def test_attention_inside_documents_is_shorter_but_for_a_mask_which_computes_the_hidden_half_too():
    whole = long(32768, document_attention=True, attention="flash_attention_2")
    short = long(32768, document_attention=True, attention="flash_attention_2", document_tokens=4096)
    masked = [long(32768, document_attention=True, document_tokens=n) for n in (None, 4096)]
    apart = long(32768, document_tokens=4096)  # documents that attend to each other
    assert short.expected.compute_s < 0.8 * whole.expected.compute_s < whole.expected.compute_s
    assert masked[0].expected.compute_s == masked[1].expected.compute_s > 1.2 * whole.expected.compute_s
    assert apart.expected.compute_s == whole.expected.compute_s


def test_what_does_not_fit_for_its_masks_is_told_of_other_attention():
    (problem,) = long(131072, document_attention=True).problems()
    assert "shorter sequences, an attention without masks (compute.attention)" in problem
