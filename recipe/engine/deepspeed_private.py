"""The one place that knows names of DeepSpeed and torch that are not public.

They are those of DeepSpeed 0.19.8 (setup.cfg pins it for as long as this is so) and torch 2.13. Each stands here once, with
what breaks when it changes, and has a test that fails then (tests/recipe/engine/test_deepspeed_private.py).

What is below AutoEP's name is used as it is by `recipe/engine/moe/`: its layer hands `_forward` down to ours, its experts
`use_grouped_mm`, `use_triton_grouped_mm` and `gate_up_impl`, and their matrices are w1, w2 and w3.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.module_inject import auto_ep_layer
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.ep_count import count_tokens_per_expert
from deepspeed.moe.ep_experts import GroupedExperts
from deepspeed.moe.ep_router import TokenChoiceTopKRouter
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo, TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import groups
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import _get_build_directory

# What others take from here under these names.
__all__ = [
    "STATE_CLASSES",
    "AutoEPMoELayer",
    "CheckpointCommitInfo",
    "GroupedExperts",
    "TokenChoiceTopKRouter",
    "TorchCheckpointEngine",
    "TorchDispatchMode",
    "autoep_size",
    "convert_to_universal",
    "count_tokens_per_expert",
    "cpu_op_builder",
    "default_group_timeout",
    "destroy",
    "extension_folder",
    "fake_store",
    "full_shape",
    "full_size",
    "gradient_norm",
    "is_first_expert_replica",
    "is_partitioned",
    "loading_universal",
    "log_level",
    "master_parts",
    "padded_partition",
    "replaced_autoep_classes",
    "save_by",
    "split_moe_groups",
    "state_tensors",
    "torch_optimizer",
    "triton_outer_products",
    "triton_products",
    "zero3_masters",
]  # fmt: skip

# Of deepspeed.moe.utils: from parameter groups to those where the experts of each expert-parallel size are apart.
split_moe_groups = split_params_into_different_moe_groups_for_optimizer
# The classes that its checkpoints name: deepspeed.runtime.fp16.loss_scaler and deepspeed.utils.tensor_fragment. When one
# moves, checkpoints written before are refused as pickles of an unknown class.
STATE_CLASSES = (DynamicLossScaler, LossScaler, fragment_address)


# AutoEP.


@contextmanager
def replaced_autoep_classes(
    router: type[nn.Module], layer: type[nn.Module], experts: type[nn.Module]
) -> Iterator[None]:
    """While active, AutoEP builds its layers of these classes.

    It looks up `TokenChoiceTopKRouter`, `AutoEPMoELayer` and `GroupedExperts` in deepspeed.module_inject.auto_ep_layer; a
    version that does not would build its own, which `recipe.engine.moe.autoep.connect` refuses.
    """
    names = ("TokenChoiceTopKRouter", "AutoEPMoELayer", "GroupedExperts")
    original = [getattr(auto_ep_layer, name) for name in names]
    for name, replacement in zip(names, (router, layer, experts), strict=True):
        setattr(auto_ep_layer, name, replacement)
    try:
        yield
    finally:
        for name, before in zip(names, original, strict=True):
            setattr(auto_ep_layer, name, before)


def triton_products(rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Rows [M, I] of each expert by its matrix [I, C], in any layout, by DeepSpeed's Triton kernel without its autograd."""
    from deepspeed.ops.triton_ops.group_gemm_triton import _group_gemm

    return _group_gemm(rows.contiguous(), weight, offsets)


def triton_outer_products(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """For each expert the product [C, I] of its transposed rows [M, C] and its rows [M, I]."""
    from deepspeed.ops.triton_ops.group_gemm_triton import _grouped_dw

    return _grouped_dw(left.contiguous(), right.contiguous(), offsets, offsets.numel())


def is_first_expert_replica(layer: AutoEPMoELayer) -> bool:
    """Whether this rank is the first of those that hold the same experts (`groups._get_expert_data_parallel_rank`).

    When it changes, fingerprints count an expert never or more than once, and no checkpoint loads.
    """
    return groups._get_expert_data_parallel_rank(layer.ep_group_name) == 0


def autoep_size(engine: deepspeed.DeepSpeedEngine) -> int:
    """Expert-parallel size (`engine._config.expert_parallel_config`), which a checkpoint's topology names."""
    return engine._config.expert_parallel_config.autoep_size


# ZeRO's parameters and optimizers.


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has given each rank a part of it, and with it a `ds_id`."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of the whole parameter (`ds_shape`); of a partitioned one `shape` is empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def full_size(parameter: Any) -> int:
    """Elements of the whole parameter (`ds_numel`)."""
    return parameter.ds_numel if is_partitioned(parameter) else parameter.numel()


def padded_partition(parameter: Any) -> tuple[torch.Tensor, int, int]:
    """This rank's part under ZeRO-3 (`ds_tensor`, padded to `ds_tensor.ds_numel`).

    Returns:
        its elements, the number of the first in the parameter, and how many of them the parameter has: the rest is padding.
    """
    partition, size = parameter.ds_tensor, parameter.ds_tensor.ds_numel
    begin = dist.get_rank(group=parameter.ds_process_group) * size
    return partition.detach().reshape(-1), begin, min(max(0, parameter.ds_numel - begin), size)


def zero3_masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[Any, torch.Tensor]]:
    """ZeRO-3's parameters, and this rank's padded part of each in fp32: `fp16_groups`, `fp32_partitioned_groups_flat`.

    When their order or padding changes, padding is not zeroed and masters are taken for those of other parameters: the
    comparison of fingerprints refuses the next checkpoint.
    """
    optimizer: Any = engine.optimizer
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        sizes = [parameter.ds_tensor.ds_numel for parameter in group]
        yield from zip(group, flat.data.split(sizes), strict=True)


def master_parts(engine: deepspeed.DeepSpeedEngine) -> dict[nn.Parameter, tuple[torch.Tensor, int]]:
    """This rank's part of the fp32 weights of each parameter, flat and without padding, and its first element's number.

    Under ZeRO-1, ZeRO-2 and bf16 without ZeRO a parameter has a `_hp_mapping`, None where another rank has all of it; where
    the optimizer keeps no weights of its own there is none. Without it the masters of a checkpoint would not be compared.
    """
    parts: dict[nn.Parameter, tuple[torch.Tensor, int]] = {}
    if engine.zero_optimization_stage() == 3:
        for parameter, master in zero3_masters(engine):
            _, begin, size = padded_partition(parameter)
            parts[parameter] = master[:size], begin
        return parts
    for parameter in engine.module.parameters():
        if hasattr(parameter, "_hp_mapping"):
            mapping = parameter._hp_mapping
            parts[parameter] = (
                (torch.zeros(0), 0)
                if mapping is None
                else (mapping.hp_fragment.detach().reshape(-1), mapping.lp_fragment_address.start)
            )
    return parts


def torch_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """The optimizer below ZeRO's (its `optimizer`), whose step the guard stands before."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> Any:
    """The norm of the step that is about to be made (`_global_grad_norm`), before clipping; None without ZeRO.

    DeepSpeed skips a step whose norm is not finite by itself, and says inf. `engine.get_global_grad_norm` is public, and is
    set after the update only, too late for the step guard.
    """
    return getattr(engine.optimizer, "_global_grad_norm", None)


def state_tensors(engine: deepspeed.DeepSpeedEngine) -> dict[str, list[torch.Tensor]]:
    """The tensors that the engine keeps for a rank between steps, but for the moments, by the names of the plan.

    The names are those of three optimizers' attributes. When one changes, `make test` stops at the planner's rehearsals.
    """
    optimizer: Any = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        parameters: list[Any] = list(engine.module.parameters())
        return {
            "parameters": [p.ds_tensor for p in parameters],
            # Whole on every rank, and given up meanwhile: as many bytes as they have when they are gathered.
            "persistent_parameters": [
                torch.empty(p.ds_numel, dtype=p.dtype, device="meta") for p in parameters if p.ds_persist
            ],
            "master_weights": list(optimizer.fp32_partitioned_groups_flat),
            "gradients": [optimizer.grad_partitions_flat_buffer],
            "reduce_buckets": [b.buffer for b in optimizer.ipg_buckets.values() if b.buffer is not None],
        }
    if isinstance(optimizer, BF16_Optimizer):
        return {
            "parameters": list(optimizer.bf16_groups_flat),
            "master_weights": list(optimizer.fp32_groups_flat_partition),
            "gradients": list(optimizer.fp32_groups_gradients_flat),
        }
    return {  # gradients and buckets live between the first backward pass and the step
        "parameters": list(optimizer.bit16_groups_flat),
        "master_weights": list(optimizer.single_partition_of_fp32_groups),
    }


# Checkpoints.


def save_by(engine: deepspeed.DeepSpeedEngine, writer: TorchCheckpointEngine) -> None:
    """Have `engine.save_checkpoint` hand its files to this writer (`engine.checkpoint_engine`).

    DeepSpeed makes one itself of what its config names, and knows no other way to give it ours. A version that takes another
    attribute would write by itself: the commit would find no lists of files, and no checkpoint would be committed.
    """
    assert isinstance(engine.checkpoint_engine, TorchCheckpointEngine)
    engine.checkpoint_engine = writer


def destroy(engine: deepspeed.DeepSpeedEngine) -> None:
    """End an engine so that nothing of DeepSpeed's refers to it any more: its memory is free once the caller lets go of it.

    ZeRO-3 leaves modules in a list, and in the cache of a method that all its coordinators share.
    """
    engine.destroy()
    parameter_offload.FWD_MODULE_STACK.clear()
    traced = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(traced).nonlocals["func"].cache_clear()  # within instrument_w_nvtx


@contextmanager
def loading_universal(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """While active, `engine.load_checkpoint` reads universal checkpoints: a key of the ds_config, which is read when it is built."""
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def convert_to_universal(checkpoint: Path, output: Path, workers: int) -> None:
    """DeepSpeed's ds_to_universal, which is a command: it is given what its own parser would."""
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(checkpoint),
            output_folder=str(output),
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
    )


# Processes and process groups.


@contextmanager
def default_group_timeout(timeout: timedelta) -> Iterator[None]:
    """Every process group made meanwhile has this timeout unless it is given its own.

    Groups do not inherit it: DeepSpeed 0.19.8 makes each of its groups (data, expert, sequence, tensor parallel) by
    `torch.distributed.new_group(ranks)`, and torch 2.13 takes a default by backend there, 10 minutes for NCCL: the two names
    that `distributed_c10d._get_default_timeout` reads.
    """
    names = ("default_pg_timeout", "default_pg_nccl_timeout")
    before = [getattr(distributed_c10d, name) for name in names]
    for name in names:
        setattr(distributed_c10d, name, timeout)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(distributed_c10d, name, value)


def fake_store() -> Any:
    """The store of torch's process group "fake", whose other ranks do not exist; importing its module registers the group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def log_level(level: int = logging.WARNING) -> None:
    """Of DeepSpeed's own logger (`deepspeed.utils.logger`), which writes to standard output."""
    deepspeed.utils.logger.setLevel(level)


def cpu_op_builder() -> Any:
    """The builder of DeepSpeed's shared-memory collective (`ShareMemCommBuilder`); None where the accelerator is no CPU.

    Under another name, CPU ranks would compile it by themselves, unlocked, and still run.
    """
    accelerator = get_accelerator()
    if torch.cuda.is_available() or accelerator.device_name() != "cpu":
        return None
    return accelerator.create_op_builder("ShareMemCommBuilder")


def extension_folder(name: str) -> Path:
    """Where torch builds an extension (`torch.utils.cpp_extension._get_build_directory`), and leaves its `lock`."""
    return Path(_get_build_directory(name, verbose=False))
