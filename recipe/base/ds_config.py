"""The ds_config JSON, read strictly.

DeepSpeed ignores unknown top-level keys and mistyped `expert_parallel` fields, and replaces or drops
"auto". Here an unknown key, an "auto" or an option that ZeRO-3 with AutoEP refuses is an error before any
process group exists. The keys below are the ones this recipe supports; their meaning is DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

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


class _Section(Section, strict=True):
    """JSON has types, so nothing is converted."""


class Bf16(_Section):
    """Precision of training."""

    enabled: bool
    """Train in bf16, with fp32 master weights. False: fp32."""
    immediate_grad_update: bool = False
    """Add a gradient to its fp32 sum as soon as it is computed, not after the backward pass. Stages 0 and 1 only."""
    check_grad_overflow: bool = True
    """Let DeepSpeed skip a step whose gradients are not finite. The recipe looks for itself (`numerics`)."""


class ZeroOptimization(_Section):
    """What DeepSpeed's ZeRO divides among ranks (arXiv 1910.02054), and in which portions it communicates."""

    stage: Literal[0, 1, 2, 3]
    """What is divided among ranks: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too. Higher: less
    memory, more communication."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they are computed, against fragmented memory."""
    overlap_comm: bool | None = None
    """Communicate gradients while the backward pass goes on. Null: true for stage 3, else false."""
    reduce_scatter: bool = True
    """Average gradients by reduce-scatter rather than all-reduce: each rank receives only its part."""
    reduce_bucket_size: int = Field(500_000_000, gt=0)
    """Elements, not bytes, of gradients that are reduced at a time. Larger: fewer messages, more memory."""
    allgather_bucket_size: int = Field(500_000_000, gt=0)
    """Stages 1 and 2: elements, not bytes, of parameters that are gathered at a time."""
    allgather_partitions: bool = True
    """Stages 1 and 2: gather updated parameters by all-gather rather than by a broadcast of each rank."""
    round_robin_gradients: bool = False
    """Stages 1 and 2: deal gradients out to ranks in turn, which speeds up copies to host memory."""
    sub_group_size: int = Field(1_000_000_000, gt=0)
    """Stage 3: elements, not bytes, that the optimizer updates at a time. Lower it when the step runs out of memory."""
    stage3_prefetch_bucket_size: int = Field(50_000_000, ge=0)
    """Stage 3: elements of parameters that are gathered ahead of use. Larger: more overlap, more memory."""
    stage3_param_persistence_threshold: int = Field(100_000, ge=0)
    """Stage 3: parameters with fewer elements are not divided. Lower: less memory, more small messages."""
    stage3_model_persistence_threshold: int | None = Field(None, ge=0)
    """Stage 3: most elements of a rank that may stay undivided by the threshold above. Null: no limit."""
    stage3_max_live_parameters: int = Field(1_000_000_000, ge=0)
    """Stage 3: most elements of gathered parameters on a rank before some are released. Lower: less memory, more
    communication."""
    stage3_max_reuse_distance: int = Field(1_000_000_000, ge=0)
    """Stage 3: a parameter that is used again within so many elements is not released."""
    stage3_module_granularity_threshold: int = Field(0, ge=0)
    """Stage 3: modules with fewer parameters per submodule are gathered as a whole, which saves overhead. 0: none."""
    enable_sanity_checks: bool = False
    """DeepSpeed's internal checks; slow, for finding a fault."""
    log_trace_cache_warnings: bool = False
    """Stage 3: warn when the order of modules changes, after which it is traced again."""


class ExpertParallel(_Section):
    """How AutoEP divides experts among ranks and computes them."""

    enabled: Literal[True]
    """Experts are divided among ranks by AutoEP; the recipe has no other way."""
    autoep_size: int = Field(gt=0)
    """Ranks that share one set of experts; at most the GPUs of a node keeps their traffic on NVLink. Divides the
    experts and the ranks."""
    preset_model: Literal["deepseek_v3"]
    """The AutoEP preset whose module names and arithmetic ours follow."""
    async_split_plan: bool = False
    """Copy the counts of tokens that ranks exchange to the host without waiting for the GPU."""
    use_grouped_mm: bool = True
    """Compute all experts of a rank in one grouped matmul rather than in a loop."""
    disable_triton_grouped_mm: bool = False
    """Not DeepSpeed's Triton kernel for the grouped matmul, but torch's; if the kernel fails."""
    gate_up_impl: Literal["separate", "fused"] = "separate"
    """The experts' gate and up projections as two matmuls or as one; `fused` needs `use_grouped_mm`."""


class CommsLogger(_Section):
    """DeepSpeed's own log of collectives. `watch.stragglers_every_steps` of the run config is the cheaper one."""

    enabled: bool
    """Time and count every collective; slows training, for finding a fault."""
    verbose: bool = False
    """Print each collective as it is made."""
    prof_all: bool = True
    """Look at all kinds of collectives; false: at `prof_ops` only."""
    debug: bool = False
    """Print the function that called too."""
    prof_ops: list[str] = []
    """Kinds of collectives to look at when `prof_all` is false, such as all_gather."""


class DataTypes(_Section):
    """Types of what DeepSpeed keeps beside the weights."""

    grad_accum_dtype: Literal["fp32", "bf16"]
    """Type in which gradients are added up over micro-batches; fp32 loses nothing, bf16 needs half the memory."""


class CheckpointSection(_Section):
    """DeepSpeed's own checks when it saves; when to save is in the run config."""

    tag_validation: Literal["Ignore", "Warn", "Fail"] = "Warn"
    """What DeepSpeed does when ranks save under different names: nothing, warn, or fail."""


class RecipeSection(_Section):
    """This recipe's own choices that depend on the cluster as the rest of the file does. DeepSpeed reads none of them."""

    kept_gib: float = Field(0.0, ge=0)
    """With `compute.recompute: selective`: GiB of a GPU for results of recomputed layers that are kept instead; filled
    with what saves the most time per byte first (`recipe/planner/kept.py`), then with whole layers. A start and a dry run print what that is.
    Unused with another `recompute`."""
    exchange_parts: int = Field(1, ge=1, le=8)
    """Parts that the tokens of an MoE layer are divided into, so that the exchange of one part runs beside the experts of
    another. 1: each exchange is waited for; it must be 1 where `autoep_size` is."""


class DsConfig(_Section):
    """One ds_config: batch, precision, ZeRO and expert parallelism of one cluster size."""

    train_batch_size: int = Field(gt=0)
    """Sequences per step, over all ranks: micro-batch * accumulation * ranks."""
    train_micro_batch_size_per_gpu: int = Field(gt=0)
    """Sequences per rank and forward pass. As large as fits in memory."""
    gradient_accumulation_steps: int = Field(gt=0)
    """Forward and backward passes per step, whose gradients are added up."""
    gradient_clipping: float = Field(gt=0)
    """Largest norm of the whole gradient; a larger one is scaled down to it. 1.0 is usual."""
    zero_optimization: ZeroOptimization
    expert_parallel: ExpertParallel
    bf16: Bf16 | None = None
    data_types: DataTypes | None = None
    communication_data_type: Literal["fp32", "bf16"] | None = None
    """Type in which gradients are communicated. Null: DeepSpeed's choice, the type they have."""
    steps_per_print: int = Field(1_000_000_000, gt=0)
    """Steps between DeepSpeed's own lines. The default means never: the recipe logs by itself."""
    wall_clock_breakdown: bool = False
    """DeepSpeed times the parts of each step, which makes the GPU wait; for finding a fault."""
    memory_breakdown: bool = False
    """DeepSpeed prints the memory in use at the parts of each step; for finding a fault."""
    comms_logger: CommsLogger | None = None
    checkpoint: CheckpointSection | None = None
    recipe: RecipeSection = RecipeSection()

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
        problems = []
        experts = self.expert_parallel
        if self.train_batch_size % self._sequences_per_rank:
            problems.append(
                f"train_batch_size {self.train_batch_size} is not a multiple of train_micro_batch_size_per_gpu "
                f"{self.train_micro_batch_size_per_gpu} * gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )
        elif self.world_size % experts.autoep_size:
            problems.append(
                f"expert_parallel.autoep_size {experts.autoep_size} does not divide the {self.world_size} ranks "
                "that the batch sizes imply; choose a divisor"
            )
        if self.recipe.exchange_parts > 1 and experts.autoep_size == 1:
            problems.append(
                f"recipe.exchange_parts {self.recipe.exchange_parts} divides an exchange that expert_parallel.autoep_size 1 "
                "does not have; set 1"
            )
        fp32_sums = self.data_types is not None and self.data_types.grad_accum_dtype == "fp32"
        if self.zero_optimization.stage == 0 and self.bf16_enabled and fp32_sums:
            problems.append(
                "zero_optimization.stage 0 with bf16 cannot add gradients in fp32 in DeepSpeed; "
                "set data_types.grad_accum_dtype bf16 or a higher stage"
            )
        if experts.gate_up_impl == "fused" and not experts.use_grouped_mm:
            problems.append('gate_up_impl "fused" needs use_grouped_mm true')
        return problems

    def problems_with(self, shape: ModelShape, world_size: int) -> list[str]:
        """What does not fit the model or the number of ranks that were launched, one sentence each."""
        problems = []
        if world_size != self.world_size:
            problems.append(
                f"train_batch_size {self.train_batch_size} = {self.train_micro_batch_size_per_gpu} micro-batch * "
                f"{self.gradient_accumulation_steps} accumulation * ranks is written for {self.world_size} ranks, but "
                f"{world_size} were launched; launch {self.world_size} or use the ds_config for {world_size}"
            )
        if shape.n_routed_experts % self.expert_parallel.autoep_size:
            problems.append(
                f"expert_parallel.autoep_size {self.expert_parallel.autoep_size} does not divide the model's "
                f"{shape.n_routed_experts} routed experts; choose a divisor"
            )
        return problems


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
    problems = [f"'{key}' {reason}" for key, reason in REFUSED_KEYS.items() if _holds(raw, key)]
    auto = _paths_of_auto(raw)
    problems += [f"'{name}' is \"auto\", which DeepSpeed does not resolve here; write the value" for name in auto]
    try:
        checked = strict_model(DsConfig, _without(raw, REFUSED_KEYS), path)
    except ConfigError as error:
        others = [p for p in error.problems if not any(p.startswith(f"'{name}' is ") for name in auto)]
        raise ConfigError(path, problems + others) from None
    if problems:
        raise ConfigError(path, problems)
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
    paths = []
    for key, value in values.items():
        if value == "auto":
            paths.append(prefix + key)
        elif isinstance(value, dict) and prefix.count(".") < 4:  # deeper than any section of DeepSpeed
            paths += _paths_of_auto(value, f"{prefix}{key}.")
    return paths
