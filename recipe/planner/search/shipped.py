"""The ds_configs that the repository ships: for which model and cluster each is, and how its JSON is chosen.

`python recipe/describe_plans.py --write-ds-configs` writes them all; a test regenerates them and compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.planner.plan import Budget, Plan
from recipe.planner.search.ds_writer import ds_config_for
from recipe.planner.search.search import Candidate, search
from recipe.planner.workload import RunFacts

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "recipe" / "configs" / "models"
DS_CONFIGS = ROOT / "ds_configs"
CPU_SEQUENCES = 16  # of a step on CPU ranks


@dataclass(frozen=True)
class Shipped:
    """One file of ds_configs/. ZeRO-3 with experts inside a node is kept; the search chooses the rest."""

    name: str
    model: str
    gpu: str
    gpus: int
    interconnect: str
    sequences: int  # of a step
    why: str  # what it is for, and how it differs from its neighbour
    ep: int = 8
    beside: str = ""  # the file with the usual expert-parallel size, where another one is faster by more than a tenth

    @property
    def path(self) -> Path:
        return DS_CONFIGS / f"{self.name}.json"


# 2,048 sequences * 4,096 tokens = 8.4M tokens a step
SHIPPED = (
    Shipped("h200_1", "1b-a0.3b", "h200", 1, "8x400g", 128, "one GPU: no collectives; for measuring kernels and small studies", ep=1),
    Shipped("a100_8", "7b-a1b", "a100-80gb", 8, "400g", 512, "one node: everything on NVLink; a smaller model, for finding hyperparameters"),
    Shipped("a100_64", "30b-a3b", "a100-80gb", 64, "400g", 2048, "the batch of a100_256 by accumulation, so weights are gathered for each micro-batch"),
    Shipped("a100_256", "30b-a3b", "a100-80gb", 256, "400g", 2048, "the design point: one micro-batch a step pays for each gather"),
    Shipped("a100_256_8x200g", "30b-a3b", "a100-80gb", 256, "8x200g", 2048, "for a NIC per GPU: micro-batches half as large, so that memory holds the results of all their matmuls"),
    Shipped("a100_512", "30b-a3b", "a100-80gb", 512, "400g", 4096, "the micro-batch of a100_256, twice its batch"),
    Shipped("a100_1024", "30b-a3b", "a100-80gb", 1024, "400g", 8192, "the micro-batch of a100_256, four times its batch, reached by a ramp: gathers still hide behind it"),
    Shipped("a100_1024_100b", "100b-a10b", "a100-80gb", 1024, "400g", 8192, "the large model, for recipe/configs/runs/pretrain_100b.yaml; a step of half its batch would not hide the gathers"),
)  # fmt: skip
FASTER_BY = 0.10  # of a step: what another expert-parallel size must save for a file of its own


@cache
def fastest(model: str, gpu: str, gpus: int, interconnect: str, sequences: int, ep: int) -> Candidate:
    """The fastest choice that fits with ZeRO-3 and this expert-parallel size; the smallest where nothing fits."""
    shape, cluster = load_model_shape(MODELS / model), cluster_of(gpu, gpus, interconnect)
    return search(shape, cluster, RunFacts(), Budget(), sequences, stages=(3,), ep_sizes=(ep,))[0]


def chosen(shipped: Shipped) -> Candidate:
    """The fastest choice that fits, within what is kept."""
    s = shipped
    candidate = fastest(s.model, s.gpu, s.gpus, s.interconnect, s.sequences, s.ep)
    assert candidate.fits, f"nothing fits {s.name}"
    return candidate


def saved_without_expert_parallelism(s: Shipped) -> float:
    """Of a step, the share that EP 1 saves where it fits; other sizes inside a node lie between it and the usual one."""
    alone = fastest(s.model, s.gpu, s.gpus, s.interconnect, s.sequences, 1)
    return 1 - alone.step_s / chosen(s).step_s if alone.fits else 0.0


def cpu_config(shape: ModelShape, ranks: int) -> dict[str, Any]:
    """For trying a small model on CPU processes, in fp32: experts over as many ranks as divide them."""
    ep_size = math.gcd(ranks, shape.n_routed_experts)
    micro_batch = max(1, CPU_SEQUENCES // ranks)
    return ds_config_for(shape, ranks, stage=3, ep_size=ep_size, micro_batch=micro_batch, accumulation=1, bf16=False)


def files() -> dict[Path, dict[str, Any]]:
    """Path and content of every shipped ds_config."""
    return {
        DS_CONFIGS / "cpu_2.json": cpu_config(load_model_shape(MODELS / "tiny"), 2),
        **{s.path: chosen(s).config for s in SHIPPED},
    }


def named(name: str) -> Shipped:
    """The file `name`.json."""
    return next(s for s in SHIPPED if s.name == name)


def plans() -> dict[str, tuple[str, Plan]]:
    """Of the GPU configs, by name: the model and the plan."""
    return {s.name: (s.model, chosen(s).plan) for s in SHIPPED}
