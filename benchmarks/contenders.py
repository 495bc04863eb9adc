"""One training step of the same model on one GPU, as this recipe does it and as others would.

Each contender is built for the same shape, batch, precision (bf16 beside fp32 master weights, moments and gradient
norm; fp32 throughout without a GPU), learning rate and clipping, without recomputation. Weights are random.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recipe.base.model_shape import ModelShape
from recipe.base.routing_settings import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.huggingface.architectures import export_config
from recipe.planner.search.ds_writer import ds_config_for

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
LEARNING_RATE, CLIP, ADAMW = 1e-4, 1.0, {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

Enter = Callable[[str], None]  # told of the phases of `recipe.telemetry.phases` as they begin


@dataclass(frozen=True)
class Case:
    """What all contenders train."""

    shape: ModelShape
    seq_length: int
    micro_batch: int


@dataclass(frozen=True)
class Contender:
    """A model and its training step: tokens [B, S + 1] on the host to the mean loss on the device."""

    model: nn.Module
    step: Callable[[np.ndarray, Enter], torch.Tensor]


@dataclass(frozen=True)
class Ours:
    """This recipe: its engine, its step, its routers' losses, counts and metrics, observed in every step."""

    stage: int = 1
    compile: bool = True
    gate_up: str = "separate"

    def __call__(self, case: Case) -> Contender:
        from recipe.data.batch import Batch
        from recipe.engine.build import build_engine, control_routing
        from recipe.engine.step import run_step
        from recipe.model import RecipeMoeConfig

        compute = Compute(compile=self.compile)
        config = RecipeMoeConfig.from_shape(case.shape)
        engine = build_engine(config, self.ds_config(case), seed=0, optimizer=Optimizer(), compute=compute)
        for group in engine.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        control = control_routing(engine, Routing(), seq_length=case.seq_length, sources=["en", "zh"], seed=0)
        engine.train()
        number = 0

        def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
            nonlocal number
            number += 1
            valid = np.ones((len(tokens), case.seq_length), dtype=bool)
            batch = Batch(tokens[:, :-1], tokens[:, 1:], None, valid, np.arange(len(tokens)) % 2)
            loss, _ = run_step(
                engine, control, compute, [batch], step=number, observing=True, update_bias=True, enter=enter
            )
            return loss

        return Contender(engine.module, step)

    def ds_config(self, case: Case) -> dict[str, Any]:
        config = ds_config_for(
            case.shape, 1, stage=self.stage, ep_size=1, micro_batch=case.micro_batch, accumulation=1, bf16=CUDA
        )
        config["expert_parallel"]["gate_up_impl"] = self.gate_up
        return config


def glm4_moe(shape: ModelShape) -> nn.Module:
    """transformers' model, in fp32, with its grouped matmul for experts and PyTorch's fused attention."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    positions = shape.max_position_embeddings
    config = Glm4MoeConfig(
        **export_config(shape, dtype="float32", max_position_embeddings=positions) | {"use_cache": False}
    )
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    with DEVICE:
        return Glm4MoeForCausalLM(config).train()


def arguments(tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """For a transformers model; with the last position's target given, so that all predict as many tokens."""
    inputs, targets = (torch.from_numpy(array).to(DEVICE) for array in (tokens[:, :-1].copy(), tokens[:, 1:].copy()))
    return {"input_ids": inputs, "labels": inputs, "shift_labels": targets}


def transformers_loop(case: Case) -> Contender:
    """Stock transformers in a plain loop: fp32 weights, bf16 by autocast, PyTorch's AdamW."""
    model = glm4_moe(case.shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=CUDA, **ADAMW)

    def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
        enter("forward")
        with torch.autocast(DEVICE.type, torch.bfloat16) if CUDA else nullcontext():
            loss = model(**arguments(tokens)).loss
        enter("backward")
        loss.backward()
        enter("update")
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Contender(model, step)


@dataclass(frozen=True)
class DeepSpeed:
    """Stock transformers under DeepSpeed with what its documentation's examples set, and AutoEP if asked for."""

    stage: int
    autoep: bool = False

    def __call__(self, case: Case) -> Contender:
        import deepspeed

        config: dict[str, Any] = {
            "train_batch_size": case.micro_batch,
            "train_micro_batch_size_per_gpu": case.micro_batch,
            "gradient_clipping": CLIP,
            "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "torch_adam": True, **ADAMW}},
            "bf16": {"enabled": CUDA},
            "zero_optimization": {"stage": self.stage, "overlap_comm": CUDA},
            "steps_per_print": 1_000_000_000,
        }
        if self.autoep:
            config["expert_parallel"] = {"enabled": True, "autoep_size": 1, "preset_model": "deepseek_v3"}
        engine, *_ = deepspeed.initialize(model=glm4_moe(case.shape), config=config)

        def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
            enter("forward")
            loss = engine(**arguments(tokens)).loss
            enter("backward")
            engine.backward(loss)
            enter("update")
            engine.step()
            return loss.detach()

        return Contender(engine.module, step)


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


def megatron(case: Case) -> Contender:
    """Megatron-Core's GPTModel: TransformerEngine's layers and grouped GEMM where it is installed, else its own."""
    with megatron_on_this_device():
        from megatron.core import parallel_state
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
        from megatron.core.transformer.moe import moe_utils

        # 0.16.1 looks at this name without TransformerEngine too, and only then has not defined it.
        vars(moe_utils).setdefault("te_general_gemm", None)
        parallel_state.initialize_model_parallel()
        if CUDA:
            model_parallel_cuda_manual_seed(0)
        config = megatron_config(case.shape)
        model = GPTModel(
            config,
            get_gpt_decoder_block_spec(
                config, use_transformer_engine=has_transformer_engine(), normalization="RMSNorm"
            ),
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
    mask = torch.ones(1, 1, case.seq_length, case.seq_length, dtype=torch.bool, device=DEVICE).triu(1)

    def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
        enter("forward")
        with megatron_on_this_device():
            tokens_BS = torch.from_numpy(tokens).to(DEVICE)
            loss = model(tokens_BS[:, :-1], positions, mask, labels=tokens_BS[:, 1:]).mean()
            enter("backward")
            loss.backward()
        enter("update")
        optimizer.step()
        return loss.detach()

    return Contender(model, step)


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
        moe_grouped_gemm=engine,
        moe_permute_fusion=engine,
        normalization="RMSNorm",
        layernorm_epsilon=shape.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=CUDA,
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


# Name -> builder; the first is what the others are compared with.
CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "ours, ZeRO-1": Ours(),
    "ours, ZeRO-3": Ours(stage=3),
    "ours, ZeRO-1, not compiled": Ours(compile=False),
    "ours, ZeRO-1, gate and up in one": Ours(gate_up="fused"),
    "transformers, AdamW loop": transformers_loop,
    "transformers, DeepSpeed ZeRO-1": DeepSpeed(stage=1),
    "transformers, DeepSpeed ZeRO-3": DeepSpeed(stage=3),
    "transformers, DeepSpeed AutoEP ZeRO-1": DeepSpeed(stage=1, autoep=True),
    "Megatron-Core": megatron,
}
