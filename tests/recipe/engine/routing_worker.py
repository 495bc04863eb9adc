"""Run under the launcher by test_routing_oracle.py: training steps of the real engine against the oracle.

Arguments: path of a JSON list of cases, output path. Per case rank 0 writes the worst relative error of each
parameter's gradient, what the step reported and what the oracle says of it.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.data.batch import make_batch
from recipe.engine.build import build_engine, control_routing
from recipe.engine.collectives import gathered
from recipe.engine.moe.autoep import moe_layers
from recipe.engine.session import session
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter
from recipe.telemetry.routing_metrics import routing_metrics
from tests.conftest import ds_config
from tests.recipe.engine.plain_moe import Oracle, Unit

SEED, SEQ, VOCAB = 5, 16, 128
STEP = 2  # not a run's first, whose biases may be set before it
EOD, PAD = 1, 2


def tiny(case: dict) -> RecipeMoeConfig:
    config = RecipeMoeConfig.from_folder("recipe/configs/models/tiny")
    config.vocab_size = VOCAB
    for name, value in case.get("model", {}).items():
        setattr(config, name, value)
    config._attn_implementation = "sdpa"
    return config


def bias_of(layer: int) -> torch.Tensor:
    return torch.linspace(-0.1, 0.1, 8).roll(layer)


def sequences_of(case: dict, world: int) -> np.ndarray:
    """The global batch's sequences, in the order in which they are dealt: accumulation step, rank, micro-batch."""
    sizes = case["sizes"]
    rows = sizes["micro_batch"] * sizes["accumulation"] * world
    tokens = np.random.default_rng(0).integers(3, VOCAB, (rows, SEQ + 1))
    tokens[:, 7] = EOD
    if case.get("padded"):
        tokens[1, 5:] = PAD
        tokens[-1, 12:] = PAD
    return tokens


def batch_of(case: dict, rows: np.ndarray, sources: np.ndarray):
    return make_batch(
        rows, sources, eod_id=EOD, pad_id=PAD if case.get("padded") else None,
        document_attention=case.get("document_attention", False),
    )  # fmt: skip


def reference(case: dict, world: int) -> dict:
    """Gradients, loss and counts by the oracle, in this one process."""
    config, routing, sizes = tiny(case), Routing.model_validate(case.get("routing", {})), case["sizes"]
    model = RecipeMoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, config, SEED)
    oracle = Oracle(config, routing)
    oracle.install(model)
    for number, layer in enumerate(model.model.layers[config.first_k_dense_replace :]):
        layer.mlp.gate.e_score_correction_bias.copy_(bias_of(number))
    together = sizes["autoep_size"] if routing.capacity.scope == "expert_parallel_group" else 1
    tokens, micro = sequences_of(case, world), sizes["micro_batch"]
    loss, targets = torch.zeros(()), 0
    for start in range(0, len(tokens), micro * together):
        rows = tokens[start : start + micro * together]
        batch = batch_of(case, rows, np.zeros(len(rows), dtype=np.int64))
        micro_step, rank = divmod(start // micro, world)
        oracle.unit = Unit(batch.valid.flatten().tolist(), micro * SEQ, (SEED, STEP, micro_step, rank))
        positions = None if batch.positions is None else torch.from_numpy(batch.positions)
        logits = model(torch.from_numpy(batch.tokens), position_ids=positions).logits
        wanted = torch.from_numpy(batch.targets)
        loss = loss + torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        targets += int((wanted != -100).sum())
    loss = loss / targets
    (loss + oracle.losses(SEQ)).backward()
    aux = [oracle.aux_loss(seen, SEQ).item() for seen in oracle.layers]
    fair_margins = [oracle.fair_margins(seen, bias_of(n)) for n, seen in enumerate(oracle.layers)]
    return {
        **({"fair_margins": fair_margins} if routing.bias_update == "quantile" else {}),
        "gradients": {name.replace(".mlp.gate.", ".mlp.router.gate."): p.grad for name, p in model.named_parameters()},
        "loss": loss.item(),
        "aux_loss": sum(aux) / len(aux),
        "z_loss": sum(oracle.z_loss(seen).item() for seen in oracle.layers) / len(oracle.layers),
        "counts": [oracle.counts(layer) for layer in range(len(oracle.layers))],
        "dropped": [sum(s.dropped for s in seen) for seen in oracle.layers],
        "rerouted": [sum(s.rerouted for s in seen) for seen in oracle.layers],
    }


def expected_for(name: str, gradients: dict[str, torch.Tensor], engine) -> torch.Tensor:
    """The reference's gradient of one engine parameter: this rank's experts, gate and up apart."""
    if ".experts." not in name:
        return gradients[name]
    layer = dict(moe_layers(engine.module))[name.split(".experts.")[0]]
    mine = slice(layer.ep_rank * layer.num_local_experts, (layer.ep_rank + 1) * layer.num_local_experts)
    prefix, weight = name.rsplit(".", 1)
    if weight == "w2":
        return gradients[f"{prefix}.down_proj"][mine]
    gate, up = gradients[f"{prefix}.gate_up_proj"][mine].chunk(2, dim=1)
    return gate if weight == "w1" else up


def references(cases: list[dict]) -> list[dict]:
    """The oracle's word on each case; the ranks compute a share of them each, since it takes its time."""
    rank, world = dist.get_rank(), dist.get_world_size()
    shares = gathered([reference(case, world) for case in cases[rank::world]])
    return [shares[number % world][number // world] for number in range(len(cases))]


def run_case(case: dict, oracle: dict) -> dict:
    rank, world, sizes = dist.get_rank(), dist.get_world_size(), case["sizes"]
    ds_raw = ds_config(world, **sizes, **case.get("ds", {}))
    compute = Compute(recompute=case.get("recompute", "none"), loss_chunk_tokens=5)
    engine = build_engine(tiny(case), ds_raw, seed=SEED, optimizer=Optimizer(), compute=compute, seq_length=SEQ)
    routing = Routing.model_validate(case.get("routing", {}))
    control = control_routing(engine, routing, seq_length=SEQ, sources=["en", "zh"], seed=SEED)
    for number, bias in enumerate(control.bias_L):
        bias.copy_(bias_of(number))
    dtypes: set[str] = set()
    rows_computed: list[int] = []
    for _, layer in moe_layers(engine.module):
        layer.router.gate.register_forward_hook(lambda module, inputs, output: dtypes.add(str(output.dtype)))
        dtypes.add(str(layer.router.e_score_correction_bias.dtype))
        layer.experts.register_forward_hook(
            lambda module, inputs, output: rows_computed.extend(sum(j.sizes_E for j in inputs[1]).tolist())
        )
    engine.train()
    tokens, micro = sequences_of(case, world), sizes["micro_batch"]
    sources = np.arange(len(tokens)) % 2
    starts = [(step * world + rank) * micro for step in range(sizes["accumulation"])]
    batches = [batch_of(case, tokens[s : s + micro], sources[s : s + micro]) for s in starts]
    gradients: dict[str, torch.Tensor] = {}
    step = engine.step

    def step_and_look() -> None:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.named_parameters():
                found = parameter.grad if sizes.get("stage", 3) == 0 else safe_get_full_grad(parameter)
                gradients[name] = found.detach().float().clone()
        step()

    engine.step = step_and_look
    loss, sums = run_step(engine, control, compute, batches, step=STEP, observing=True, update_bias=True)
    dist.all_reduce(loss)
    metrics = routing_metrics(sums, control)
    worst = {}
    for name, found in gradients.items():
        expected = expected_for(name, oracle["gradients"], engine)
        # Experts without a token have no gradient: any but zero is infinitely wrong.
        worst[name] = ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    of_ranks = gathered((worst, max(rows_computed), [b.tolist() for b in control.bias_L]))
    engine.destroy()
    return {
        "worst": {name: max(part[0][name] for part in of_ranks) for name in worst},
        "rows_computed": max(part[1] for part in of_ranks),
        "biases": [part[2] for part in of_ranks],
        "dtypes": sorted(dtypes),
        "loss": loss.item() / world,
        "metrics": metrics,
        "assignments": [s.sum().item() for s in sums.counts_LOE],
        "oracle": {name: value for name, value in oracle.items() if name != "gradients"},
    }


def main() -> None:
    cases_path, output = (a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    with open(cases_path) as handle:
        cases = json.load(handle)
    with session():
        results = [run_case(case, oracle) for case, oracle in zip(cases, references(cases), strict=True)]
        if dist.get_rank() == 0:
            with open(output, "w") as handle:
                json.dump(results, handle)


if __name__ == "__main__":
    main()
