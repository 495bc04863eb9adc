"""The real engine in this process for the GPU's checks, one after another, and the plain model on the CPU that they are compared with.

What an engine leaves behind is put back by `trained`: torch's deterministic mode and compiled functions are settings of the
process, and DeepSpeed's hooks and a raised exception's frames hold tensors until they are collected.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import safe_get_full_fp32_param

from recipe.base.model_shape import IGNORED
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Numerics, Optimizer
from recipe.data.batch import Batch, make_batch
from recipe.engine.build import be_deterministic, build_engine, control_routing, parameter_groups
from recipe.engine.deepspeed_private import torch_optimizer
from recipe.engine.moe.routing_control import RoutingControl
from recipe.engine.step import run_step
from recipe.engine.step_guard import StepGuard
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.fusion import fuse
from recipe.model.modeling import initialize_parameter
from recipe.model.routing.balance import updated_bias
from tests.conftest import ROOT, ds_config
from tests.recipe.engine.plain_moe import Oracle, Unit

SEED, SEQ, VOCAB, EOD = 5, 16, 128, 1
MICRO_BATCH, ACCUMULATION = 2, 2
LEARNING_RATE = 1e-3
OPTIMIZER = Optimizer()
LIMITS: dict[str, dict[str, Any]] = {
    "dropless": {},
    "drop": {"mode": "drop", "factor": 1.0, "gives_way": "latest_position"},
    "reroute": {"mode": "reroute", "factor": 1.0},
}


@dataclass(frozen=True)
class Case:
    """What an engine is built with."""

    stage: int = 3
    limit: str = "dropless"
    documents: bool = False
    bf16: bool = False
    compute: Compute = field(default_factory=Compute)
    autoep_size: int = 1
    ranks: int = 1
    kept_gib: float = 0.0
    parts: int = 1

    @property
    def routing(self) -> Routing:
        # Router losses large enough for a wrong scale to show.
        return Routing.model_validate({"aux_loss_coef": 0.5, "z_loss_coef": 0.1, "capacity": LIMITS[self.limit]})

    def ds(self) -> dict[str, Any]:
        more = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}} if self.bf16 else {}
        raw = ds_config(
            self.ranks,
            micro_batch=MICRO_BATCH,
            accumulation=ACCUMULATION,
            autoep_size=self.autoep_size,
            stage=self.stage,
            recipe={"kept_gib": self.kept_gib, "exchange_parts": self.parts},
            **more,
        )
        raw["zero_optimization"]["overlap_comm"] = True  # as in the ds_configs of GPUs
        return raw


def model_config() -> RecipeMoeConfig:
    """The tiny model with two MoE layers, of widths that a GPU's kernels for bf16 take."""
    config = RecipeMoeConfig.from_folder(ROOT / "recipe/configs/models/tiny")
    config.vocab_size, config.num_hidden_layers = VOCAB, 3
    config._attn_implementation = "sdpa"
    return config


def batches_of(step: int, documents: bool, *, rank: int = 0, ranks: int = 1) -> list[Batch]:
    """A rank's micro-batches of a step; all ranks' are dealt by micro-batch and rank.

    Odd steps have the same tokens, and so do even ones: the loss of the third depends on what the first two changed.
    """
    rows = np.random.default_rng(step % 2).integers(3, VOCAB, (ACCUMULATION, ranks, MICRO_BATCH, SEQ + 1))
    rows[..., 7] = EOD
    sources = np.arange(MICRO_BATCH) % 2
    return [
        make_batch(rows[micro, rank], sources, eod_id=EOD, pad_id=None, document_attention=documents)
        for micro in range(ACCUMULATION)
    ]


@dataclass
class Training:
    """An engine with its routers' control, and the losses and gradient norms of its steps so far."""

    case: Case
    engine: Any
    control: RoutingControl
    guard: StepGuard | None = None
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def step(self, number: int, *, enter: Callable[[str], None] = lambda phase: None) -> torch.Tensor:
        """One optimizer step, without waiting for it."""
        for group in torch_optimizer(self.engine).param_groups:
            group["lr"] = LEARNING_RATE
        rank = int(os.environ.get("RANK", "0"))
        batches = batches_of(number, self.case.documents, rank=rank, ranks=self.case.ranks)
        total, _ = run_step(
            self.engine, self.control, self.case.compute, batches,
            step=number, observing=True, update_bias=True, guard=self.guard, enter=enter,
        )  # fmt: skip
        return total

    def steps(self, first: int, last: int, *, enter: Callable[[str], None] = lambda phase: None) -> None:
        for number in range(first, last + 1):
            self.losses.append(self.step(number, enter=enter).item())
            self.norms.append(float(self.engine.get_global_grad_norm()))

    def weights(self) -> dict[str, torch.Tensor]:
        """The optimizer's fp32 weights and the expert biases, on the host."""
        # A copy, since without ZeRO-3 these are views of what the next step changes.
        named = self.engine.module.named_parameters()
        found = {name: safe_get_full_fp32_param(parameter).detach().cpu().clone() for name, parameter in named}
        return found | {f"bias {number}": bias.cpu().clone() for number, bias in enumerate(self.control.bias_L)}


@cache
def initial_weights(seed: int) -> dict[str, torch.Tensor]:
    """Weights and expert biases that a CPU draws; a GPU draws others of the same seed."""
    model = RecipeMoeForCausalLM(model_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, model.config, seed)
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@contextmanager
def trained(case: Case, *, seed: int = SEED, store: Any = None) -> Iterator[Training]:
    """An engine in the process group that there is, ready for its first step, and gone without a trace after that.

    Args:
        store: of checkpoints, that is told before an update.
    """
    engine = build_engine(
        model_config(),
        case.ds(),
        seed=seed,
        optimizer=OPTIMIZER,
        compute=case.compute,
        seq_length=SEQ,
        weights=initial_weights(seed).__getitem__,
    )
    control = control_routing(engine, case.routing, seq_length=SEQ, sources=["en", "zh"], seed=seed)
    engine.train()
    training = Training(case, engine, control)
    if store is not None:
        training.guard = StepGuard(
            engine, Numerics(spikes=None), {}, votes=store.votes, before_update=store.before_update
        )
    try:
        yield training
    finally:
        engine.destroy()
        training.engine = training.control = training.guard = None  # type: ignore[assignment]
        del engine, control
        forget_modules()
        be_deterministic(False)
        fuse(False)
        if case.compute.compile:
            torch._dynamo.reset()  # other checks compile the same functions for other shapes, of which there may be so many
        gc.collect()


def forget_modules() -> None:
    """Empty what of DeepSpeed 0.19.8 holds the modules of ZeRO-3, and with them all of an engine, after `destroy`.

    A stack of the modules that run, and a cache that lies around a method.
    """
    parameter_offload.FWD_MODULE_STACK.clear()
    method: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()


def run(case: Case, steps: int) -> tuple[Training, dict[str, torch.Tensor]]:
    """So many steps from the beginning; the losses and norms, and the weights after them."""
    with trained(case) as training:
        training.steps(1, steps)
        weights = training.weights()
    return training, weights


# The reference: one process of the CPU, fp32, one token at a time, torch's own optimizer.


@cache
def plain(
    limit: str, documents: bool, bf16_weights: bool, steps: int, ranks: int = 1
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the steps by loops over tokens.

    Args:
        bf16_weights: whether training begins from weights that are rounded to bf16, as that of an engine in bf16 does.
    """
    case, config = Case(limit=limit, documents=documents), model_config()
    model = RecipeMoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = initial_weights(SEED)[name]
            parameter.copy_(drawn.bfloat16() if bf16_weights else drawn)
    oracle = Oracle(config, case.routing)
    oracle.install(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, OPTIMIZER.weight_decay), lr=LEARNING_RATE, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps
    )
    losses, norms = [], []
    for step in range(1, steps + 1):
        oracle.layers = [[] for _ in oracle.layers]
        loss = plain_loss(model, oracle, step, documents, ranks)
        (loss + oracle.losses(SEQ)).backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        for layer, block in enumerate(model.model.layers[config.first_k_dense_replace :]):
            bias, counts = block.mlp.gate.e_score_correction_bias, torch.tensor(oracle.counts(layer)).double()
            bias.copy_(updated_bias(bias[None], counts[None], case.routing.bias_update_rate)[0])
    return losses, norms


def plain_loss(model: Any, oracle: Oracle, step: int, documents: bool, ranks: int) -> torch.Tensor:
    """The mean loss of a step's global batch, with its graph."""
    total, targets = torch.zeros(()), 0
    of_ranks = [batches_of(step, documents, rank=rank, ranks=ranks) for rank in range(ranks)]
    for batch in (batches[micro] for micro in range(ACCUMULATION) for batches in of_ranks):
        oracle.unit = Unit(batch.valid.flatten().tolist(), batch.valid.size)
        positions = None if batch.positions is None else torch.from_numpy(batch.positions)
        logits = model(torch.from_numpy(batch.tokens), position_ids=positions).logits
        wanted = torch.from_numpy(batch.targets)
        total = total + F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="sum")
        targets += int((wanted != IGNORED).sum())
    return total / targets


def live_bytes(device: torch.device) -> int:
    """Bytes of tensors that are alive on the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # lets go of what other streams were still using
        # As they were asked for: blocks of the allocator, by which memory_allocated counts, depend on what was free.
        return torch.cuda.memory_stats()["requested_bytes.all.current"]
    tensors = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and type(o).__module__ == "torch")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device == device}
    return sum(storages.values())
