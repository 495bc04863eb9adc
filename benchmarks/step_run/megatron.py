"""Megatron-Core's training step, with PyTorch's kernels for what it lacks where TransformerEngine is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.step_run.contender import ADAMW, CLIP, CUDA, DEVICE, DTYPE, LEARNING_RATE, Case, Contender, Enter
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.routing import Routing


class MasterWeights:
    """AdamW on fp32 copies of a model's parameters, as mixed-precision trainers keep them."""

    def __init__(self, model: nn.Module):
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._masters = [p.detach().float().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(self._masters, lr=LEARNING_RATE, fused=CUDA, **ADAMW)

    @torch.no_grad()
    def step(self) -> None:
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, CLIP)
        self._optimizer.step()
        torch._foreach_copy_(self._parameters, self._masters)


class CoreAttention(nn.Module):
    """PyTorch's fused causal attention where Megatron-Core expects one; its own without TransformerEngine is not fused.

    S positions, B sequences, H heads of queries, G of keys and values, D of a head.
    """

    def __init__(self, **_: Any):
        super().__init__()

    def forward(self, q_SBHD, k_SBGD, v_SBGD, attention_mask, **_: Any) -> torch.Tensor:
        q_BHSD, k_BGSD, v_BGSD = (t.permute(1, 2, 0, 3) for t in (q_SBHD, k_SBGD, v_SBGD))
        out_BHSD = F.scaled_dot_product_attention(q_BHSD, k_BGSD, v_BGSD, is_causal=True, enable_gqa=True)
        return out_BHSD.permute(2, 0, 1, 3).flatten(2)


def grouped_matmul(
    rows_TD: torch.Tensor, weight_EDF: torch.Tensor, rows_of_expert_E: torch.Tensor, trans_b: bool = False
) -> torch.Tensor:
    """`grouped_gemm.ops.gmm` by PyTorch's grouped matmul."""
    weight_EDF = weight_EDF.transpose(1, 2) if trans_b else weight_EDF
    ends_E = rows_of_expert_E.cumsum(0).to(device=rows_TD.device, dtype=torch.int32)
    return torch._grouped_mm(rows_TD, weight_EDF, offs=ends_E)


def megatron_layers(config: Any) -> tuple[Any, str]:
    """The specification of Megatron-Core's layers with the best kernels that are installed, and which those are.

    Without TransformerEngine 0.16 has its legacy GroupedMLP, which calls the package grouped_gemm and loops over experts
    if it is not asked for, and no fused attention at all. A loop of 64 small matmuls and whole matrices of scores say
    nothing of Megatron-Core as it is used, so PyTorch's kernels take the place of what is not installed.
    """
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.moe import grouped_gemm_util

    if has_transformer_engine():
        layers = get_gpt_decoder_block_spec(config, use_transformer_engine=True, normalization="RMSNorm")
        return layers, "TransformerEngine's layers, attention and grouped GEMM"
    if CUDA and grouped_gemm_util.grouped_gemm_is_available():
        experts = "its legacy GroupedMLP over the package grouped_gemm"
    else:
        grouped_gemm_util.grouped_gemm = grouped_gemm_util.ops = SimpleNamespace(gmm=grouped_matmul)
        experts = "its legacy GroupedMLP over torch's grouped matmul in place of the package grouped_gemm"
    layers = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    for layer in layers.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = CoreAttention
    return layers, f"without TransformerEngine: {experts}, torch's fused attention in place of its unfused one"


def megatron(case: Case) -> Contender:
    """Megatron-Core's GPTModel, with TransformerEngine where it is installed; see `megatron_layers`."""
    with megatron_on_this_device():
        from megatron.core import parallel_state
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
        from megatron.core.transformer.moe import moe_utils

        # 0.16.1 looks at this name without TransformerEngine too, and only then has not defined it.
        vars(moe_utils).setdefault("te_general_gemm", None)
        parallel_state.initialize_model_parallel()
        if CUDA:
            model_parallel_cuda_manual_seed(0)
        config = megatron_config(case.shape)
        layers, as_installed = megatron_layers(config)
        model = GPTModel(
            config,
            layers,
            vocab_size=case.shape.vocab_size,
            max_sequence_length=case.seq_length,
            position_embedding_type="rope",
            rotary_base=int(case.shape.rope_parameters.rope_theta),
            rotary_percent=case.shape.rope_parameters.partial_rotary_factor,
            share_embeddings_and_output_weights=False,
        )
        model.to(DEVICE, DTYPE).train()
    optimizer = MasterWeights(model)
    positions = torch.arange(case.seq_length, device=DEVICE).expand(case.micro_batch, -1)

    def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
        enter("forward")
        with megatron_on_this_device():
            tokens_BS = torch.from_numpy(tokens).to(DEVICE)
            # No mask: the attention of either kind is causal by itself.
            loss = model(tokens_BS[:, :-1], positions, None, labels=tokens_BS[:, 1:]).mean()
            enter("backward")
            loss.backward()
        enter("update")
        optimizer.step()
        return loss.detach()

    return Contender(model, step, as_installed=as_installed)


def megatron_config(shape: ModelShape) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    engine = has_transformer_engine()
    return TransformerConfig(
        num_layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_key_value_heads,
        kv_channels=shape.head_dim,
        qk_layernorm=shape.use_qk_norm,
        num_moe_experts=shape.n_routed_experts,
        moe_router_topk=shape.num_experts_per_tok,
        moe_ffn_hidden_size=shape.moe_intermediate_size,
        moe_shared_expert_intermediate_size=shape.n_shared_experts * shape.moe_intermediate_size,
        moe_layer_freq=[int(i >= shape.first_k_dense_replace) for i in range(shape.num_hidden_layers)],
        moe_router_score_function=shape.scoring_func,
        moe_router_enable_expert_bias=True,
        moe_router_topk_scaling_factor=shape.routed_scaling_factor,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="seq_aux_loss",
        moe_aux_loss_coeff=Routing().aux_loss_coef,
        moe_z_loss_coeff=Routing().z_loss_coef,
        moe_token_dispatcher_type="alltoall" if CUDA else "allgather",  # the first needs CUDA streams
        moe_grouped_gemm=True,
        moe_permute_fusion=engine,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,  # GroupedMLP asks for it; without a GPU the parameters are fp32 all the same
        params_dtype=DTYPE,
        use_cpu_initialization=not CUDA,
        # What needs Apex or TransformerEngine, and what does not.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=engine,
        bias_activation_fusion=CUDA,
        bias_dropout_fusion=CUDA,
        cross_entropy_loss_fusion=CUDA,
    )


def has_transformer_engine() -> bool:
    return CUDA and importlib.util.find_spec("transformer_engine") is not None


@contextmanager
def megatron_on_this_device() -> Iterator[None]:
    """Without a GPU, what Megatron-Core asks of CUDA is answered for the CPU: a rehearsal of shapes, not of speed."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    if CUDA:
        yield
        return
    before = torch.cuda.current_device, CudaRNGStatesTracker.fork
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    CudaRNGStatesTracker.fork = lambda self, name="": nullcontext()  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.cuda.current_device, CudaRNGStatesTracker.fork = before  # type: ignore[method-assign]
