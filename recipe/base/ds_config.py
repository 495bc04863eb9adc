"""The ds_config JSON, read strictly.

DeepSpeed ignores unknown top-level keys and mistyped `expert_parallel` fields, and replaces or drops
"auto". Here an unknown key, an "auto" or an option that ZeRO-3 with AutoEP refuses is an error before any
process group exists. The keys below are the ones this recipe supports; their meaning is DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from recipe.base.errors import ConfigError
from recipe.base.model_shape import ModelShape
from recipe.base.strict import Section, load_json, strict_model

_RUN_CONFIG_OWNS = "belongs to the run config ({}); remove it here"
_ZERO3_REFUSES = "is refused by DeepSpeed for ZeRO-3 with AutoEP; remove it"
_NO_OFFLOAD = "is not supported: the optimizer runs where the parameters are; remove it"
_ONLY_DATA_AND_EXPERTS = "is not supported: the recipe parallelises over data and experts; remove it"
# Keys of DeepSpeed that have another owner or no place in this recipe, and what to do instead.
REFUSED_KEYS = {
    "optimizer": _RUN_CONFIG_OWNS.format("optimizer:"),
    "scheduler": _RUN_CONFIG_OWNS.format("schedule:"),
    "tensorboard": _RUN_CONFIG_OWNS.format("the recipe writes TensorBoard logs into run_dir"),
    "fp16": "is not supported: routers overflow in fp16; use bf16",
    "amp": "is not supported; use bf16",
    "zero_allow_untested_optimizer": "is not needed: the recipe passes torch.optim.AdamW; remove it",
    "pipeline": _ONLY_DATA_AND_EXPERTS,
    "tensor_parallel": _ONLY_DATA_AND_EXPERTS,
    "sequence_parallel_size": _ZERO3_REFUSES,
    "zero_optimization.zero_hpz_partition_size": _ZERO3_REFUSES,
    "zero_optimization.zero_quantized_gradients": _ZERO3_REFUSES,
    "zero_optimization.offload_optimizer": _NO_OFFLOAD,
    "zero_optimization.offload_param": _NO_OFFLOAD,
    "expert_parallel.expert_tensor_parallel_size": _ZERO3_REFUSES,
    "expert_parallel.combine_impl": "has no effect: the recipe's layers add up experts' outputs themselves; remove it",
    "expert_parallel.load_balance_coeff": "is refused by AutoEP; balance belongs to the run config (routing:)",
}


class _Section(Section):
    model_config = ConfigDict(strict=True)


class Bf16(_Section):
    enabled: bool
    immediate_grad_update: bool = False
    check_grad_overflow: bool = True


class ZeroOptimization(_Section):
    stage: Literal[0, 1, 2, 3]
    contiguous_gradients: bool = True
    overlap_comm: bool | None = None
    reduce_scatter: bool = True
    reduce_bucket_size: int = Field(500_000_000, gt=0)
    allgather_bucket_size: int = Field(500_000_000, gt=0)
    allgather_partitions: bool = True
    round_robin_gradients: bool = False
    sub_group_size: int = Field(1_000_000_000, gt=0)
    stage3_prefetch_bucket_size: int = Field(50_000_000, ge=0)
    stage3_param_persistence_threshold: int = Field(100_000, ge=0)
    stage3_model_persistence_threshold: int | None = Field(None, ge=0)
    stage3_max_live_parameters: int = Field(1_000_000_000, ge=0)
    stage3_max_reuse_distance: int = Field(1_000_000_000, ge=0)
    stage3_module_granularity_threshold: int = Field(0, ge=0)
    enable_sanity_checks: bool = False
    log_trace_cache_warnings: bool = False


class ExpertParallel(_Section):
    enabled: Literal[True]
    autoep_size: int = Field(gt=0)  # ranks that share one set of experts; <= GPUs of a node keeps it on NVLink
    preset_model: Literal["deepseek_v3"]  # the AutoEP preset whose module names and arithmetic ours follow
    async_split_plan: bool = False
    use_grouped_mm: bool = True
    disable_triton_grouped_mm: bool = False
    gate_up_impl: Literal["separate", "fused"] = "separate"


class CommsLogger(_Section):
    enabled: bool
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False
    prof_ops: list[str] = []


class DataTypes(_Section):
    grad_accum_dtype: Literal["fp32", "bf16"]


class CheckpointSection(_Section):
    tag_validation: Literal["Ignore", "Warn", "Fail"] = "Warn"


class DsConfig(_Section):
    """One ds_config: batch, precision, ZeRO and expert parallelism of one cluster size."""

    train_batch_size: int = Field(gt=0)  # sequences a step, over all ranks
    train_micro_batch_size_per_gpu: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(gt=0)
    gradient_clipping: float = Field(gt=0)
    zero_optimization: ZeroOptimization
    expert_parallel: ExpertParallel
    bf16: Bf16 | None = None
    data_types: DataTypes | None = None
    communication_data_type: Literal["fp32", "bf16"] | None = None
    steps_per_print: int = Field(1_000_000_000, gt=0)
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    comms_logger: CommsLogger | None = None
    checkpoint: CheckpointSection | None = None

    @property
    def bf16_enabled(self) -> bool:
        return self.bf16 is not None and self.bf16.enabled

    @property
    def world_size(self) -> int:
        """The number of ranks this file is written for."""
        return self.train_batch_size // self._sequences_per_rank

    @property
    def _sequences_per_rank(self) -> int:
        return self.train_micro_batch_size_per_gpu * self.gradient_accumulation_steps

    def problems(self) -> list[str]:
        """What this file alone shows to be impossible, one sentence each."""
        found = []
        experts = self.expert_parallel
        if self.train_batch_size % self._sequences_per_rank:
            found.append(
                f"train_batch_size {self.train_batch_size} is not a multiple of train_micro_batch_size_per_gpu "
                f"{self.train_micro_batch_size_per_gpu} * gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )
        elif self.world_size % experts.autoep_size:
            found.append(
                f"expert_parallel.autoep_size {experts.autoep_size} does not divide the {self.world_size} ranks "
                "that the batch sizes imply; choose a divisor"
            )
        fp32_sums = self.data_types is not None and self.data_types.grad_accum_dtype == "fp32"
        if self.zero_optimization.stage == 0 and self.bf16_enabled and fp32_sums:
            found.append(
                "zero_optimization.stage 0 with bf16 cannot add gradients in fp32 in DeepSpeed; "
                "set data_types.grad_accum_dtype bf16 or a higher stage"
            )
        if experts.gate_up_impl == "fused" and not experts.use_grouped_mm:
            found.append('gate_up_impl "fused" needs use_grouped_mm true')
        return found

    def problems_with(self, shape: ModelShape, world_size: int) -> list[str]:
        """What does not fit the model or the number of ranks that were launched, one sentence each."""
        found = []
        if world_size != self.world_size:
            found.append(
                f"train_batch_size {self.train_batch_size} = {self.train_micro_batch_size_per_gpu} micro-batch * "
                f"{self.gradient_accumulation_steps} accumulation * ranks is written for {self.world_size} ranks, but "
                f"{world_size} were launched; launch {self.world_size} or use the ds_config for {world_size}"
            )
        if shape.n_routed_experts % self.expert_parallel.autoep_size:
            found.append(
                f"expert_parallel.autoep_size {self.expert_parallel.autoep_size} does not divide the model's "
                f"{shape.n_routed_experts} routed experts; choose a divisor"
            )
        return found


def load_ds_config(path: str | Path) -> tuple[DsConfig, dict[str, Any]]:
    """Read a ds_config strictly.

    Returns:
        the checked view of it, and the JSON as it stands, which is what DeepSpeed is given.

    Raises:
        ConfigError: with every problem found.
    """
    raw = load_json(path)
    if not isinstance(raw, dict):
        raise ConfigError(path, ["must hold a JSON object"])
    found = [f"'{key}' {reason}" for key, reason in REFUSED_KEYS.items() if _holds(raw, key)]
    auto = _paths_of_auto(raw)
    found += [f"'{name}' is \"auto\", which DeepSpeed does not resolve here; write the value" for name in auto]
    try:
        checked = strict_model(DsConfig, _without(raw, REFUSED_KEYS), path)
    except ConfigError as error:
        others = [p for p in error.problems if not any(p.startswith(f"'{name}' is ") for name in auto)]
        raise ConfigError(path, found + others) from None
    if found:
        raise ConfigError(path, found)
    return checked, raw


def _holds(values: Any, key: str) -> bool:
    """Whether the dotted `key` is in the nested dicts `values`."""
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _without(values: dict[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A copy of the nested dicts without the dotted `keys`."""
    left = {}
    for name, value in values.items():
        if prefix + name not in keys:
            inside = isinstance(value, dict) and any(key.startswith(f"{prefix}{name}.") for key in keys)
            left[name] = _without(value, keys, f"{prefix}{name}.") if inside else value
    return left


def _paths_of_auto(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if value == "auto":
            found.append(prefix + key)
        elif isinstance(value, dict) and prefix.count(".") < 4:  # deeper than any section of DeepSpeed
            found += _paths_of_auto(value, f"{prefix}{key}.")
    return found
