"""What a contender's figures come to in tokens and FLOPs, and what the planner says of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders import Ours
from benchmarks.step_run.contender import CUDA, DTYPE, Case
from recipe.base.hardware import Accelerator, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.strict import load_json
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import parsed
from recipe.planner.workload import RunFacts, Workload

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "recipe/configs/models"


def planned(ours: Ours, case: Case, gpu: str, imbalance: float | None = None) -> dict[str, float]:
    """What the planner says of one of ours on one of these GPUs; with no imbalance, what it assumes of it."""
    run = RunFacts(case.seq_length, ours.recompute_of(case), compile=ours.compile, imbalance=imbalance)
    plan = Plan(Workload(case.shape, cluster_of(gpu, 1, None), parsed(ours.ds_config(case)), run))
    return {"step_s": plan.expected.step_s, "peak_gib": plan.memory.peak_gib}


def beside_plan(found: dict[str, Any], plan: dict[str, float]) -> dict[str, Any]:
    return {key: {"planned": plan[key], "measured_over_planned": found[key] / plan[key]} for key in plan}


def flagship_case(whole: ModelShape, micro_batch: int, seq_length: int) -> Case:
    """As many layers as the planner finds room for on an H100 of 80 GB, ZeRO-1, where they keep nothing."""
    fitting = None
    for layers in range(whole.first_k_dense_replace + 1, whole.num_hidden_layers + 1):
        shape = whole.model_copy(update={"num_hidden_layers": layers})
        case = Case(shape, seq_length, micro_batch, recompute="non_reentrant")
        run = RunFacts(seq_length, case.recompute)
        if not Plan(Workload(shape, cluster_of("h100", 1, None), parsed(Ours().ds_config(case)), run)).fits:
            break
        fitting = case
    assert fitting is not None, "not even one MoE layer has room"
    return fitting


def flagship() -> Case:
    """The flagship's slice; without a GPU, a stand-in that goes the same way."""
    if not CUDA:
        tiny = load_model_shape(MODELS / "tiny").model_copy(update={"num_hidden_layers": 2})
        return Case(tiny, 64, 2, recompute="non_reentrant")
    shipped = load_json(ROOT / "ds_configs/a100_256.json")
    return flagship_case(load_model_shape(MODELS / "30b-a3b"), shipped["train_micro_batch_size_per_gpu"], 4096)


def with_rates(found: dict[str, Any], case: Case, ceiling: float, datasheet: float | None) -> dict[str, Any]:
    """The figures of each kind of tokens with what they come to in tokens and FLOPs."""
    if "step_s" not in found:
        return found
    tokens = case.micro_batch * case.seq_length
    flops_per_s = tokens * case.shape.training_flops_per_token(case.seq_length) / found["step_s"]
    rates = {"tokens_per_s": tokens / found["step_s"], "mfu_of_matmul": flops_per_s / ceiling}
    if datasheet is not None:
        rates["mfu"] = flops_per_s / datasheet
    if "text" in found:
        found["text"] = with_rates(found["text"], case, ceiling, datasheet)
    return {**rates, **found}


def with_plans(found: dict[str, Any], builder: Any, case: Case, known: Accelerator | None) -> dict[str, Any]:
    """Ours beside the plan, for each kind of tokens."""
    if "step_s" not in found or not isinstance(builder, Ours):
        return found
    if known is None:
        return {**found, "not_planned": "the planner does not know this device"}
    busiest_rank = 1.0  # over the mean of ranks, of which there is one
    measured = planned(builder, case, known.name, busiest_rank)
    found["planned"] = beside_plan(found, planned(builder, case, known.name))
    found["planned_at_load"] = {"imbalance": busiest_rank, **beside_plan(found, measured)}
    if "text" in found:
        found["text"]["planned_at_load"] = {"imbalance": busiest_rank, **beside_plan(found["text"], measured)}
    return found


def head_share(case: Case) -> float:
    """Of the model's FLOPs: what the loss head's matmuls must take; a slice of few layers has the whole head."""
    head = 6 * case.shape.vocab_size * case.shape.hidden_size
    return head / case.shape.training_flops_per_token(case.seq_length)


def facts_of(case: Case, model: str) -> dict[str, Any]:
    return {
        "model": model, "layers": case.shape.num_hidden_layers, "seq_length": case.seq_length, "micro_batch": case.micro_batch,
        "parameters": sum(case.shape.parameters().values()), "active": sum(case.shape.active_parameters().values()),
        "head_share_of_flops": head_share(case), "recompute": case.recompute,
        "precision": str(DTYPE).removeprefix("torch."),
    }  # fmt: skip
