"""Run under the launcher by test_engine.py: one global batch through the engine, gradients against the plain model.

Arguments: ds_config path, output path, JSON of changes to the tiny model. Rank 0 writes the worst relative
error of each parameter's gradient, and the dtypes that the routers worked in.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from recipe.base.settings import Optimizer, Routing
from recipe.base.strict import load_json
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter, next_token_loss
from recipe.model.routing import load_balancing_loss, router_logits, router_scores, router_z_loss
from recipe.run.autoep import moe_layers
from recipe.run.engine import build_engine
from recipe.run.session import session

SEED, SEQ = 5, 16
ROUTING = Routing(aux_loss_coef=0.5, z_loss_coef=0.1)  # large, so that a wrong scale shows


ARGUMENTS = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]


def tiny() -> RecipeMoeConfig:
    config = RecipeMoeConfig.from_folder("recipe/configs/models/tiny")
    config.vocab_size = 128
    for name, value in json.loads(ARGUMENTS[2]).items():
        setattr(config, name, value)
    return config


def reference_gradients(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of LM loss + router losses of the plain model on the whole batch, as one sum."""
    config = tiny()
    config._attn_implementation = "sdpa"
    model = RecipeMoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, config, SEED)
    router_losses = []

    def add_losses(gate, inputs, outputs):
        logits = router_logits(inputs[0], gate.weight)
        scores = router_scores(logits, config.scoring_func)
        aux = load_balancing_loss(scores, outputs[1], SEQ)
        router_losses.append(ROUTING.aux_loss_coef * aux + ROUTING.z_loss_coef * router_z_loss(logits))

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(add_losses)
    loss = next_token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:])
    assert len(router_losses) == 3
    (loss + sum(router_losses)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def expected_for(name: str, reference: dict[str, torch.Tensor], engine) -> torch.Tensor:
    """The reference's gradient of one engine parameter: this rank's experts, gate and up apart."""
    if ".experts." not in name:
        return reference[name.replace(".router.gate.", ".gate.")]
    layer = dict(moe_layers(engine.module))[name.split(".experts.")[0]]
    mine = slice(layer.ep_rank * layer.num_local_experts, (layer.ep_rank + 1) * layer.num_local_experts)
    prefix, weight = name.rsplit(".", 1)
    if weight == "w2":
        return reference[f"{prefix}.down_proj"][mine]
    gate, up = reference[f"{prefix}.gate_up_proj"][mine].chunk(2, dim=1)
    return gate if weight == "w1" else up


def main() -> None:
    ds_raw = load_json(ARGUMENTS[0])
    with session():
        rank, world = dist.get_rank(), dist.get_world_size()
        engine = build_engine(tiny(), ds_raw, seed=SEED, optimizer=Optimizer(), routing=ROUTING, seq_length=SEQ)
        dtypes: set[str] = set()
        for _, layer in moe_layers(engine.module):
            layer.router.gate.register_forward_hook(lambda module, inputs, output: dtypes.add(str(output.dtype)))
            dtypes.add(str(layer.router.e_score_correction_bias.dtype))
        engine.train()
        micro, accumulation = ds_raw["train_micro_batch_size_per_gpu"], ds_raw["gradient_accumulation_steps"]
        tokens = torch.randint(
            0, 128, (micro * accumulation * world, SEQ + 1), generator=torch.Generator().manual_seed(0)
        )
        for step in range(accumulation):
            start = (step * world + rank) * micro
            batch = tokens[start : start + micro]
            engine.backward(next_token_loss(engine(batch[:, :-1]).logits, batch[:, 1:]))
            if step < accumulation - 1:
                engine.step()
        reference = reference_gradients(tokens)
        worst: dict[str, float] = {}
        named = list(engine.module.named_parameters())
        for name, parameter in named:
            gradient = safe_get_full_grad(parameter)
            assert gradient is not None, name
            expected = expected_for(name, reference, engine)
            worst[name] = ((gradient.float() - expected).norm() / expected.norm()).item()
        engine.step()
        gathered: list = [None] * world
        dist.all_gather_object(gathered, worst)
        if rank == 0:
            merged = {name: max(part[name] for part in gathered) for name in worst}
            with open(ARGUMENTS[1], "w") as handle:
                json.dump({"worst": merged, "dtypes": sorted(dtypes)}, handle)


if __name__ == "__main__":
    main()
