"""Router, limits, losses of balance, and rows to experts and back on a GPU: exact where they choose and count, else within bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recipe.engine.moe.experts import RecipeExperts
from recipe.model.modeling import MoeBlock
from recipe.model.routing.balance import load_balancing_loss, router_z_terms, updated_bias
from recipe.model.routing.capacity import apply_capacity
from recipe.model.routing.dispatch import (
    combine,
    dispatch,
    grouped_positions,
    received_positions,
    sorted_positions,
    weighted_swiglu,
)
from recipe.model.routing.router import jitter, preferences, router_logits, score_shares, scores_and_choice, weights_of
from tests.gpu.numbers import (
    FP32,
    HALF_BIT,
    after_roundings,
    compiling,
    deterministic,
    drawn,
    product_bound,
    relative_error,
    share_of_bound,
)
from tests.gpu.test_model import config_of
from tests.recipe.model.routing.test_capacity import wishes
from tests.recipe.model.routing.test_router import plain_choice

TIE = 1e-6  # scores nearer than this may change places: fp32 sigmoids of two libraries differ by 1e-7
DROPPED = 7  # every seventh assignment, where some are


class Sizes:
    """Of a GPU: rows per expert are no multiple of 8, and two experts have none."""

    def __init__(self, small: bool):
        self.T, self.D, self.E, self.K = (40, 64, 8, 3) if small else (2045, 512, 64, 6)

    def routed(self, dropped: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts [T, K], none of them the first or the last, and their counts, as AutoEP counts: int32."""
        order = drawn(self.T, self.E - 2).argsort(dim=1)
        experts_TK = order[:, : self.K] + 1
        if dropped:
            experts_TK.view(-1)[::DROPPED] = self.E
        counts_E = torch.bincount(experts_TK.flatten(), minlength=self.E + 1)[: self.E].to(torch.int32)
        assert counts_E[0] == counts_E[-1] == 0
        assert (counts_E % 8 != 0).any()
        return experts_TK, counts_E


@pytest.fixture
def sizes(small) -> Sizes:
    return Sizes(small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_router_logits_and_gradients_are_exact_to_fp32(dtype, device, sizes, measured):
    """Router logits and their gradients, also of bf16 inputs, are exact up to fp32 sums.

    bf16 results are rounded once.
    """
    x_TD, weight_ED = drawn(sizes.T, sizes.D, dtype=dtype), drawn(sizes.E, sizes.D, seed=1, dtype=dtype)
    upstream_TE = drawn(sizes.T, sizes.E, seed=2)
    x, weight = (t.to(device).requires_grad_() for t in (x_TD, weight_ED))
    logits = router_logits(x, weight)
    assert logits.dtype == torch.float32
    grad_x, grad_weight = torch.autograd.grad(logits, (x, weight), upstream_TE.to(device))
    assert grad_x.dtype == grad_weight.dtype == dtype
    x64, weight64, upstream64 = x_TD.double(), weight_ED.double(), upstream_TE.double()
    shares = {"logits": share_of_bound(logits, x64 @ weight64.T, product_bound(x_TD, weight_ED.T))}
    # The fp32 gradient goes in as two bf16 numbers, 2**-16; the result is rounded.
    split, rounded = (2.0**-16, HALF_BIT) if dtype == torch.bfloat16 else (0.0, 0.0)
    for name, result, a, b in (("x", grad_x, upstream64, weight64), ("weight", grad_weight, upstream64.T, x64)):
        bound = product_bound(a, b) * (1 + rounded) + split * (a.abs() @ b.abs()) + 1.01 * rounded * (a @ b).abs()
        shares[f"gradient of {name}"] = share_of_bound(result, a @ b, bound)
    measured.update({f"share of the bound: {name}": share for name, share in shares.items()})
    measured["relative error of logits"] = relative_error(logits, x64 @ weight64.T)
    assert measured["relative error of logits"] <= FP32  # which TF32 is beyond
    assert max(shares.values()) <= 1


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2)])
def test_the_same_experts_are_chosen(scoring_func, n_group, topk_group, device, sizes, measured):
    """Every token chooses the experts that a loop over tokens chooses; weights and losses are those of CPU.

    But for ties within 1e-6; weights, losses and their gradients to 5e-5.
    """
    logits_TE, bias_E = drawn(sizes.T, sizes.E), drawn(sizes.E, seed=1, scale=0.1)
    logits, bias = logits_TE.to(device).requires_grad_(), bias_E.to(device)
    scores, choice, experts = scores_and_choice(logits, bias, scoring_func, sizes.K, n_group, topk_group)
    assert not choice.requires_grad

    exact_TE = logits_TE.double().sigmoid() if scoring_func == "sigmoid" else logits_TE.double().softmax(dim=-1)
    clear_T = _margins(exact_TE + bias_E.double(), sizes.K, n_group, topk_group) > TIE
    biases = bias_E.tolist()
    by_hand = [plain_choice(row, biases, sizes.K, n_group, topk_group) for row in exact_TE.tolist()]
    other = [t for t, row in enumerate(experts.tolist()) if clear_T[t] and set(row) != by_hand[t]]
    measured["tokens with a tie"] = int((~clear_T).sum())
    assert other == []
    assert clear_T.double().mean() > 0.99

    results = []
    for given, experts_TK in ((logits, experts), (logits_TE.clone().requires_grad_(), experts.cpu())):
        scores = scores_and_choice(given, None, scoring_func, sizes.K, 1, 1)[0]
        weights = weights_of(scores, experts_TK, norm_topk_prob=True, routed_scaling_factor=2.5)
        valid_T = (torch.arange(sizes.T, device=given.device) % 5 != 0).float()
        balance = load_balancing_loss(score_shares(scores), experts_TK, valid_T, sizes.T // 5)
        loss = (weights * drawn(sizes.T, sizes.K, seed=3).to(given.device)).sum() + 10 * balance
        loss = loss + (router_z_terms(given) * valid_T).mean()
        results.append((weights, balance, *torch.autograd.grad(loss, given)))
    errors = [relative_error(ours, expected) for ours, expected in zip(*results, strict=True)]
    measured["worst relative error"] = max(errors)
    assert max(errors) <= FP32


def _margins(choice_TE: torch.Tensor, top_k: int, n_group: int, topk_group: int) -> torch.Tensor:
    """How far each token's choice is from another one: of experts, and of groups of them."""
    allowed = preferences(choice_TE, None, n_group, topk_group)
    best = allowed.sort(dim=1, descending=True).values
    margin_T = best[:, top_k - 1] - best[:, top_k]
    if n_group > 1:
        groups = choice_TE.unflatten(1, (n_group, -1)).topk(2, dim=-1).values.sum(dim=-1).sort(dim=1).values
        margin_T = torch.minimum(margin_T, groups[:, -topk_group] - groups[:, -topk_group - 1])
    return margin_T


@pytest.mark.parametrize("dropped", [False, True])
def test_positions_of_rows_are_the_same(dropped, device, sizes, measured):
    """Positions, assignments and sizes of the experts' groups are exactly those of CPU.

    With experts without rows, and with dropped assignments.
    """
    experts_TK, counts_E = sizes.routed(dropped)
    for number, expected in enumerate(grouped_positions(experts_TK, counts_E)):
        assert torch.equal(grouped_positions(experts_TK.to(device), counts_E.to(device))[number].cpu(), expected)
    rows = int(counts_E.sum())
    for number, expected in enumerate(sorted_positions(experts_TK, sizes.E)):
        assert torch.equal(sorted_positions(experts_TK.to(device), sizes.E)[number].cpu(), expected)
    counts_SE = counts_E.view(2, -1)  # as if they came from two ranks
    for number, expected in enumerate(received_positions(counts_SE, rows)):
        assert torch.equal(received_positions(counts_SE.to(device), rows)[number].cpu(), expected)
    measured["rows"] = rows


@pytest.mark.parametrize("kind", ["random", "tied", "skewed", "grouped"])
def test_limits_drop_and_reroute_the_same(kind, device, small, measured):
    """Assignments that limits drop and reroute are exactly those of CPU.

    Whichever gives way, with tied and with forbidden experts.
    """
    wish_TE = wishes(kind, 0) if small else wishes(kind, 0).repeat(40, 1)  # repeated tokens are ties over tokens
    experts_TK = wish_TE.topk(3).indices
    valid_T = drawn(len(wish_TE)) > -1
    capacity = int(0.9 * experts_TK.numel() / wish_TE.shape[1])
    moved = 0
    for latest_first in (False, True):
        for reroute in (False, True):
            how = {"latest_first": latest_first, "reroute": reroute}
            expected = apply_capacity(wish_TE, experts_TK, valid_T, capacity, **how)
            result = apply_capacity(*(t.to(device) for t in (wish_TE, experts_TK, valid_T)), capacity, **how)
            assert torch.equal(result[1].cpu(), expected[1])
            assert torch.equal(result[0].cpu()[expected[1]], expected[0][expected[1]])
            moved += int((expected[0] != experts_TK)[expected[1]].sum() + (~expected[1][valid_T]).sum())
    measured["assignments dropped or rerouted"] = moved
    assert moved > 0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_rows_to_experts_and_back_are_exact_to_one_rounding(compiled, device, sizes, small, measured):
    """Rows of bf16 reach the experts bit for bit; what comes back, and all gradients, are sums rounded once."""
    experts_TK, counts_E = sizes.routed(dropped=True)
    position_A, assignment_N, _ = grouped_positions(experts_TK, counts_E)
    x_TD, weights_TK = drawn(sizes.T, sizes.D, dtype=torch.bfloat16), drawn(sizes.T, sizes.K, seed=1).abs()
    rows_ND = drawn(len(assignment_N), sizes.D, seed=2, dtype=torch.bfloat16)
    upstream_ND, upstream_TD = (
        drawn(*rows_ND.shape, seed=3, dtype=torch.bfloat16),
        drawn(*x_TD.shape, seed=4, dtype=torch.bfloat16),
    )
    x, weights, rows = (t.to(device).requires_grad_() for t in (x_TD, weights_TK, rows_ND))
    where = position_A.to(device), assignment_N.to(device)
    with compiling(compiled, small):
        sent, sent_weights = dispatch(x, *where, sizes.K), dispatch(weights.view(-1, 1), *where, 1)
        (grad_x,) = torch.autograd.grad(sent, x, upstream_ND.to(device))
        summed = combine(rows, *where, sizes.K)
        # A gradient that is laid out otherwise, as one that comes through a transposition is.
        (grad_rows,) = torch.autograd.grad(summed, rows, upstream_TD.T.contiguous().to(device).T)

    token_N, used_N = assignment_N.clamp(min=0) // sizes.K, assignment_N >= 0
    place_TK, kept_TK1 = position_A.view(sizes.T, sizes.K).clamp(min=0), (position_A >= 0).view(sizes.T, sizes.K, 1)
    picked_TKD = rows_ND.double()[place_TK] * kept_TK1
    back_TKD = upstream_ND.double()[place_TK] * kept_TK1
    assert torch.equal(sent.cpu(), x_TD[token_N] * used_N.unsqueeze(1))
    assert torch.equal(sent_weights.cpu().squeeze(1), weights_TK.flatten()[assignment_N.clamp(min=0)] * used_N)
    assert torch.equal(grad_rows.cpu(), upstream_TD[token_N] * used_N.unsqueeze(1))
    shares = {}
    for name, result, terms in (("sums", summed, picked_TKD), ("gradient of tokens", grad_x, back_TKD)):
        bound = 1.01 * HALF_BIT * terms.sum(1).abs() + sizes.K * 2.0**-23 * terms.abs().sum(1)
        shares[name] = share_of_bound(result, terms.sum(1), bound)
    measured.update({f"share of the bound: {name}": share for name, share in shares.items()})
    assert max(shares.values()) <= 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_weighted_swiglu_is_exact_to_one_rounding(compiled, device, sizes, small, measured):
    """SwiGLU of bf16 rows times their fp32 weights, and its gradients, are rounded once; a weight's gradient is an fp32 sum."""
    gate, up, grad = (drawn(sizes.T, sizes.D, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    weight_N = drawn(sizes.T, seed=3).abs()
    exact = [t.double().requires_grad_() for t in (gate, up, weight_N)]
    expected = torch.nn.functional.silu(exact[0]) * exact[1] * exact[2].unsqueeze(1)
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    given = [t.to(device).requires_grad_() for t in (gate, up, weight_N)]
    with compiling(compiled, small):
        out = weighted_swiglu(*given)
        results = [out, *torch.autograd.grad(out, given, grad.to(device))]
    terms = (grad.double() * expected.detach() / exact[2].detach().unsqueeze(1)).abs().sum(1)
    for name, result, right in zip(("output", "gradient of gate", "gradient of up"), results, wanted, strict=False):
        # Where 1 + gate * (1 - sigmoid) is next to nothing, fp32 rounds the sum.
        bound = 1.01 * HALF_BIT * right.abs() + FP32 * right.abs().mean()
        measured[f"share of the bound: {name}"] = share_of_bound(result, right, bound)
    measured["share of the bound: gradient of weights"] = share_of_bound(results[3], wanted[3], FP32 * terms)
    assert max(share for name, share in measured.items()) <= 1


def test_a_planted_fault_of_the_movement_is_beyond_its_bound(device, sizes, measured):
    """Weights that are rounded to bf16 before SwiGLU are beyond the bound of its output."""
    gate, up = (drawn(sizes.T, sizes.D, seed=seed, dtype=torch.bfloat16) for seed in range(2))
    weight_N = drawn(sizes.T, seed=3).abs()
    right = torch.nn.functional.silu(gate.double()) * up.double() * weight_N.double().unsqueeze(1)
    bound = 1.01 * HALF_BIT * right.abs() + FP32 * right.abs().mean()
    out = weighted_swiglu(*(t.to(device) for t in (gate, up, weight_N.bfloat16().float())))
    measured["share of the bound"] = share_of_bound(out, right, bound)
    assert measured["share of the bound"] > 1.5


# Of a layer of experts: two matmuls, each counted twice, silu, product, weights, sum, and those of gradients.
ROUNDINGS = 12


@pytest.mark.parametrize("how", ["separate", "fused"])
def test_grouped_gemm_is_the_loop_over_experts(how, device, small, measured):
    """Experts by grouped GEMM in bf16 return what a loop over experts in fp32 on CPU does.

    With rows that are no multiple of 8, and experts without any; output to 0.7%, gradients to 1.2%.
    """
    config = config_of(small)
    block = MoeBlock(config)
    D, F, E = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    with torch.no_grad():
        for seed, weight in enumerate((block.experts.gate_up_proj, block.experts.down_proj)):
            weight.copy_(drawn(*weight.shape, seed=seed, scale=weight.shape[-1] ** -0.5).bfloat16())
    tokens, top_k = (61, 2) if small else (1021, 4)
    experts_TK = drawn(tokens, E - 2, seed=2).argsort(dim=1)[:, :top_k] + 1
    counts_E = torch.bincount(experts_TK.flatten(), minlength=E).to(torch.int32)
    x_TD, weights_TK = drawn(tokens, D, seed=3, dtype=torch.bfloat16), drawn(tokens, top_k, seed=4).abs()
    upstream_TD = drawn(tokens, D, seed=5)

    x, weights = x_TD.float().requires_grad_(), weights_TK.clone().requires_grad_()
    out = block.experts(x, weights, experts_TK)
    (out * upstream_TD).sum().backward()
    expected = [out.detach(), x.grad, weights.grad, block.experts.gate_up_proj.grad, block.experts.down_proj.grad]

    on_gpu = device.type == "cuda"
    # An A100 prefers Triton's kernel, which has no fused projections.
    grouped = RecipeExperts(D, F, E, use_grouped_mm=on_gpu, gate_up_impl=how if on_gpu else "separate",
                             disable_triton_grouped_mm=how == "fused")  # fmt: skip
    w1, w3 = block.experts.gate_up_proj.detach().chunk(2, dim=1)
    grouped.load_state_dict({"w1": w1, "w3": w3, "w2": block.experts.down_proj.detach()})
    grouped.to(device, torch.bfloat16)
    x, weights = x_TD.to(device).requires_grad_(), weights_TK.to(device).requires_grad_()
    position_A, assignment_N, sizes_E = grouped_positions(experts_TK.to(device), counts_E.to(device))
    where = position_A, assignment_N
    weight_N = dispatch(weights.view(-1, 1), *where, 1).squeeze(1)
    out = combine(grouped.computed(dispatch(x, *where, top_k), weight_N, sizes_E), *where, top_k)
    (out.float() * upstream_TD.to(device)).sum().backward()
    grad_gate_up = torch.cat((grouped.w1.grad, grouped.w3.grad), dim=1)
    results = [out, x.grad, weights.grad, grad_gate_up, grouped.w2.grad]
    output, *gradients = (relative_error(result, wanted) for result, wanted in zip(results, expected, strict=True))
    measured.update({"error of the output": output, "worst error of a gradient": max(gradients),
                     "kernel": "loop over experts" if not grouped.use_grouped_mm else
                     "Triton" if grouped.use_triton_grouped_mm else "torch._grouped_mm"})  # fmt: skip
    assert output <= after_roundings(ROUNDINGS)
    assert max(gradients) <= after_roundings(3 * ROUNDINGS)
    assert not grad_gate_up[[0, -1]].any()  # of experts without rows, whose padding no gradient comes from


def test_noise_and_bias_updates_are_functions_of_their_arguments(device, sizes, measured):
    """The router's noise is a function of its key and within its strength; the bias update is that of CPU."""
    x_TD = torch.ones(sizes.T, sizes.D, device=device)
    first, again, other = (jitter(x_TD, 0.1, key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.9 <= first.min() <= 0.901
    assert 1.099 <= first.max() <= 1.1
    measured["mean of the noise"] = first.mean().item()
    assert measured["mean of the noise"] == pytest.approx(1.0, abs=5 * 0.0578 / first.numel() ** 0.5)
    counts_LE = (drawn(3, sizes.E, scale=100.0).abs()).round()
    bias_LE = drawn(3, sizes.E, seed=1, scale=0.01)
    result = updated_bias(bias_LE.to(device), counts_LE.to(device), 0.001)
    torch.testing.assert_close(result.cpu(), updated_bias(bias_LE, counts_LE, 0.001), rtol=0, atol=1e-8)


def test_routing_is_deterministic(device, sizes, measured):
    """With deterministic algorithms routing, limits and movement give the same bits twice; none is refused."""

    def results() -> list[torch.Tensor]:
        x = drawn(sizes.T, sizes.D, dtype=torch.bfloat16).to(device).requires_grad_()
        weight = drawn(sizes.E, sizes.D, seed=1, dtype=torch.bfloat16).to(device).requires_grad_()
        logits = router_logits(x, weight)
        bias = drawn(sizes.E, seed=2, scale=0.1).to(device)
        scores, choice, chosen = scores_and_choice(logits, bias, "sigmoid", sizes.K, 4, 2)
        valid = torch.ones(sizes.T, device=device)
        capacity = int(0.9 * chosen.numel() / sizes.E)
        experts, kept = apply_capacity(choice, chosen, valid.bool(), capacity, latest_first=False, reroute=True)
        weights = weights_of(scores, experts, norm_topk_prob=True, routed_scaling_factor=1.0) * kept
        sent = torch.where(kept, experts, sizes.E)
        counts = torch.bincount(sent.flatten(), minlength=sizes.E + 1)[: sizes.E].to(torch.int32)
        position, assignment, _ = grouped_positions(sent, counts)
        rows = dispatch(x, position, assignment, sizes.K)
        weight_N = dispatch(weights.view(-1, 1), position, assignment, 1).squeeze(1)
        out = combine(weighted_swiglu(rows, rows, weight_N), position, assignment, sizes.K)
        balance = load_balancing_loss(score_shares(scores), chosen, valid, sizes.T // 5)
        loss = out.float().square().sum() + balance + (router_z_terms(logits) * valid).mean()
        return [experts, kept, position, out.detach(), loss.detach(), *torch.autograd.grad(loss, (x, weight))]

    with deterministic():
        runs: list[Any] = [results(), results()]
    measured["tensors compared"] = len(runs[0])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
