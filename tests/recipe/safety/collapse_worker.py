"""Run under the launcher by test_collapse.py: 200 tiny steps from routers that send every token to two experts.

Arguments: path of a JSON object of routing sections by name, output path. Rank 0 writes each one's worst load
max/mean and dead experts of the first and every tenth step, and the events of its mitigations.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import torch.distributed as dist

from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.data.batch import make_batch
from recipe.engine import build as engine_module
from recipe.engine.build import build_engine, control_routing
from recipe.engine.session import session
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig
from recipe.safety.mitigations import Mitigator
from recipe.telemetry.routing_metrics import routing_metrics
from tests.conftest import ds_config

STEPS, SEQ, VOCAB, MICRO = 200, 32, 64, 8
initialize = engine_module.initialize_parameter


def plant(parameter: torch.Tensor, name: str, config: RecipeMoeConfig, seed: int, device: torch.device | None) -> None:
    """Every token has the same large first feature, and the routers love it in experts 0 and 1 alone."""
    initialize(parameter, name, config, seed, device)
    if name.endswith("embed_tokens.weight"):
        parameter[:, 0] = 1.0
    if name.endswith("gate.weight"):
        parameter[:, 0] = -0.1
        parameter[:2, 0] = 0.1


def train(routing: Routing) -> dict:
    rank, world = dist.get_rank(), dist.get_world_size()
    config = RecipeMoeConfig.from_folder("recipe/configs/models/tiny")
    config.vocab_size, config.num_hidden_layers = VOCAB, 3
    ds_raw = ds_config(world, micro_batch=MICRO, accumulation=1, autoep_size=world)
    engine = build_engine(config, ds_raw, seed=1, optimizer=Optimizer(), compute=Compute())
    control = control_routing(engine, routing, seq_length=SEQ, sources=["en"], seed=1)
    mitigator = Mitigator(control)
    engine.train()
    for group in engine.optimizer.param_groups:
        group["lr"] = 2e-3
    loads, dead, events = [], [], []
    for step in range(1, STEPS + 1):
        # Each token names the next one: something to learn, so that tokens stay apart.
        tokens = np.random.default_rng((step, rank)).integers(0, VOCAB, (MICRO, 1)) + 5 * np.arange(SEQ + 1)
        batch = make_batch(
            tokens % VOCAB, np.zeros(MICRO, dtype=np.int64), eod_id=-1, pad_id=None, document_attention=False
        )
        _, sums = run_step(
            engine, control, Compute(), [batch], step=step, observing=step == 1 or step % 10 == 0, update_bias=True
        )
        if sums is not None:
            metrics = routing_metrics(sums, control)
            loads.append(metrics["expert_load_max_over_mean"])
            dead.append(max(metrics["routing"]["dead_experts"]))
            events += mitigator.update(step, metrics)
    engine.destroy()
    return {"loads": loads, "dead": dead, "events": events}


def main() -> None:
    cases_path, output = (a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    engine_module.initialize_parameter = plant
    with open(cases_path) as handle:
        cases = json.load(handle)
    with session():
        found = {name: train(Routing.model_validate(section)) for name, section in cases.items()}
        if dist.get_rank() == 0:
            with open(output, "w") as handle:
                json.dump(found, handle)


if __name__ == "__main__":
    main()
