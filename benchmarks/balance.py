#!/usr/bin/env python3
"""How fast and how well each update of the expert bias balances: a simulated router, and the first steps of a fresh model.

    python benchmarks/balance.py --output benchmarks/results/balance.json
    python benchmarks/balance.py --tokens work/quickstart/tokens --output benchmarks/results/balance_trained.json

simulated: scores of the flagship's router shape, without a model. Every step draws new tokens; loads are those of tokens that
  no bias has seen. `steps` is how many updates it takes until the busiest expert has at most 1.2 times the mean.
cutoffs, bins: what the quantile update depends on, against sorted margins.
With --tokens nothing is simulated: a small model with the flagship's number of experts and its router's initial logits
  trains with each update. The busiest of 8 expert-parallel ranks over the mean, and what a capacity of 1.25 would drop, by step.
Prints JSON. One process, on CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.loss_curve import SEQ_LENGTH, batches  # noqa: E402
from benchmarks.moe_layer import machine, place_of_rank, report  # noqa: E402
from launch.cluster.hosts import free_port  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.model_shape import ModelShape, load_model_shape  # noqa: E402
from recipe.base.run_config.learning_rate import learning_rate  # noqa: E402
from recipe.base.run_config.routing import Routing  # noqa: E402
from recipe.base.run_config.schedule import Schedule  # noqa: E402
from recipe.base.settings import Compute, Optimizer  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402
from recipe.model.routing import quantile  # noqa: E402
from recipe.model.routing.balance import updated_bias  # noqa: E402
from recipe.model.routing.capacity import expert_capacity  # noqa: E402
from recipe.planner.search.ds_writer import ds_config_for  # noqa: E402

FLAGSHIP = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
E, K = FLAGSHIP.n_routed_experts, FLAGSHIP.num_experts_per_tok
EP = 8
TOKENS, BALANCED, MOST_STEPS = 8_192, 1.2, 200
RATE = 0.001
CAPACITY = 1.25
WARMUP_STEPS = 2000  # the flagship's: its first thousand steps are all in the warmup
Update = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # bias [E] and scores [T, E] to bias

# Simulated logits: a token's own are normal with deviation 1; experts are liked more or less by all tokens.
SPREAD = 0.43  # deviation of a normal liking: the busiest expert begins near 6.7 times the mean
LIKINGS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {
    "spread": lambda random: SPREAD * torch.randn(E, generator=random),
    "skewed": lambda random: torch.empty(E).exponential_(1.0, generator=random),
    "collapsed": lambda random: torch.where(torch.arange(E) < K, 4.0, 0.0),
}
DRIFT = 0.02  # deviation of what a step adds to each liking, in the drifting case


def counts_of(choice_TE: torch.Tensor) -> torch.Tensor:
    return torch.bincount(choice_TE.topk(K).indices.flatten(), minlength=E).double()


def max_over_mean(counts_E: torch.Tensor) -> float:
    return (counts_E.max() / counts_E.mean()).item()


def of_ranks(counts_E: torch.Tensor) -> float:
    """The busiest rank's assignments over the mean; consecutive experts are on a rank."""
    return max_over_mean(counts_E.unflatten(0, (EP, -1)).sum(dim=1))


def by_sign(bias_E: torch.Tensor, scores_TE: torch.Tensor) -> torch.Tensor:
    return updated_bias(bias_E[None], counts_of(scores_TE + bias_E)[None], RATE)[0].float()


def histogram_of(choice_TE: torch.Tensor) -> torch.Tensor:
    valid_T = torch.ones(len(choice_TE), dtype=torch.bool)
    places = quantile.margin_places(choice_TE, choice_TE.topk(K).indices, valid_T).flatten()
    return torch.bincount(places, minlength=E * quantile.BINS + 1)[:-1].view(1, E, quantile.BINS)


def by_quantile(bias_E: torch.Tensor, scores_TE: torch.Tensor) -> torch.Tensor:
    return quantile.balanced_bias(bias_E[None], histogram_of(scores_TE + bias_E), K)[0]


def sorted_quantiles(choice_TE: torch.Tensor, cutoff: str) -> torch.Tensor:
    """Exact, of margins to each expert's own cutoff or to one of all experts."""
    best_TK = choice_TE.topk(K + 1).values
    last, next_ = best_TK[:, K - 1 : K], best_TK[:, K:]
    cutoff_TE = {"own": torch.where(choice_TE >= last, next_, last), "next best": next_, "last chosen": last}[cutoff]
    return (choice_TE - cutoff_TE).T.contiguous().kthvalue(round(len(choice_TE) * (1 - K / E)), dim=1).values


def by_sorting(cutoff: str, part: float = 1.0) -> Update:
    def update(bias_E: torch.Tensor, scores_TE: torch.Tensor) -> torch.Tensor:
        moved_E = bias_E - part * sorted_quantiles(scores_TE + bias_E, cutoff)
        return moved_E - moved_E.mean()

    return update


def scores_of(liking: str, *, tokens: int = TOKENS, drift: float = 0.0) -> Iterator[torch.Tensor]:
    """Sigmoid scores [T, E] of one step after another, each of new tokens."""
    random = torch.Generator().manual_seed(0)
    liked_E = LIKINGS[liking](random)
    while True:
        yield (torch.randn(tokens, E, generator=random) + liked_E).sigmoid()
        liked_E = liked_E + drift * torch.randn(E, generator=random)


def loads(update: Update, scores: Iterator[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """The counts [E] of each step, which the update has not yet seen."""
    bias_E, found = torch.zeros(E), []
    for _, scores_TE in zip(range(steps), scores, strict=False):
        found.append(counts_of(scores_TE + bias_E))
        bias_E = update(bias_E, scores_TE)
    return found


def simulated() -> dict[str, Any]:
    updates: dict[str, Update] = {"sign": by_sign, "quantile": by_quantile}
    result: dict[str, Any] = {}
    for liking in LIKINGS:
        for name, update in updates.items():
            found = loads(update, scores_of(liking), MOST_STEPS if name == "sign" else 12)
            of_experts = [max_over_mean(counts) for counts in found]
            below = [step for step, load in enumerate(of_experts) if load <= BALANCED]
            result[f"{liking}, {name}"] = {
                "steps": below[0] if below else None,
                "first": rounded(of_experts[:6]),
                "last": rounded(of_experts[-3:]),
                "first_of_ranks": rounded([of_ranks(counts) for counts in found[:6]]),
            }
            say(f"{liking}, {name}: {result[f'{liking}, {name}']}")
    for name, update in updates.items():
        found = loads(update, scores_of("spread", drift=DRIFT), 120 if name == "quantile" else MOST_STEPS)[-60:]
        result[f"drifting, {name}"] = {"mean_of_last_60": mean_load(found)}
        for tokens in (256, 1024, 4096):
            found = loads(update, scores_of("spread", tokens=tokens), 60 if name == "quantile" else MOST_STEPS)[-40:]
            result[f"{tokens} tokens a step, {name}"] = {"mean_of_last_40": mean_load(found)}
    result["by chance"] = {str(tokens): chance(tokens) for tokens in (256, 1024, 4096, TOKENS)}
    return result


def chance(tokens: int) -> float:
    """Mean max/mean over draws where every expert is chosen alike, which no bias can mend."""
    random = torch.Generator().manual_seed(1)
    return mean_load([counts_of(torch.rand(tokens, E, generator=random)) for _ in range(20)])


def cutoffs() -> dict[str, list[float]]:
    updates = {cutoff: by_sorting(cutoff) for cutoff in ("own", "next best", "last chosen")}
    updates["own, half of the way"] = by_sorting("own", part=0.5)
    return {
        name: rounded([max_over_mean(counts) for counts in loads(update, scores_of("spread"), 8)])
        for name, update in updates.items()
    }


def bins() -> dict[str, dict[str, float]]:
    """Largest error of a quantile, far from balance and near it, and max/mean on the same tokens after three updates."""
    scores_TE = next(scores_of("spread"))
    result = {}
    for side in (16, 32, 64, 128, 256, 512):
        with mock.patch.multiple(quantile, SIDE=side, BINS=2 * side):
            bias_E, errors = torch.zeros(E), []
            for _ in range(3):
                choice_TE = scores_TE + bias_E
                found_E = quantile.margin_quantiles(histogram_of(choice_TE), 1 - K / E)[0]
                errors.append((found_E - sorted_quantiles(choice_TE, "own")).abs().max().item())
                bias_E = by_quantile(bias_E, scores_TE)
            result[str(2 * side)] = {"far": errors[0], "near": errors[2], "max_over_mean": max_over_mean(counts_of(scores_TE + bias_E))}  # fmt: skip
    exact_E = torch.zeros(E)
    for _ in range(3):
        exact_E = by_sorting("own")(exact_E, scores_TE)
    result["sorted"] = {"far": 0.0, "near": 0.0, "max_over_mean": max_over_mean(counts_of(scores_TE + exact_E))}
    return result


def small_shape(width: int = 128) -> ModelShape:
    """The tiny model with the flagship's experts, narrow, and router weights that give its initial logits."""
    tiny = load_model_shape(ROOT / "recipe/configs/models/tiny")
    spread = FLAGSHIP.initializer_range * math.sqrt(FLAGSHIP.hidden_size / width)
    return tiny.model_copy(
        update={"hidden_size": width, "n_routed_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": 32,
                "num_hidden_layers": 3, "initializer_range": spread}
    )  # fmt: skip


def trained(folder: TokenFolder, steps: int, sequences: int, update: str, peak_lr: float = 2e-3) -> dict[str, Any]:
    from recipe.engine.build import build_engine, control_routing
    from recipe.engine.step import run_step
    from recipe.model import RecipeMoeConfig

    shape, routing = small_shape(), Routing(bias_update=update, aux_loss_coef=0.0001)
    ds = ds_config_for(shape, 1, stage=0, ep_size=1, micro_batch=sequences, accumulation=1, bf16=False)
    engine = build_engine(RecipeMoeConfig.from_shape(shape), ds, seed=0, optimizer=Optimizer(), compute=Compute(compile=False))  # fmt: skip
    control = control_routing(engine, routing, seq_length=SEQ_LENGTH, sources=["all", "other"], seed=0)
    engine.train()
    tokens = SEQ_LENGTH * sequences
    schedule = Schedule(
        total_tokens=10 * WARMUP_STEPS * tokens, peak_lr=peak_lr, min_lr=0, warmup_tokens=WARMUP_STEPS * tokens
    )
    capacity = expert_capacity(CAPACITY, tokens, K, E)
    by_rank, by_expert, dropped, losses = [], [], [], []
    for number, batch in enumerate(batches(folder, steps, sequences), 1):
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(schedule, number * tokens)
        loss, sums = run_step(engine, control, Compute(compile=False), [batch], step=number, observing=True, update_bias=True)  # fmt: skip
        assert sums is not None
        counts_LE = sums.counts_LOE.sum(dim=1)
        by_rank.append(max(of_ranks(counts_E) for counts_E in counts_LE))
        by_expert.append(max(max_over_mean(counts_E) for counts_E in counts_LE))
        dropped.append(((counts_LE - capacity).clamp(min=0).sum() / counts_LE.sum()).item())
        losses.append(loss.item())
        say(f"{update}, step {number}: busiest rank {by_rank[-1]:.3f}, busiest expert {by_expert[-1]:.3f}")
    engine.destroy()
    ends = [end for end in (1, 2, 3, 5, 10, 20, 50, 100, 200, 300, 500, 1000) if end <= steps]
    windows = list(zip([0, *ends], ends, strict=False))
    return {
        "steps": [f"{first + 1}-{end}" for first, end in windows],
        "max_of_ranks": [round(max(by_rank[a:b]), 3) for a, b in windows],
        "max_of_experts": [round(max(by_expert[a:b]), 3) for a, b in windows],
        "mean_dropped": [round(statistics.mean(dropped[a:b]), 4) for a, b in windows],
        "last_loss": statistics.mean(losses[-20:]),
    }


def mean_load(found: list[torch.Tensor]) -> float:
    return round(statistics.mean(max_over_mean(counts) for counts in found), 3)


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=Path, help="train on this output folder of tokenize_corpus.py, simulate nothing"
    )
    parser.add_argument("--steps", type=positive_int, default=300, help="of training (default: %(default)s)")
    parser.add_argument(
        "--sequences", type=positive_int, default=32, help="of a step of training (default: %(default)s)"
    )
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {**machine(), "experts": E, "top_k": K, "rate": RATE}
    with redirect_stdout(sys.stderr):
        if args.tokens is None:
            result |= {"tokens_a_step": TOKENS, "cutoffs": cutoffs(), "bins": bins(), "simulated": simulated()}
        else:
            from recipe.engine.session import session

            os.environ.update(place_of_rank(0, 1, free_port()), DS_ACCELERATOR="cpu")
            folder = TokenFolder(args.tokens)
            result |= {"tokens_a_step": SEQ_LENGTH * args.sequences, "steps": args.steps}
            with session():
                for name in ("sign", "quantile"):
                    result[name] = trained(folder, args.steps, args.sequences, name)
                    say(f"{name}: {result[name]}")
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
