"""Shapes for the flagship, by the planned cost of reaching a loss and not of a token: a table of docs/design.md.

A shallow and wide model takes fewer seconds for a token than a deep and narrow one of the same size. Whether a token teaches
as much is what published laws say, each from its own models, all smaller than these. None of the laws has depth as a
variable; what depth may cost before it eats the gain is printed beside what was measured of it. The flagship is the shape with
the lowest geometric mean of the cost over five estimates: the three laws without depth, and the two of a loss with it.

Legend: D tokens, N parameters and A active ones without embedding and head, K experts of a token.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.tables import markdown_table
from recipe.planner.cost import Cost, cost_of
from recipe.planner.plan import Budget, Plan
from recipe.planner.search import shipped
from recipe.planner.search.search import search
from recipe.planner.tables.published_models import MODELS
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import RunFacts

GPU, GPUS, NETWORK, SEQUENCES, EP, SEQ_LENGTH = "a100-80gb", 256, "400g", 2048, 8, 4096  # the design point
Loss = Callable[[ModelShape, float], float]  # after that many tokens, in nats
TOKENS = 1e12  # after which the deep shape has the loss that the others are to reach
FLAGSHIP_MODEL, DEEP_MODEL = "30b-a3b", "30b-a3b-deep"
DEEP = load_model_shape(shipped.MODELS / DEEP_MODEL)


def _shape(layers: int, hidden: int, heads: int, top_k: int, experts: int, width: int) -> ModelShape:
    """About 30B parameters of which 3.5B are active; what is not named is the deep shape's."""
    return DEEP.model_copy(
        update={
            "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": heads,
            "num_experts_per_tok": top_k, "n_routed_experts": experts, "moe_intermediate_size": width,
        }
    )  # fmt: skip


BASELINE, FLAGSHIP = "48 × 2,048, 6 of 96 × 1,024", "24 × 3,072, 6 of 96 × 1,408"
# Heads of 128 are as many as fill the hidden size where they are not named; the deep shape's are twice as many.
SHAPES = {
    BASELINE: DEEP,
    "36 × 2,304, 24 heads, 6 of 96 × 1,280": _shape(36, 2304, 24, 6, 96, 1280),
    "32 × 2,560, 6 of 96 × 1,280": _shape(32, 2560, 20, 6, 96, 1280),
    "32 × 2,560, 24 heads, 6 of 96 × 1,280": _shape(32, 2560, 24, 6, 96, 1280),
    "32 × 2,560, 24 heads, 4 of 64 × 1,920": _shape(32, 2560, 24, 4, 64, 1920),
    "28 × 2,688, 24 heads, 6 of 96 × 1,408": _shape(28, 2688, 24, 6, 96, 1408),
    FLAGSHIP: load_model_shape(shipped.MODELS / FLAGSHIP_MODEL),
    "24 × 3,072, 3 of 48 × 2,816": _shape(24, 3072, 24, 3, 48, 2816),
    "24 × 2,880, 24 heads, 3 of 48 × 2,880": _shape(24, 2880, 24, 3, 48, 2880),  # gpt-oss-20b's layers and widths
}


PRECEDENTS = (
    "qwen3-30b-a3b", "glm-4.5-air", "deepseek-v2-lite", "moonlight-16b", "gpt-oss-120b", "gpt-oss-20b", "mixtral-8x7b", "olmoe-1b-7b",
)  # fmt: skip


@cache
def planned(name: str) -> Plan:
    """The fastest plan of a shape at the design point, with the expert-parallel size that is shipped."""
    if name == FLAGSHIP:
        return shipped.fastest(FLAGSHIP_MODEL, GPU, GPUS, NETWORK, SEQUENCES, EP).plan  # other tables search for it too
    cluster, run = cluster_of(GPU, GPUS, NETWORK), RunFacts(SEQ_LENGTH)
    return search(SHAPES[name], cluster, run, Budget(TOKENS), SEQUENCES, stages=(3,), ep_sizes=(EP,))[0].plan


def parameters(shape: ModelShape) -> tuple[int, int]:
    """N and A."""
    outside = ("embedding", "lm_head")
    total, active = (
        sum(number for term, number in terms.items() if term not in outside)
        for terms in (shape.parameters(), shape.active_parameters())
    )
    return total, active


def granularity(shape: ModelShape) -> float:
    """The width of a dense MLP, 4 times the hidden size, over an expert's."""
    return 4 * shape.hidden_size / shape.moe_intermediate_size


def aspect_ratio(shape: ModelShape) -> float:
    return shape.hidden_size / shape.num_hidden_layers


def flops(shape: ModelShape) -> float:
    """Of a token, forward and backward, without the head."""
    return shape.training_flops_per_token(SEQ_LENGTH) - 6.0 * shape.parameters()["lm_head"]


def attention_share(shape: ModelShape) -> float:
    """Of these FLOPs: projections, and the two matmuls over the context."""
    over_context = SEQ_LENGTH / 2 * 2 * 2 * 3 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    return (6.0 * shape.parameters()["attention"] + over_context) / flops(shape)


def fine_grained(total: float, finer: float, tokens: float) -> float:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta, with G the granularity (arXiv 2402.07871, equation 9 and table 1)."""
    return 0.47 + (2.1 / finer**0.58 + 18.1) / total**0.115 + 30.8 / tokens**0.147


def fine_grained_loss(shape: ModelShape, tokens: float) -> float:
    return fine_grained(parameters(shape)[0], granularity(shape), tokens)


def five_factors(total: float, active: float, experts: float, shared: float, tokens: float) -> float:
    """L = (e G + f / G + m S^2 + n S) (1 / N^alpha + k / A^alpha + h A / N) + a / N^alpha + b / D^beta + c / A^alpha + epsilon.

    With G active experts, of which S is the shared ones' part (arXiv 2509.23678).
    """
    of_experts = 0.1577 * experts + 7.2446 / experts + 5.1395 * shared**2 - 3.2363 * shared
    of_size = 1 / total**0.2383 + 0.0013 / active**0.2383 + 0.0450 * active / total
    return of_experts * of_size + 38.051 / total**0.2383 + 27129.05 / tokens**0.4694 + 31.096 / active**0.2383 + 1.8182


def five_factor_loss(shape: ModelShape, tokens: float) -> float:
    """The shared experts are among the active ones here."""
    experts = shape.num_experts_per_tok + shape.n_shared_experts
    return five_factors(*parameters(shape), experts, shape.n_shared_experts / experts, tokens)


def efficiency_leverage(active_share: float, finer: float, compute: float) -> float:
    """FLOPs that a dense model needs for the same loss, over an MoE model's (arXiv 2507.17702, equation 13 and table 2).

    Args:
        active_share: active experts over all, shared ones in both.
        finer: twice the hidden size over an expert's width, the paper's granularity.
        compute: FLOPs of the training.
    """
    # Base 10 for the compute and e for the granularity: so the law gives the paper's example, 7 at 3.1%, 12 and 1e22.
    exponent = 1.23 - 7.61e-2 * math.log10(compute) + 1.67e-2 * math.log(finer) ** 2 - 1.17e-1 * math.log(finer)
    saturating = 1 / (1 / (active_share + 1 / (1 / 1.63e-2 - 1 / 5.28e16)) + 1 / 5.28e16)
    return saturating**exponent


def leverage_of(shape: ModelShape, compute: float) -> float:
    shared = shape.n_shared_experts
    active_share = (shape.num_experts_per_tok + shared) / (shape.n_routed_experts + shared)
    return efficiency_leverage(active_share, granularity(shape) / 2, compute)


def tokens_at(loss: Loss, shape: ModelShape, wanted: float) -> float:
    """Tokens after which a shape has that loss; infinite where it never has it."""
    low, high = 1e9, 1e16
    if loss(shape, high) > wanted:
        return math.inf
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if loss(shape, middle) > wanted else (low, middle)
    return high


def by_loss(loss: Loss) -> Callable[[ModelShape], float]:
    """Tokens until the deep shape's loss after `TOKENS`, by a law of the loss."""
    return lambda shape: tokens_at(loss, shape, loss(DEEP, TOKENS))


def by_leverage(shape: ModelShape) -> float:
    """Tokens of equal loss: their FLOPs are equal but for the leverage."""
    compute = flops(DEEP) * TOKENS
    return compute * leverage_of(DEEP, compute) / leverage_of(shape, compute) / flops(shape)


@dataclass(frozen=True)
class Law:
    """A published law, and what it was fitted on."""

    name: str
    arxiv: str
    tokens: Callable[[ModelShape], float]  # until the loss of the deep shape after `TOKENS`
    fitted_on: str
    not_in_it: str
    loss: Loss | None = None


LAWS = (
    Law(
        "fine-grained", "2402.07871", by_loss(fine_grained_loss),
        "over 100 models, 129M to 3.7B parameters, 16B to 130B tokens, 64 times as many expert parameters as active ones, granularity 1 to 16, "
        "expert-choice routing",
        "active parameters, attention, depth", fine_grained_loss,
    ),
    Law(
        "five factors", "2509.23678", by_loss(five_factor_loss), "446 runs, up to 9B parameters and 100B tokens", "attention, depth", five_factor_loss,
    ),
    Law(
        "leverage", "2507.17702", by_leverage, "over 300 models, up to 28B parameters, up to 3e20 FLOPs and one check at 1e22",
        "depth; its FLOPs include attention's, of which it finds 20 to 50% about equally good",
    ),
)  # fmt: skip
# Share of the loss above the lowest of equal parameters, by aspect ratio: approximate points of the middle of figure 5 of arXiv
# 2001.08361, dense models of 50M and of 1.5B parameters; the latter's last point is (6 layers, 4,288 wide), "within 3%".
DEPTH_50M = ((32, 0.004), (50, 0.0005), (90, 0.001), (250, 0.006), (700, 0.046))
DEPTH_1B = ((27, 0.0005), (250, 0.006), (700, 0.028))


def depth_cost(shape: ModelShape, points: Sequence[tuple[float, float]] = DEPTH_1B) -> float:
    """Share of the loss that an aspect ratio costs against the deep shape's: straight lines between the points, in the logarithm.

    Where points are few, lines lie above a curve that bends upwards.
    """

    def above_lowest(aspect: float) -> float:
        pairs = itertools.pairwise(points)
        (low, first), (high, last) = next((pair for pair in pairs if aspect <= pair[1][0]), points[-2:])
        return first + (last - first) * math.log(aspect / low) / math.log(high / low)

    return above_lowest(aspect_ratio(shape)) - above_lowest(aspect_ratio(DEEP))


def with_depth(loss: Loss) -> Loss:
    """A law's loss and what depth adds to it."""
    return lambda shape, tokens: loss(shape, tokens) * (1 + depth_cost(shape))


def room_for_depth(loss: Loss, shape: ModelShape, step_ratio: float) -> float:
    """Share of the deep shape's loss by which a shape is below it after equal time: what depth may cost and be no gain.

    Args:
        step_ratio: the shape's planned step over the deep one's.
    """
    wanted = loss(DEEP, TOKENS)
    return (wanted - loss(shape, TOKENS / step_ratio)) / wanted


def shapes_table() -> str:
    """Candidates for the flagship: counts, planned step, and what their tokens are worth by each law."""
    return "\n\n".join((_counts(), _costs(), _depths(), criterion(), sources(), _precedents()))


def _counts() -> str:
    head = [
        "shape", "parameters, active", "GFLOP a token", "of it attention", "granularity", "layers, aspect ratio", "step, s",
        "MFU", "days for 1T", "kUSD for 1T",
    ]  # fmt: skip
    rows = []
    for name, shape in SHAPES.items():
        plan = planned(name)
        cost = plan.cost(EXPECTED)
        total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
        rows.append(
            [
                told(name), f"{total / 1e9:.2f}B, {active / 1e9:.2f}B", f"{shape.training_flops_per_token(SEQ_LENGTH) / 1e9:.1f}",
                f"{attention_share(shape):.0%}", f"{granularity(shape):.1f}",
                f"{shape.num_hidden_layers}, {aspect_ratio(shape):.0f}", f"{plan.expected.step_s:.2f}",
                f"{plan.mfu(EXPECTED):.1%}", f"{cost.days:.1f}", f"{cost.usd / 1000:,.0f}",
            ]
        )  # fmt: skip
    return markdown_table(head, rows)


def cost_to_loss(name: str, tokens: float) -> Cost:
    """Of that many tokens at a shape's planned step."""
    plan = planned(name)
    return cost_of(plan.work, tokens, plan.expected.step_s, plan.reliability.goodput, plan.usd_per_gpu_hour)


def estimates(name: str) -> list[float]:
    """Money until the deep shape's loss after `TOKENS`: by each law, then by those of a loss with what depth costs."""
    laws = [*(law.tokens for law in LAWS), *(by_loss(with_depth(law.loss)) for law in LAWS if law.loss is not None)]
    return [cost_to_loss(name, tokens(SHAPES[name])).usd for tokens in laws]


def mean_cost(name: str) -> float:
    """Geometric mean of the estimates over the deep shape's cost."""
    return statistics.geometric_mean(estimates(name)) / planned(BASELINE).cost(EXPECTED).usd


def told(name: str) -> str:
    """A shape's name in the tables."""
    shipped_as = {BASELINE: DEEP_MODEL, FLAGSHIP: f"**{FLAGSHIP_MODEL}, the flagship**"}
    return f"{name} ({shipped_as[name]})" if name in shipped_as else name


def criterion() -> str:
    return (
        f'"Mean" is the criterion: the geometric mean of the cost over the five estimates (three laws without depth, two with it), '
        f"over that of {DEEP_MODEL}. The flagship has the lowest one of the shapes within 3% of its parameters."
    )


def _costs() -> str:
    """Tokens, GPU-hours and money until the deep shape's loss, by the laws as they are, without depth."""
    head = [
        f"until {DEEP_MODEL}'s loss after 1T",
        *(f"{law.name}: tokens, GPU-hours, kUSD" for law in LAWS),
        "against it",
    ]
    rows = []
    for name, shape in SHAPES.items():
        tokens = [law.tokens(shape) for law in LAWS]
        costs = [cost_to_loss(name, number) for number in tokens]
        each = [
            f"{number / 1e12:.2f}T, {cost.gpu_hours:,.0f}, {cost.usd / 1000:,.0f}"
            for number, cost in zip(tokens, costs, strict=True)
        ]
        rows.append([told(name), *each, _against([cost.usd for cost in costs])])
    return markdown_table(head, rows)


def _depths() -> str:
    """The same with what depth costs in the larger models; and what it may cost before the gain is gone."""
    laws = [(law.name, law.loss) for law in LAWS if law.loss is not None]
    head = ["with depth", "its cost, by 1.5B, by 50M", *(f"{name}: room" for name, _ in laws), *(f"{name}: kUSD" for name, _ in laws), "against it", "mean"]  # fmt: skip
    deep_s, rows = planned(BASELINE).expected.step_s, []
    for name, shape in SHAPES.items():
        ratio = planned(name).expected.step_s / deep_s
        usd = estimates(name)[len(LAWS) :]
        rows.append(
            [
                told(name), ", ".join(f"{depth_cost(shape, points) + 0.0:+.2%}" for points in (DEPTH_1B, DEPTH_50M)),
                *(f"{room_for_depth(loss, shape, ratio):.2%}" for _, loss in laws),
                *(f"{money / 1000:,.0f}" for money in usd), _against(usd), f"{mean_cost(name):.3f}",
            ]
        )  # fmt: skip
    return markdown_table(head, rows)


def _precedents() -> str:
    """What others have trained, by their configs."""
    rows = []
    for name in PRECEDENTS:
        model, source = MODELS[name]
        experts = f"{model.top_k} of {model.experts} × {model.expert_intermediate:,}"
        rows.append(
            [
                source.split(" ")[0], f"{model.layers} × {model.hidden:,}", f"{model.hidden / model.layers:.0f}", experts,
                f"{4 * model.hidden / model.expert_intermediate:.1f}",
            ]
        )  # fmt: skip
    return markdown_table(["public model", "shape", "aspect ratio", "experts", "granularity"], rows)


def _against(usd: Sequence[float]) -> str:
    """The lowest and the highest cost against the deep shape's for 1T tokens."""
    deep = planned(BASELINE).cost(EXPECTED).usd
    low, high = (f"{round(money / deep - 1, 2) + 0.0:+.0%}" for money in (min(usd), max(usd)))
    return low if low == high else f"{low} to {high}"


def sources() -> str:
    lines = [
        f"- {law.name} (arXiv {law.arxiv}): fitted on {law.fitted_on}. Not in it: {law.not_in_it}." for law in LAWS
    ]
    depth = (
        "- depth (arXiv 2001.08361, figure 5): dense models of 50M and 1.5B parameters, aspect ratios 4 to 700; a share of the "
        "loss, of which the larger models' is used. Room: what depth may cost before the gain is gone."
    )
    return "\n".join([*lines, depth, "- All are used beyond what they were fitted on: 30B parameters, 1T tokens."])
