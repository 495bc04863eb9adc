#!/usr/bin/env python3
"""Whether a shape's cheaper tokens teach as much: tiny copies of the flagship's candidates, trained for equal planned time.

    python benchmarks/shape_ladder.py --tokens work/tokens --output benchmarks/results/shape_ladder.json

Each candidate of recipe/planner/tables/shape_tables.py is trained as a copy: widths and heads divided, and tokens in inverse
proportion to the planned step of the large model that it stands for, so all copies spend the same planned time on A100s. The
same documents in the same order, the same held-out ones, several seeds. Each copy takes the best of the learning rates that
were tried with the first seed. fp32 on CPU, the model and routers of recipe/model in a loop of PyTorch's own. Prints JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import MethodType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.moe_layer import machine, report  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.model_shape import ModelShape  # noqa: E402
from recipe.base.run_config.learning_rate import learning_rate  # noqa: E402
from recipe.base.run_config.schedule import Schedule  # noqa: E402
from recipe.base.settings import Optimizer  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.data.batch import make_batch  # noqa: E402
from recipe.data.loader import BatchOrder  # noqa: E402
from recipe.data.mixture import Stretch  # noqa: E402
from recipe.data.token_folder import Split, TokenFolder  # noqa: E402
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM  # noqa: E402
from recipe.model.loss import next_token_loss  # noqa: E402
from recipe.model.modeling import Experts, Router, initialize_parameter, swiglu  # noqa: E402
from recipe.model.routing.balance import updated_bias  # noqa: E402
from recipe.planner.tables.shape_tables import BASELINE, SHAPES, planned  # noqa: E402

SEQ_LENGTH, MICRO_BATCH = 128, 4  # 512 tokens a step
RATES = (3e-3, 6e-3)
STABLE = 0.8  # share of a copy's tokens before its learning rate falls
CLIP, BIAS_RATE = 1.0, 1e-3
LAYERS, WIDTH, HEADS, HEAD_DIM, EXPERTS = 4, 32, 4, 8, 2  # what each is divided by
HELD_OUT = 48  # sequences, of all sources
# Copies have widths that the grouped matmul takes.
CANDIDATES = tuple(name for name, shape in SHAPES.items() if not shape.hidden_size % 128)


def copy_of(shape: ModelShape, vocabulary: int, layers: int = LAYERS) -> ModelShape:
    """The tiny model that stands for a large one.

    Args:
        vocabulary: of the tokens.
        layers: what their number is divided by.
    """
    return shape.model_copy(
        update={
            "vocab_size": vocabulary,
            "hidden_size": shape.hidden_size // WIDTH,
            "intermediate_size": shape.intermediate_size // WIDTH,
            "moe_intermediate_size": shape.moe_intermediate_size // WIDTH,
            "num_hidden_layers": shape.num_hidden_layers // layers,
            "num_attention_heads": shape.num_attention_heads // HEADS,
            "num_key_value_heads": shape.num_key_value_heads // HEADS,
            "head_dim": shape.head_dim // HEAD_DIM,
            "n_routed_experts": shape.n_routed_experts // EXPERTS,
            "initializer_range": shape.initializer_range * math.sqrt(WIDTH),  # activations keep their size
        }
    )


def grouped_experts(
    self: Experts, x_TD: torch.Tensor, weights_TK: torch.Tensor, experts_TK: torch.Tensor
) -> torch.Tensor:
    """`Experts.forward` with a grouped matmul in place of a loop over experts."""
    experts_A = experts_TK.flatten()
    order_A = experts_A.argsort()
    token_A = order_A // experts_TK.shape[1]
    ends_E = torch.bincount(experts_A, minlength=self.gate_up_proj.shape[0]).cumsum(0).int()
    gate, up = F.grouped_mm(x_TD[token_A], self.gate_up_proj.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    out_AD = F.grouped_mm(swiglu(gate, up), self.down_proj.transpose(1, 2), offs=ends_E)
    weighted_AD = out_AD * weights_TK.flatten()[order_A, None]
    return torch.zeros_like(x_TD).index_add_(0, token_A, weighted_AD.to(x_TD.dtype))


class Trained:
    """A copy with its initial weights, its optimizer and the loads of its experts."""

    def __init__(self, shape: ModelShape, seed: int, bias_rate: float = BIAS_RATE):
        self.bias_rate = bias_rate
        config = RecipeMoeConfig.from_shape(shape)
        config._attn_implementation = "sdpa"
        self.model = RecipeMoeForCausalLM(config)
        for module in self.model.modules():
            if isinstance(module, Experts):
                module.forward = MethodType(grouped_experts, module)  # type: ignore[method-assign]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                initialize_parameter(parameter, name, config, seed)
        settings = Optimizer()
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
        self.routers = [module for module in self.model.modules() if isinstance(module, Router)]
        self.chosen: dict[nn.Module, torch.Tensor] = {}
        for router in self.routers:
            router.register_forward_hook(lambda module, _, output: self.chosen.__setitem__(module, output[2]))

    def step(self, tokens: torch.Tensor, targets: torch.Tensor, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = next_token_loss(self.model(tokens).logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.balance()
        return loss.item()

    @torch.no_grad()
    def balance(self) -> None:
        """The expert bias follows the loads, as in training."""
        for router in self.routers:
            bias_E: torch.Tensor = router.e_score_correction_bias  # type: ignore[assignment]
            counts_E = torch.bincount(self.chosen[router].flatten(), minlength=bias_E.shape[0]).float()
            bias_E.copy_(updated_bias(bias_E[None], counts_E[None], self.bias_rate)[0])

    @torch.no_grad()
    def loss_of(self, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
        return statistics.mean(next_token_loss(self.model(x).logits, y).item() for x, y in batches)


class Sequences:
    """The same sequences in the same order for every copy."""

    def __init__(self, folder: TokenFolder, split: Split):
        sources = folder.sources(split)
        self.order = BatchOrder(
            sources, [Stretch(0, {s.name: float(s.num_tokens) for s in sources})], SEQ_LENGTH, seed=0
        )

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        sequences, numbers, _ = self.order.micro_batch(step * MICRO_BATCH, 0, 0, 1, MICRO_BATCH)
        batch = make_batch(sequences, numbers, eod_id=0, pad_id=None, document_attention=False)
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in (batch.tokens, batch.targets))
        return tokens, targets


def train(shape: ModelShape, folder: TokenFolder, steps: int, at: int, rate: float, seed: int) -> dict[str, float]:
    """One run: held-out loss at its end, and after `at` steps, when every copy still has its full learning rate."""
    tokens = SEQ_LENGTH * MICRO_BATCH
    schedule = Schedule(
        total_tokens=steps * tokens, kind="wsd", peak_lr=rate, min_lr=rate / 20, warmup_tokens=max(1, steps // 10) * tokens,
        decay_tokens=round((1 - STABLE) * steps) * tokens,
    )  # fmt: skip
    trained, sequences, begun = Trained(shape, seed), Sequences(folder, "train"), time.process_time()
    held_out = Sequences(folder, "held_out")
    judged = [held_out.batch(number) for number in range(HELD_OUT // MICRO_BATCH)]
    found = {}
    for number in range(1, steps + 1):
        trained.step(*sequences.batch(number - 1), learning_rate(schedule, number * tokens))
        if number == at:
            found["loss_at_equal_tokens"] = trained.loss_of(judged)
    return found | {"loss": trained.loss_of(judged), "cpu_s": time.process_time() - begun}


def climb(
    folder: TokenFolder, names: Sequence[str], steps: int, seeds: int, rates: Sequence[float], layers: int = LAYERS
) -> dict[str, Any]:
    """The runs of each candidate; the first takes `steps`, the others as many more as their planned step is shorter."""
    planned_s = {name: planned(name).expected.step_s for name in names}
    ladder = {}
    for name in names:
        shape = copy_of(SHAPES[name], folder.tokenizer["vocab_size"], layers)
        own_steps = round(steps * planned_s[names[0]] / planned_s[name])
        at = int(STABLE * steps)
        tried = {rate: train(shape, folder, own_steps, at, rate, 0) for rate in rates}
        best = min(tried, key=lambda rate: tried[rate]["loss"])
        runs = [tried[best], *(train(shape, folder, own_steps, at, best, seed) for seed in range(1, seeds))]
        print(f"{name}: {own_steps} steps at {best:g}: {[round(run['loss'], 4) for run in runs]}", file=sys.stderr)
        ladder[name] = {
            "shape": shape.model_dump(include=set(copy_fields())),
            "parameters": sum(shape.parameters().values()),
            "active_parameters": sum(shape.active_parameters().values()),
            "planned_step_s": planned_s[name],
            "steps": own_steps,
            "tokens": own_steps * SEQ_LENGTH * MICRO_BATCH,
            "rates": {f"{rate:g}": round(run["loss"], 4) for rate, run in tried.items()},
            "rate": best,
            "runs": [{key: round(value, 4) for key, value in run.items()} for run in runs],
            **{key: spread([run[key] for run in runs]) for key in ("loss", "loss_at_equal_tokens")},
        }
    return ladder


def copy_fields() -> tuple[str, ...]:
    return ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "vocab_size")  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


def markdown(result: dict[str, Any]) -> str:
    """Losses of all copies, and what they are from the first one's."""
    first = next(iter(result["ladder"].values()))
    rows = []
    for name, found in result["ladder"].items():
        s, loss, same = found["shape"], found["loss"], found["loss_at_equal_tokens"]
        rows.append(
            [
                name,
                f"{s['num_hidden_layers']} × {s['hidden_size']}, {s['num_experts_per_tok']} of {s['n_routed_experts']} × {s['moe_intermediate_size']}",
                f"{found['active_parameters'] / 1e6:.2f}M", f"{found['tokens']:,}",
                f"{loss['median']:.3f} ({loss['lowest']:.3f} to {loss['highest']:.3f})",
                f"{loss['median'] - first['loss']['median']:+.3f}",
                f"{same['median'] - first['loss_at_equal_tokens']['median']:+.3f}",
            ]
        )  # fmt: skip
    head = ["stands for", "copy", "active", "tokens", "held-out loss, nats", "at equal planned time", "at equal tokens"]
    intro = (
        f"{result['device']}, torch {result['torch']}, {result['date']}: {result['seeds']} seeds, medians and ranges; "
        f"{result['cpu_s'] / 60:.0f} minutes of CPU."
    )
    return f"{intro}\n\n{markdown_table(head, rows, left=2)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument(
        "--shapes", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="SHAPE",
        help=f"candidates, of {', '.join(map(repr, CANDIDATES))} (default: all); {BASELINE!r} comes first",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive_int, default=250, help="of the flagship's copy (default: %(default)s)")
    parser.add_argument("--seeds", type=positive_int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed, one rate, half the layers: a try")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    if args.tokens is None:
        raise UserError("--tokens is missing; give the output folder of tokenize_corpus.py")
    folder = TokenFolder(args.tokens)
    torch.set_num_threads(1)
    names = [BASELINE, *(name for name in args.shapes if name != BASELINE)]
    seeds, rates, layers = (1, RATES[:1], 2 * LAYERS) if args.quick else (args.seeds, RATES, LAYERS)
    begun = time.process_time()
    with redirect_stdout(sys.stderr):
        ladder = climb(folder, names, args.steps, seeds, rates, layers)
    result = {
        **machine(),
        "data": {
            "train": folder.sizes("train"),
            "held_out": folder.sizes("held_out"),
            "vocabulary": folder.tokenizer["vocab_size"],
        },
        "seq_length": SEQ_LENGTH,
        "micro_batch": MICRO_BATCH,
        "seeds": seeds,
        "divided_by": {"layers": layers, "widths": WIDTH, "heads": HEADS, "head_dim": HEAD_DIM, "experts": EXPERTS},
        "cpu_s": round(time.process_time() - begun, 1),
        "ladder": ladder,
    }
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
