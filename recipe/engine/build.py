"""From a checked run config and ds_config to a DeepSpeed engine with our model, optimizer and routers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import nn

from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.engine.deepspeed_private import (
    full_shape,
    padded_partition,
    split_moe_groups,
    torch_optimizer,
    zero3_masters,
)
from recipe.engine.moe.autoep import connect, divide_exchanges, moe_layers, recipe_layers
from recipe.engine.moe.routing_control import RoutingControl
from recipe.huggingface.architectures import is_expert_bias
from recipe.huggingface.import_weights import Weights
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.fusion import fuse
from recipe.model.modeling import initialize_parameter
from recipe.planner.kept import NOTHING, Kept, kept_of


def check_compute(compute: Compute) -> None:
    """Refuse what this machine cannot run, before a process group exists.

    Raises:
        UserError: no GPU, flash-attn, or compiler where it is asked for, or a flash-attn whose result cannot be kept.
    """
    if compute.compile and torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise UserError("compute.compile needs the package triton on a GPU; install it or set false")
    if compute.compile and not torch.cuda.is_available() and shutil.which("c++") is None:
        raise UserError("compute.compile needs a C++ compiler (c++) on CPU; install one or set false")
    if compute.attention == "sdpa":
        return
    if not torch.cuda.is_available():
        raise UserError(f"compute.attention {compute.attention} needs a GPU; set sdpa")
    if compute.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("compute.attention flash_attention_2 needs the package flash-attn; install it or set sdpa")
    if compute.attention == "flash_attention_2" and compute.recompute == "selective" and not _flash_is_an_operator():
        raise UserError(
            "compute.recompute selective needs flash-attn 2.7 or newer, whose kernels are operators that torch sees; install "
            "it, or set compute.attention sdpa"
        )


def _flash_is_an_operator() -> bool:
    """Whether flash-attn's forward pass is an operator of torch's, as `recompute.KEPT_OPERATORS` has it.

    Since 2.7 (its README's changes: compatibility with torch.compile).
    """
    major, minor = importlib.metadata.version("flash_attn").split(".")[:2]
    return (int(major), int(minor)) >= (2, 7)


def build_model(
    config: RecipeMoeConfig,
    ds_raw: dict[str, Any],
    seed: int,
    compute: Compute,
    weights: Weights | None = None,
    kept: Kept = NOTHING,
) -> RecipeMoeForCausalLM:
    """The model with its initial weights; under ZeRO-3 each rank keeps its partition from the start.

    Args:
        kept: results of recomputed layers.
    """
    zero3 = ds_raw["zero_optimization"]["stage"] == 3
    config._attn_implementation = compute.attention
    with deepspeed.zero.Init(config_dict_or_path=ds_raw) if zero3 else nullcontext():
        model = RecipeMoeForCausalLM(config)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=zero3):
                if not zero3 or deepspeed.comm.get_rank() == 0:
                    if weights is None:
                        initialize_parameter(parameter, name, config, seed, device)
                    else:
                        parameter.copy_(weights(name))
        if weights is not None:
            for name, buffer in model.named_buffers():
                if is_expert_bias(name):
                    buffer.copy_(weights(name))
    if compute.recompute != "none":
        model.recompute_layers(compute.recompute == "reentrant", kept.of_layer)
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on norms, biases and embeddings. Experts in groups of their own, as AutoEP needs."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = len(full_shape(parameter)) >= 2
        (decayed if is_matrix and "embed_tokens" not in name else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decayed"},
        {"params": spared, "weight_decay": 0.0, "name": "spared"},
    ]
    groups = split_moe_groups(groups)
    return [group for group in groups if group["params"]]


def zero_padding(engine: deepspeed.DeepSpeedEngine) -> None:
    """Zero what ZeRO-3's partitions hold beyond the end of a parameter, in the model's precision and in fp32.

    DeepSpeed 0.19.8 leaves there what the memory held before, NaN at times, and trains and saves it with the rest.
    """
    for parameter, master in zero3_masters(engine):
        partition, _, size = padded_partition(parameter)
        for padded in (partition, master):
            padded[size:].zero_()


def be_deterministic(on: bool) -> None:
    """Let torch choose algorithms that give the same bits every time, or refuse operations that have none."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matmul of a GPU
    # Costs time, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(on)


def build_engine(
    config: RecipeMoeConfig,
    ds_raw: dict[str, Any],
    *,
    seed: int,
    optimizer: Optimizer,
    compute: Compute,
    seq_length: int | None = None,
    weights: Weights | None = None,
    model_is_built: Callable[[int], None] = lambda parameters: None,
) -> deepspeed.DeepSpeedEngine:
    """Initialise DeepSpeed; the process group must exist. Without `weights` the initial ones are random.

    Args:
        seq_length: of training, on which it depends how much fits the budget of `compute.recompute: selective`; None: nothing
            is kept, for engines that do not train.
        model_is_built: called with the model's parameters before the engine is made of it.
    """
    kept = NOTHING
    if compute.recompute == "selective" and seq_length is not None:
        ds = DsConfig.model_validate(ds_raw)
        kept = kept_of(config.shape(), ds, recompute=compute.recompute, seq_length=seq_length, compiled=compute.compile)
    model = build_model(config, ds_raw, seed, compute, weights, kept)
    model_is_built(sum(math.prod(full_shape(parameter)) for parameter in model.parameters()))

    def adamw(_: Any) -> torch.optim.Optimizer:
        # Called by the engine after AutoEP has replaced the MoE blocks, so the groups hold what is trained.
        groups = parameter_groups(model, optimizer.weight_decay)
        fused = torch.cuda.is_available()
        return torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=fused)

    fuse(compute.compile)
    be_deterministic(compute.deterministic)
    with recipe_layers():
        engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=ds_raw)
    divide_exchanges(engine.module, ds_raw.get("recipe", {}).get("exchange_parts", 1))
    if ds_raw["zero_optimization"]["stage"] == 3:
        zero_padding(engine)
    return engine


@contextmanager
def own_hyperparameters(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Keep the settings of the optimizer's groups through a load, which brings those of the checkpoint."""
    groups = torch_optimizer(engine).param_groups
    own = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    yield
    for group, values in zip(torch_optimizer(engine).param_groups, own, strict=True):
        group.update(values)


def forget_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Set the optimizer's states to what they are before its first step; the weights stay."""
    for state in torch_optimizer(engine).state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def control_routing(
    engine: deepspeed.DeepSpeedEngine, routing: Routing, *, seq_length: int, sources: list[str], seed: int
) -> RoutingControl:
    """Put every router of an engine under one control, for training."""
    layers = [layer for _, layer in moe_layers(engine.module)]
    control = RoutingControl(
        routing,
        [layer.router.e_score_correction_bias for layer in layers],
        top_k=layers[0].top_k,
        seq_length=seq_length,
        accumulation=engine.gradient_accumulation_steps(),
        sources=sources,
        seed=seed,
    )
    connect(engine.module, control)
    return control
