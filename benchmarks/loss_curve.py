#!/usr/bin/env python3
"""Whether fast training learns what plain training does: loss curves over the same data from the same weights.

    python benchmarks/loss_curve.py --tokens work/quickstart/tokens --output benchmarks/results/loss_curve.json

The reference is the model in fp32 in a loop of PyTorch's own, logits whole, nothing compiled, no DeepSpeed. Ours is the
engine in bf16 with fp32 routers, loss and optimizer, compiled. Noise is what other initial weights do to the reference.
Router losses and the expert bias are off, since the plain loop has neither. With --balance ours trains in fp32 with the
expert bias instead, by signs and by quantiles. A process for each curve; prints JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.moe_layer import machine, place_of_rank, report  # noqa: E402
from launch.cluster.hosts import free_port  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.model_shape import load_model_shape  # noqa: E402
from recipe.base.run_config.learning_rate import learning_rate  # noqa: E402
from recipe.base.run_config.routing import Routing  # noqa: E402
from recipe.base.run_config.schedule import Schedule  # noqa: E402
from recipe.base.settings import Compute, Optimizer  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.data.batch import Batch, make_batch  # noqa: E402
from recipe.data.loader import BatchOrder  # noqa: E402
from recipe.data.mixture import Stretch  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402
from recipe.planner.search.ds_writer import ds_config_for  # noqa: E402

SEQ_LENGTH, MICRO_BATCH, CLIP = 128, 8, 1.0
TAIL = 50  # last steps, whose mean loss is compared
NOISE = ("other weights", "yet others")  # how the names of curves end that are the reference from other initial weights
OFF = Routing(aux_loss_coef=0.0, z_loss_coef=0.0, bias_update_rate=0.0)
SIGN = OFF.model_copy(update={"bias_update_rate": 0.001})
QUANTILE = OFF.model_copy(update={"bias_update": "quantile"})
Step = Callable[[int, Batch, float], float]  # number, batch and learning rate of a step to its loss
Build = Callable[[Any], Step]  # of a model shape
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(folder: TokenFolder, steps: int, micro_batch: int = MICRO_BATCH) -> Iterator[Batch]:
    sources = folder.sources("train")
    order = BatchOrder(sources, [Stretch(0, {s.name: float(s.num_tokens) for s in sources})], SEQ_LENGTH, seed=0)
    for step in range(steps):
        sequences, numbers, _ = order.micro_batch(step * micro_batch, 0, 0, 1, micro_batch)
        yield make_batch(sequences, numbers, eod_id=0, pad_id=None, document_attention=False)


def plain(shape: Any, seed: int) -> Step:
    """A training step of the reference: learning rate and batch to loss."""
    from recipe.engine.build import parameter_groups
    from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
    from recipe.model.loss import next_token_loss
    from recipe.model.modeling import initialize_parameter

    config = RecipeMoeConfig.from_shape(shape)
    config._attn_implementation = "sdpa"
    model = RecipeMoeForCausalLM(config).to(DEVICE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, config, seed)
    settings = Optimizer()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay), lr=0.0, betas=settings.betas, eps=settings.eps
    )

    def step(number: int, batch: Batch, lr: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(a)).to(DEVICE) for a in (batch.tokens, batch.targets))
        loss = next_token_loss(model(tokens).logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def ours(shape: Any, *, stage: int, bf16: bool, compiled: bool, routing: Routing = OFF, seed: int = 0) -> Step:
    from recipe.engine.build import build_engine, control_routing
    from recipe.engine.step import run_step
    from recipe.model import RecipeMoeConfig

    compute = Compute(compile=compiled)
    ds = ds_config_for(shape, 1, stage=stage, ep_size=1, micro_batch=MICRO_BATCH, accumulation=1, bf16=bf16)
    engine = build_engine(RecipeMoeConfig.from_shape(shape), ds, seed=seed, optimizer=Optimizer(), compute=compute)
    control = control_routing(engine, routing, seq_length=SEQ_LENGTH, sources=["all", "other"], seed=0)
    engine.train()

    def step(number: int, batch: Batch, lr: float) -> float:
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        loss, _ = run_step(engine, control, compute, [batch], step=number, observing=False, update_bias=True)
        return loss.item()

    return step


balanced = partial(ours, stage=1, bf16=False, compiled=False)
PRECISION: dict[str, Build] = {
    "plain fp32, the reference": partial(plain, seed=0),
    "plain fp32, other weights": partial(plain, seed=1),
    "plain fp32, yet others": partial(plain, seed=2),
    "ours, fp32, ZeRO-3": partial(ours, stage=3, bf16=False, compiled=False),
    "ours, bf16, ZeRO-1, compiled": partial(ours, stage=1, bf16=True, compiled=True),
    "ours, bf16, ZeRO-3, compiled": partial(ours, stage=3, bf16=True, compiled=True),
}
BALANCE: dict[str, Build] = {
    "bias by sign, the reference": partial(balanced, routing=SIGN),
    "bias by sign, other weights": partial(balanced, routing=SIGN, seed=1),
    "bias by quantiles": partial(balanced, routing=QUANTILE),
    "bias by quantiles, other weights": partial(balanced, routing=QUANTILE, seed=1),
}


def curve(step: Step, folder: TokenFolder, steps: int) -> list[float]:
    tokens = SEQ_LENGTH * MICRO_BATCH
    schedule = Schedule(total_tokens=steps * tokens, peak_lr=2e-3, min_lr=2e-4, warmup_tokens=steps // 10 * tokens)
    return [
        step(number, batch, learning_rate(schedule, number * tokens))
        for number, batch in enumerate(batches(folder, steps), 1)
    ]


def trained(build: Build, shape: Any, tokens: Path, steps: int) -> tuple[list[float], float]:
    """The losses of one contender and its seconds, in a process of its own."""
    from recipe.engine.session import session

    os.environ.update(place_of_rank(0, 1, free_port()))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    begun = time.perf_counter()
    with redirect_stdout(sys.stderr), session():
        losses = curve(build(shape), TokenFolder(tokens), steps)
    return losses, round(time.perf_counter() - begun, 1)


def compare(curves: dict[str, list[float]], reference: str, noise: list[str]) -> dict[str, Any]:
    """Of each curve: its mean loss over the last steps, how far it is from the reference's, and from it step by step."""
    end = {name: statistics.mean(losses[-TAIL:]) for name, losses in curves.items()}
    return {
        name: {
            "end": end[name],
            "end_over_reference": end[name] - end[reference],
            "mean_distance": statistics.mean(abs(a - b) for a, b in zip(losses, curves[reference], strict=True)),
            "is_noise": name in noise,
        }
        for name, losses in curves.items()
    }


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{found['end']:.4f}", f"{found['end_over_reference']:+.4f}", f"{found['mean_distance']:.4f}"]
        for name, found in result["compared"].items()
    ]
    head = [f"{result['steps']} steps of {result['model']}", f"mean loss of the last {result['tail']}", "from the reference", "mean distance of a step"]  # fmt: skip
    return f"{result['device']}, torch {result['torch']}, {result['date']}.\n\n{markdown_table(head, rows)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "recipe/configs/models/tiny", help="(default: %(default)s)"
    )
    parser.add_argument("--steps", type=positive_int, default=300, help="(default: %(default)s)")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument(
        "--balance", action="store_true", help="only the two updates of the expert bias, and their noise"
    )
    parser.add_argument("--workers", type=positive_int, default=1, help="curves at once (default: %(default)s)")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    if args.tokens is None:
        raise UserError("--tokens is missing; give the output folder of tokenize_corpus.py")
    if args.steps < TAIL:
        raise UserError(f"--steps {args.steps} is below {TAIL}, over which losses are averaged")
    folder, shape = TokenFolder(args.tokens), load_model_shape(args.model)
    if folder.tokenizer["vocab_size"] > shape.vocab_size:
        raise UserError(
            f"{args.tokens} has {folder.tokenizer['vocab_size']:,} kinds of tokens, the model {shape.vocab_size:,}"
        )
    builders: dict[str, Build] = BALANCE if args.balance else PRECISION
    curves, seconds = {}, {}
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        running = {
            name: pool.apply_async(trained, (build, shape, args.tokens, args.steps)) for name, build in builders.items()
        }
        for name, found in running.items():
            curves[name], seconds[name] = found.get()
            print(f"{name}: {statistics.mean(curves[name][-TAIL:]):.4f} after {seconds[name]:.0f} s", file=sys.stderr)
    reference, *others = builders
    result = {
        **machine(),
        "model": args.model.name,
        "steps": args.steps,
        "tail": TAIL,
        "compared": compare(curves, reference, [name for name in others if name.endswith(NOISE)]),
        "seconds": seconds,
        "losses": {
            name: [round(loss, 5) for loss in losses[:: max(1, args.steps // 60)]] for name, losses in curves.items()
        },
    }
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
