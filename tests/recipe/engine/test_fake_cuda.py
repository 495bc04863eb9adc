"""CUDA branches of a training step, on CUDA tensors without memory: what the installed torch, DeepSpeed and transformers take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import deepspeed
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import parse_autoep_config
from transformers import modeling_flash_attention_utils as flash

from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute
from recipe.data.batch import make_batch
from recipe.engine.moe.autoep import connect, divide_exchanges, moe_layers, recipe_layers
from recipe.engine.moe.plan import Counts
from recipe.engine.moe.routing_control import MicroBatch, RoutingControl
from recipe.engine.step import for_attention, model_inputs
from recipe.model import RecipeMoeForCausalLM
from recipe.model.loss import summed_loss
from recipe.model.matmul import add_fp32_matmul, fp32_matmul
from tests.conftest import ds_config
from tests.fake_cuda import backward, fake_cuda
from tests.recipe.model.test_modeling import small_config

ROWS, SEQ, EXPERTS = 2, 32, 8
aten = torch.ops.aten
# The operators for whose sake there are CUDA branches.
OF_CUDA = {aten.mm.dtype, aten.addmm.dtype_out, aten._grouped_mm.default}


def parallel_model(ep_size: int = 1) -> RecipeMoeForCausalLM:
    """A small model with AutoEP's layers as the engine has them built, in bf16 on a GPU."""
    config = parse_autoep_config(ds_config(1, micro_batch=1, accumulation=1, autoep_size=ep_size)["expert_parallel"])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"), recipe_layers():
            model = RecipeMoeForCausalLM(small_config())
            layers = AutoEP(model, config)
            layers.replace_moe_layers(layers.ep_parser(), ep_size=ep_size, ep_rank=0)
    finally:
        torch.set_default_dtype(torch.float32)
    return model


def inputs_of(attention: str, documents: bool) -> dict[str, Any]:
    """What a step hands the model, as a micro-batch of the loader's becomes it."""
    sequences = np.full((ROWS, SEQ + 1), 5)
    sequences[:, 7] = 1
    batch = make_batch(sequences, np.zeros(ROWS, dtype=int), eod_id=1, pad_id=None, document_attention=documents)
    inputs = for_attention(model_inputs(batch), Compute(attention=attention))  # type: ignore[arg-type]
    return {**inputs, "targets": torch.from_numpy(batch.targets).reshape(inputs["input_ids"].shape)}


def on_fake_cuda(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.zeros(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def check_gradients(output: torch.Tensor, parameters: Any) -> None:
    gradients = backward(output)
    for parameter in parameters:
        gradient = gradients[parameter]
        assert (gradient.shape, gradient.dtype, gradient.device) == (parameter.shape, parameter.dtype, parameter.device)


def train(inputs: dict[str, Any], attention: str = "sdpa") -> set[Any]:
    """One micro-batch forward and backward; the operators that it called."""
    with fake_cuda() as operators:
        model = parallel_model()
        model.config._attn_implementation = attention
        loss = model(**on_fake_cuda(inputs), loss_chunk_tokens=16).loss
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
        check_gradients(loss, model.parameters())
    return operators


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    """Signature and rules of flash_attn 2.8.3, flash_attn/flash_attn_interface.py."""
    assert all(t.dtype == torch.bfloat16 and t.is_cuda and t.stride(-1) == 1 for t in (q, k, v))
    assert q.dim() == k.dim() == v.dim() == 3  # (tokens, heads, head size)
    assert q.shape[1] % k.shape[1] == 0
    assert all(t.dtype == torch.int32 and t.is_cuda and t.dim() == 1 for t in (cu_seqlens_q, cu_seqlens_k))
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert causal
    return q * k.mean() * v.mean()


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    """As above; rows of one length."""
    assert all(t.dtype == torch.bfloat16 and t.is_cuda and t.stride(-1) == 1 for t in (q, k, v))
    assert q.dim() == k.dim() == v.dim() == 4
    assert causal
    return q * k.mean() * v.mean()


@pytest.fixture
def flash_attn(monkeypatch) -> dict[str, mock.Mock]:
    """The package flash-attn as transformers calls it."""
    functions = {function.__name__: mock.create_autospec(function, side_effect=function)
                 for function in (flash_attn_func, flash_attn_varlen_func)}  # fmt: skip
    monkeypatch.setattr(flash, "_lazy_imports", lambda *_, **__: (*functions.values(), None, None, None))
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    return functions


@pytest.mark.parametrize("documents", [False, True])
def test_a_step_with_sdpa(documents):
    assert train(inputs_of("sdpa", documents)) >= OF_CUDA


@pytest.mark.parametrize(("documents", "function"), [(False, "flash_attn_func"), (True, "flash_attn_varlen_func")])
def test_a_step_with_flash_attention(documents, function, flash_attn):
    inputs = inputs_of("flash_attention_2", documents)
    train(inputs, "flash_attention_2")
    assert [name for name, called in flash_attn.items() if called.called] == [function]
    given = flash_attn[function].call_args.kwargs
    assert given.get("max_seqlen_q") == given.get("max_seqlen_k") == inputs.get("max_length_q")


@pytest.mark.parametrize("mode", ["dropless", "drop"])
def test_routers_under_a_runs_control(mode):
    """All losses, an observed step, and limits."""
    routing = Routing.model_validate({"aux_loss_coef": 0.01, "aux_loss_scope": "sequence", "z_loss_coef": 0.001,
                                      "capacity": {"mode": mode, "factor": 1.0}})  # fmt: skip
    with fake_cuda() as operators:
        model = parallel_model().train()
        biases = [layer.router.e_score_correction_bias for _, layer in moe_layers(model)]
        control = RoutingControl(routing, biases, top_k=2, seq_length=SEQ, accumulation=2, sources=["en", "zh"], seed=0)
        connect(model, control)
        valid = torch.ones(ROWS * SEQ, dtype=torch.bool, device="cuda")
        control.begin_step(1, token_weight=torch.ones((), device="cuda"), observing=True)
        control.begin_micro_batch(MicroBatch(0, valid, torch.zeros_like(valid, dtype=torch.int64)))
        loss = model(**on_fake_cuda(inputs_of("sdpa", False)), loss_chunk_tokens=16).loss
        control.end_forward()
        check_gradients(loss, model.parameters())
    assert operators >= OF_CUDA


@pytest.mark.parametrize(("parts", "read_late"), [(1, False), (3, True)])
def test_experts_of_several_ranks(parts, read_late, monkeypatch):
    """One rank of EP 4; the exchanges are called and move nothing."""
    ranks, top_k = 4, 2
    work = mock.create_autospec(torch.distributed.Work, instance=True)
    exchange = mock.create_autospec(deepspeed.comm.all_to_all_single, return_value=work)
    monkeypatch.setattr(deepspeed.comm, "all_to_all_single", exchange)
    monkeypatch.setattr(torch.cuda, "Event", mock.create_autospec(torch.cuda.Event))
    sizes = [len(part) * top_k for part in torch.arange(ROWS * SEQ).tensor_split(parts)]
    splits = [[[size // ranks] * (ranks - 1) + [size - size // ranks * (ranks - 1)]] * 2 for size in sizes]
    monkeypatch.setattr(Counts, "read", lambda self: splits)
    with fake_cuda() as operators:
        model = parallel_model(ranks)
        divide_exchanges(model, parts)
        for _, layer in moe_layers(model):
            layer.async_split_plan = read_late
        loss = model(**on_fake_cuda(inputs_of("sdpa", False)), loss_chunk_tokens=16).loss
        check_gradients(loss, model.parameters())
    layers = len(moe_layers(model))
    # The counts of all parts; then rows and weights there, rows back, and the gradients of all.
    assert exchange.call_count == layers * (1 + parts * 2 * 3)
    assert work.wait.call_count == layers * parts * 2 * 3
    assert torch.cuda.Event.call_count == layers * read_late
    assert operators >= OF_CUDA


def test_scores_of_tokens():
    with fake_cuda():
        model = parallel_model().eval()
        scores = model(**on_fake_cuda(inputs_of("sdpa", False)), loss_chunk_tokens=16, per_token=True).loss
    assert (scores.shape, scores.dtype, scores.device.type) == ((ROWS, SEQ, 2), torch.float32, "cuda")


def with_another_keyword(function: Callable[..., Any], keyword: str) -> Callable[..., Any]:
    """What a caller makes of a function whose keyword it spells wrongly."""
    return lambda *args, **kwargs: function(
        *args, **{name + "s" if name == keyword else name: value for name, value in kwargs.items()}
    )


def small_matmuls() -> None:
    a, b = (torch.empty(16, 16, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    fp32_matmul(a, b.T)
    add_fp32_matmul(torch.empty(16, 16, device="cuda"), a.T, b)


@pytest.mark.parametrize(("function", "keyword"), [("mm", "out_dtype"), ("addmm", "out_dtype"), ("addmm", "out")])
def test_a_matmul_with_a_wrong_keyword_would_be_noticed(function, keyword, monkeypatch):
    with fake_cuda():
        small_matmuls()
        monkeypatch.setattr(torch, function, with_another_keyword(getattr(torch, function), keyword))
        with pytest.raises(TypeError):
            small_matmuls()


def test_a_grouped_gemm_with_a_wrong_keyword_or_layout_would_be_noticed(monkeypatch):
    with fake_cuda():
        experts = parallel_model().model.layers[-1].mlp.experts
        sizes = torch.empty(EXPERTS, dtype=torch.int32, device="cuda")
        rows = torch.empty(64, experts.w1.shape[2], dtype=torch.bfloat16, device="cuda")
        weights = torch.empty(64, device="cuda")
        experts.computed(rows, weights, sizes)
        odd, weight = (
            torch.empty(*size, dtype=torch.bfloat16, device="cuda") for size in ((64, 33), (EXPERTS, 16, 33))
        )
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            F.grouped_mm(odd, weight.transpose(-2, -1), offs=sizes)
        monkeypatch.setattr(F, "grouped_mm", with_another_keyword(F.grouped_mm, "offs"))
        with pytest.raises(TypeError):
            experts.computed(rows, weights, sizes)


@pytest.mark.parametrize("keyword", ["cu_seq_lens_q", "max_length_k"])
def test_lengths_of_documents_by_a_wrong_name_would_be_noticed(keyword, flash_attn):
    inputs = inputs_of("flash_attention_2", True)
    inputs[keyword + "s"] = inputs.pop(keyword)
    with pytest.raises(TypeError, match=keyword + "s"):
        train(inputs, "flash_attention_2")


def test_a_matmul_of_precisions_that_no_gpu_takes_would_be_noticed():
    with fake_cuda():
        a = torch.empty(16, 16, dtype=torch.bfloat16, device="cuda")
        with pytest.raises(RuntimeError, match="out_dtype"):
            torch.mm(a, a, out_dtype=torch.float64)


def test_a_loss_without_gradients_needs_no_matmul_of_cuda():
    with fake_cuda() as operators, torch.no_grad():
        hidden = torch.empty(64, 16, dtype=torch.bfloat16, device="cuda")
        weight = torch.empty(32, 16, dtype=torch.bfloat16, device="cuda")
        summed_loss(hidden, weight, torch.zeros(64, dtype=torch.int64, device="cuda"), 16)
    assert not operators & OF_CUDA
