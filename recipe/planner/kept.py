"""Which results of a recomputed decoder layer are kept for its backward pass instead of being computed again, or whole layers.

Named once for the model and the engine, which keep them, and the planner, which counts their bytes and seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.ds_config import DsConfig
from recipe.base.hardware import GIB
from recipe.base.model_shape import ModelShape

# The most seconds of a step saved per byte first, nearly: no one order is the best for every model, expert parallelism and
# budget, but with this one a shipped step is planned within half a percent of what others give (test_kept.py). So the
# engine needs no model of kernels and links to know what it keeps.
KEEPABLE = (
    "attention",  # output of the attention kernel, with its log-sum-exp
    "attention_projection",  # output of the projection after it, from which the residual is one sum away
    "gate_up",  # the experts' gate and up projections; those of the MLP in a dense layer
    "query_key_value",  # outputs of the three projections
    "shared_gate_up",  # the shared experts' gate and up projections
    "rows",  # tokens' rows as they came to their experts' rank
)
# Last, where all of these are kept in all layers: of a layer all that autograd saves, so that it is not recomputed.
EVERYTHING = "everything"
# Assignments to a rank's experts over the mean for which a budget has room. A margin for early training, whose routing is less
# balanced than later: what is kept is decided once, before a token is routed.
FILL_IMBALANCE = 1.25
ROW_ALIGNMENT = 8  # rows to which each expert's are padded, as in recipe/model/routing/dispatch.py


@dataclass(frozen=True)
class Kept:
    """In how many decoder layers, counted from the first, each result is kept."""

    layers: tuple[tuple[str, int], ...] = ()  # (name of KEEPABLE or EVERYTHING, layers), at most one of each name

    def count(self, name: str) -> int:
        return dict(self.layers).get(name, 0)

    def of_layer(self, number: int) -> frozenset[str]:
        """Names of what the layer with this number keeps."""
        return frozenset(name for name, layers in self.layers if number < layers)

    @property
    def whole(self) -> int:
        """Layers that are not recomputed."""
        return self.count(EVERYTHING)

    def moe_layers(self, name: str, shape: ModelShape) -> int:
        """How many of the MoE layers keep it."""
        return max(0, self.count(name) - shape.first_k_dense_replace)

    def __str__(self) -> str:
        return ", ".join(f"{name} of {n} layer{'s' * (n > 1)}" for name, n in self.layers) or "nothing"


NOTHING = Kept()


@dataclass(frozen=True)
class Rows:
    """Tokens of a rank's micro-batch, and rows of one MoE layer on that rank."""

    tokens: int
    arrived: float  # that dispatch brings
    computed: float  # that pass through the rank's experts, padding included


def rows_of(shape: ModelShape, *, tokens: int, ep_size: int, imbalance: float = 1.0, parts: int = 1) -> Rows:
    """How many rows a rank has where its experts are assigned `imbalance` times the mean.

    A rank that has all experts has the rows of its own tokens, whatever the balance, and they are padded as they are made.

    Args:
        parts: in which the tokens are exchanged; each is padded.
    """
    assigned = tokens * shape.num_experts_per_tok
    padding = shape.n_routed_experts // ep_size * ROW_ALIGNMENT
    if ep_size == 1:
        return Rows(tokens, assigned + padding, assigned + padding)
    arrived = round(imbalance * assigned)
    return Rows(tokens, arrived, arrived + parts * padding)


def kept_bytes(shape: ModelShape, name: str, rows: Rows, *, moe: bool, element: int, compiled: bool = False) -> float:
    """Bytes that one layer holds where it keeps `name`, which is of KEEPABLE; of EVERYTHING those beyond all these.

    Args:
        moe: whether the layer's MLP is routed.
        element: bytes of an activation.
        compiled: whether its functions are, on which EVERYTHING alone depends.
    """
    if name == EVERYTHING:
        # In the place of the layer's input and of what is kept; the routing plan is held in any case.
        named = sum(kept_bytes(shape, other, rows, moe=moe, element=element) for other in KEEPABLE)
        saved = saved_bytes(shape, rows, moe=moe, element=element, compiled=compiled)
        return sum(saved.values()) - rows.tokens * element * shape.hidden_size - named
    D, F = shape.hidden_size, shape.moe_intermediate_size
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sizes: dict[str, float] = {
        "attention": rows.tokens * (element * query + 4 * shape.num_attention_heads),
        "attention_projection": rows.tokens * element * D,
        "query_key_value": rows.tokens * element * (query + 2 * key),
    }
    if moe:
        sizes["gate_up"] = rows.computed * 2 * element * F
        sizes["shared_gate_up"] = rows.tokens * 2 * element * F * shape.n_shared_experts
        sizes["rows"] = rows.arrived * (element * D + 4)  # and their routing weights in fp32
    else:
        sizes["gate_up"] = rows.tokens * 2 * element * shape.intermediate_size
    return sizes.get(name, 0.0)


def saved_bytes(shape: ModelShape, rows: Rows, *, moe: bool, element: int, compiled: bool) -> dict[str, float]:
    """Bytes that autograd keeps of one layer that is not recomputed, by kind, without the routing plan."""
    a, tokens = element, rows.tokens
    # Eager, a norm keeps its input in fp32 and, cast back, what it scaled; an activation its result beside its inputs.
    norm_bytes = a if compiled else 4 + a if a == 2 else 2 * a
    activated = 3 if compiled else 4
    D, F = shape.hidden_size, shape.moe_intermediate_size
    Q, K = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    heads = shape.num_attention_heads + shape.num_key_value_heads
    norms = 2 * (norm_bytes * D + 4)
    if shape.use_qk_norm:
        norms += norm_bytes * (Q + K) + 4 * heads
    saved: dict[str, float] = {
        "norms": tokens * norms,
        # the projections' input, rotated queries and keys, values, log-sum-exp, the output (eager: twice)
        "attention": tokens * (a * (D + Q + 2 * K + (1 if compiled else 2) * Q) + 4 * shape.num_attention_heads),
        "MLP input": tokens * a * D,
    }
    if not moe:
        return {**saved, "dense MLP": tokens * activated * a * shape.intermediate_size}
    return {
        **saved,
        "router": tokens * (2 * 4 * shape.n_routed_experts + shape.num_experts_per_tok * 4 + 24),
        # a row, its gate and up projections, its weight, and the product of these, which is the next matmul's input
        "routed experts": rows.computed * (a * D + 3 * a * F + 4),
        "shared experts": tokens * activated * a * F * shape.n_shared_experts,
    }


def routing_plan_bytes(shape: ModelShape, rows: Rows, *, ep_size: int) -> float:
    """Bytes of where one MoE layer's rows go, which are held from the first pass in every mode but `reentrant`.

    8 an assignment for its expert's number; 4 for where its row stands, 4 for which assignment a row is; and, where rows are
    exchanged, the same two for those that arrive and their order by expert.
    """
    assigned = rows.tokens * shape.num_experts_per_tok
    if ep_size == 1:
        return 8 * assigned + 4 * (assigned + rows.computed)
    return 8 * assigned + 4 * (2 * assigned + rows.arrived + rows.computed)


def kept_within(shape: ModelShape, *, gib: float, tokens: int, element: int, ep_size: int, compiled: bool) -> Kept:
    """What fits a budget of `gib`, filled in the order of KEEPABLE, each from the first layer on; then whole layers.

    Args:
        shape: of the model.
        gib: of a GPU, the ds_config's `recipe.kept_gib`.
        tokens: of a rank's micro-batch.
        element: bytes of an activation.
        ep_size: ranks that the experts are spread over.
        compiled: whether the layers' functions are.
    """
    rows = rows_of(shape, tokens=tokens, ep_size=ep_size, imbalance=FILL_IMBALANCE)
    left, layers, all_fit = gib * GIB, {}, True
    for name in (*KEEPABLE, EVERYTHING):
        if name == EVERYTHING and not all_fit:
            break
        of_kind = [kept_bytes(shape, name, rows, moe=m, element=element, compiled=compiled) for m in (False, True)]
        for number in range(shape.num_hidden_layers):
            size = of_kind[number >= shape.first_k_dense_replace]
            if size > left:
                all_fit = False
                break
            if size:
                left -= size
                layers[name] = number + 1
    return Kept(tuple(layers.items()))


def kept_of(shape: ModelShape, ds: DsConfig, *, recompute: str, seq_length: int, compiled: bool) -> Kept:
    """What a run keeps: with `compute.recompute: selective` what fits the ds_config's budget."""
    if recompute != "selective":
        return NOTHING
    return kept_within(
        shape, gib=ds.recipe.kept_gib, tokens=ds.train_micro_batch_size_per_gpu * seq_length,
        element=2 if ds.bf16_enabled else 4, ep_size=ds.expert_parallel.autoep_size, compiled=compiled,
    )  # fmt: skip
