"""One training step of the same model on one GPU, as this recipe does it and as others would.

Each contender is built for the same shape, batch, precision (bf16 beside fp32 master weights, moments and gradient
norm; fp32 throughout without a GPU), learning rate and clipping, without recomputation unless the case or the name says so.
Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.step_run.contender import ADAMW, CLIP, CUDA, DEVICE, LEARNING_RATE, Case, Contender, Enter
from benchmarks.step_run.megatron import megatron
from recipe.base.hardware import GIB
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.huggingface.architectures import export_config
from recipe.planner.kept import KEEPABLE, kept_bytes, rows_of
from recipe.planner.search.ds_writer import ds_config_for


@dataclass(frozen=True)
class Ours:
    """This recipe: its engine, its step, its routers' losses, counts and metrics, observed in every step."""

    stage: int = 1
    compile: bool = True
    gate_up: str = "separate"
    recompute: str | None = None  # instead of the case's
    kept_share: float = 0.0  # of the bytes of all that its recomputed layers could keep

    def __call__(self, case: Case) -> Contender:
        from transformers.initialization import no_init_weights

        from recipe.data.batch import Batch
        from recipe.engine.build import build_engine, control_routing
        from recipe.engine.step import run_step
        from recipe.model import RecipeMoeConfig

        compute = Compute(compile=self.compile, recompute=self.recompute_of(case))
        config = RecipeMoeConfig.from_shape(case.shape)
        # The engine draws every weight, on the GPU where there is one. transformers would draw them before, on the CPU:
        # half a minute of one core for 2.4 billion.
        with no_init_weights():
            engine = build_engine(
                config, self.ds_config(case), seed=0, optimizer=Optimizer(), compute=compute, seq_length=case.seq_length
            )
        for group in engine.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        control = control_routing(engine, Routing(), seq_length=case.seq_length, sources=["en", "zh"], seed=0)
        engine.train()
        number, counts = 0, []

        def step(tokens: np.ndarray, enter: Enter) -> torch.Tensor:
            nonlocal number
            number += 1
            valid = np.ones((len(tokens), case.seq_length), dtype=bool)
            batch = Batch(tokens[:, :-1], tokens[:, 1:], None, valid, np.arange(len(tokens)) % 2)
            loss, sums = run_step(
                engine, control, compute, [batch], step=number, observing=True, update_bias=True, enter=enter
            )
            counts.append(sums.counts_LOE.sum(dim=1))
            return loss

        return Contender(engine.module, step, counts)

    def recompute_of(self, case: Case) -> str:
        return self.recompute or case.recompute

    def ds_config(self, case: Case, *, bf16: bool | None = None) -> dict[str, Any]:
        """The ds_config's JSON, without `bf16` in the precision of this device."""
        bf16 = CUDA if bf16 is None else bf16
        kept_gib = self.kept_share * keepable_bytes(case, 2 if bf16 else 4) / GIB
        config = ds_config_for(
            case.shape, 1, stage=self.stage, ep_size=1, micro_batch=case.micro_batch, accumulation=1, bf16=bf16,
            kept_gib=kept_gib,
        )  # fmt: skip
        config["expert_parallel"]["gate_up_impl"] = self.gate_up
        return config


def keepable_bytes(case: Case, element: int) -> float:
    """Of all that recomputed layers of a rank that has all experts could keep."""
    shape, rows = case.shape, rows_of(case.shape, tokens=case.micro_batch * case.seq_length, ep_size=1)
    return sum(
        kept_bytes(shape, name, rows, moe=layer >= shape.first_k_dense_replace, element=element)
        for name in KEEPABLE for layer in range(shape.num_hidden_layers)
    )  # fmt: skip


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


# Name -> builder, in order of what a result is worth when time runs out.
#   Ours as it is run comes first: all others are compared with it. Then what a DeepSpeed user would use instead, the
#   nearest of the others. Then ours on the flagship's layers, beside the plan: the calibration of the planner needs it,
#   and needs no other contender. Then Megatron-Core, the other trainer of such models; ours without the compiler, the
#   planner's second constant; ours recomputed, wholly and as the shipped runs do; the plain loop, which everybody knows.
#   The last four differ from one above in one thing.
FLAGSHIP = "ours, ZeRO-1, slice of 30b-a3b"
CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "ours, ZeRO-1": Ours(),
    "transformers, DeepSpeed AutoEP ZeRO-1": DeepSpeed(stage=1, autoep=True),
    FLAGSHIP: Ours(),
    "Megatron-Core": megatron,
    "ours, ZeRO-1, not compiled": Ours(compile=False),
    "ours, ZeRO-1, recomputed": Ours(recompute="non_reentrant"),
    "ours, ZeRO-1, recomputed, half kept": Ours(recompute="selective", kept_share=0.5),
    "transformers, AdamW loop": transformers_loop,
    "transformers, DeepSpeed ZeRO-1": DeepSpeed(stage=1),
    "ours, ZeRO-3": Ours(stage=3),
    "ours, ZeRO-1, gate and up in one": Ours(gate_up="fused"),
    "transformers, DeepSpeed ZeRO-3": DeepSpeed(stage=3),
}
# Whose time is taken apart too, which costs a profile and its reading: one of each software.
TRACED = ("ours, ZeRO-1", "transformers, DeepSpeed AutoEP ZeRO-1", "Megatron-Core", "ours, ZeRO-1, not compiled", "transformers, AdamW loop")  # fmt: skip
# What all import, before they are let near the GPU; and Megatron-Core's, which others are not to have in them.
MODULES = (
    "recipe.engine.build", "recipe.engine.session", "recipe.engine.step", "recipe.model", "recipe.reading.breakdown",
    "recipe.telemetry.profiling", "transformers.models.glm4_moe.modeling_glm4_moe",
)  # fmt: skip
OWN_MODULES = {"Megatron-Core": ("megatron.core.models.gpt.gpt_model", "megatron.core.models.gpt.gpt_layer_specs")}
