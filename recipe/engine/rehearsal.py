"""The real engine with the real ds_config in one process, under a process group that only pretends its other ranks.

torch's fake process group returns at once from every collective. So a laptop builds rank 0 of any cluster and runs a
whole step: all shards, groups and collectives are those of the cluster, only what travels is not.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from recipe.base.hardware import GPUS_PER_NODE
from recipe.base.model_shape import ModelShape
from recipe.base.ranks import remove_shared_memory
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.data.batch import Batch
from recipe.engine.build import build_engine, control_routing
from recipe.engine.collective_counts import CollectiveCounter
from recipe.engine.cpu_op import ensure_cpu_op
from recipe.engine.deepspeed_private import fake_store, log_level, state_tensors, torch_optimizer
from recipe.engine.fp32_products import Fp32Products
from recipe.engine.moe.autoep import moe_layers
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig

# Functions of torch 2.13 that DeepSpeed 0.19.8 calls, each call with a warning of four lines.
DEPRECATED = ("all_gather_into_tensor", "reduce_scatter_tensor")
WARM_UP_MICRO_BATCHES = 2  # in which ZeRO-3 records its trace


@dataclass(frozen=True)
class Rehearsal:
    """What the engine did in one steady step, and what it holds."""

    counted: CollectiveCounter
    state_bytes: dict[str, int]  # by the names of `recipe.planner.memory.StateBytes`
    groups: dict[str, int]  # sizes of the engine's process groups


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """This process as rank 0 of `world_size`, none of which exist."""
    # Not LOCAL_SIZE: DeepSpeed would wait in shared memory for the ranks of this host.
    local = min(world_size, GPUS_PER_NODE)
    environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": local}
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu")
    log_level(logging.ERROR)
    dist.init_process_group("fake", store=fake_store(), rank=0, world_size=world_size)
    try:
        with redirect_stdout(sys.stderr):
            ensure_cpu_op()
            deepspeed.init_distributed(dist_backend="gloo")
        with warnings.catch_warnings():
            for name in DEPRECATED:
                warnings.filterwarnings("ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning)
            yield
    finally:
        dist.destroy_process_group()
        remove_shared_memory()
        os.environ.clear()
        os.environ.update(before)


def rehearse(
    shape: ModelShape,
    ds_raw: dict[str, Any],
    *,
    seq_length: int,
    recompute: str,
    sources: int,
    routing: Routing | None = None,
    document_attention: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Rehearsal:
    """Build the engine of this process's rank and run one observed optimizer step after the trace is recorded.

    Attention is torch's, whatever the run's is: the other kernels need a GPU.

    Args:
        routing: None: the defaults.
        document_attention: with two documents in each sequence.
        tell: is told what is being done.
    """
    tell(
        f"building the engine as rank 0 of {dist.get_world_size():,}, {sum(shape.parameters().values()) / 1e6:,.0f}M parameters"
    )
    compute = Compute(recompute=recompute)
    config = RecipeMoeConfig.from_shape(shape)
    engine = build_engine(config, ds_raw, seed=seed, optimizer=Optimizer(), compute=compute, seq_length=seq_length)
    names = [str(number) for number in range(sources)]
    control = control_routing(engine, routing or Routing(), seq_length=seq_length, sources=names, seed=seed)
    random = np.random.default_rng(seed)
    micro_batch, accumulation = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    warm_up_steps = -(-WARM_UP_MICRO_BATCHES // accumulation)
    for step in range(warm_up_steps + 1):
        why = "which is counted" if step == warm_up_steps else "in which ZeRO-3 records what it gathers"
        tell(
            f"step {step + 1} of {warm_up_steps + 1}, {why}; micro-batches: {accumulation}, sequences of each: {micro_batch}"
        )
        counted = CollectiveCounter()
        batches = [
            random_batch(random, micro_batch, seq_length, shape.vocab_size, documents=1 + document_attention)
            for _ in range(accumulation)
        ]
        with Fp32Products(), counted:
            run_step(engine, control, compute, batches, step=step + 1, observing=True, update_bias=True)
    return Rehearsal(counted, held_bytes(engine), group_sizes(engine))


def random_batch(random: np.random.Generator, rows: int, seq_length: int, vocab: int, *, documents: int = 1) -> Batch:
    """A micro-batch of random tokens, all of which count; positions restart at each document where a row has more than one."""
    tokens = random.integers(0, vocab, (rows, seq_length + 1))
    valid = np.ones((rows, seq_length), dtype=bool)
    positions = None
    if documents > 1:
        place = np.arange(seq_length) % -(-seq_length // documents)
        positions = np.broadcast_to(place, (rows, seq_length)).copy()
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, valid, np.zeros(rows, dtype=np.int64))


def held_bytes(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """Bytes of the tensors that the engine keeps for a rank between steps, by the names of the plan."""
    held = {name: sum(map(_size, tensors)) for name, tensors in state_tensors(engine).items()}
    states = torch_optimizer(engine).state.values()
    return {**held, "moments": sum(_size(t) for state in states for name, t in state.items() if name != "step")}


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def group_sizes(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """Ranks of the groups that the engine communicates in."""
    layer = moe_layers(engine.module)[0][1]
    world = dist.get_world_size()
    return {"world": world, "expert_parallel": layer.ep_size, "expert_data_parallel": world // layer.ep_size}
