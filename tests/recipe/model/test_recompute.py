"""What recomputed layers keep and what they run again, on the plain model in one process; with the engine: recompute_worker.py."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.model import recompute
from recipe.model.modeling import RecipeMoeForCausalLM
from recipe.model.recompute import EVERYTHING, ROUTING_PLAN, contexts, kept, kept_result, recomputing
from recipe.planner.kept import KEEPABLE, Rows, kept_bytes
from tests.recipe.model.test_modeling import initialized, small_config

LAYERS = 3  # of small_config: a dense one, then MoE layers
TOKENS = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.arange(32).repeat(2, 1) % 11
MATMULS = {"attention_projection": 1, "gate_up": 2, "query_key_value": 3}  # of a dense layer
POLICIES = [(), *((name,) for name in KEEPABLE), KEEPABLE, (*KEEPABLE, EVERYTHING)]


def loss_of(model: RecipeMoeForCausalLM, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(tokens[:, :-1], targets=tokens[:, 1:], position_ids=DOCUMENTS).loss


def gradients_of(model: RecipeMoeForCausalLM) -> list[torch.Tensor]:
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return gradients


def recomputed(names=KEEPABLE, **changes) -> RecipeMoeForCausalLM:
    model = initialized(small_config(**changes))
    model.recompute_layers(False, names if callable(names) else lambda number: names)
    return model


def assert_equal(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(gradients) == len(expected)
    assert [n for n, (g, e) in enumerate(zip(gradients, expected, strict=True)) if not torch.equal(g, e)] == []


@pytest.fixture(scope="module")
def plain() -> list[torch.Tensor]:
    model = initialized(small_config())
    loss_of(model).backward()
    return gradients_of(model)


class Stored:
    """What was stored while a test ran: bytes, and whether it is still there."""

    def __init__(self):
        self.bytes: Counter[str] = Counter()
        self._tensors: list[weakref.ref] = []

    def add(self, store, name, result):
        add(store, name, result)
        for tensor in self._flat(store.results[name][-1]):
            self.bytes[name] += tensor.untyped_storage().nbytes()
            self._tensors.append(weakref.ref(tensor.untyped_storage()))

    def _flat(self, result):
        return [t for item in result for t in self._flat(item)] if isinstance(result, tuple) else (
            [result] if isinstance(result, torch.Tensor) else [])  # fmt: skip

    def live(self) -> int:
        return sum(reference() is not None for reference in self._tensors)


add = recompute._Store.add


@pytest.fixture
def stored(monkeypatch) -> Stored:
    counter = Stored()
    monkeypatch.setattr(recompute._Store, "add", lambda store, name, result: counter.add(store, name, result))
    return counter


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def backward_calls(model: RecipeMoeForCausalLM) -> Counter[str]:
    loss = loss_of(model)
    with Operators() as operators:
        loss.backward()
    return operators.calls


def more_in_later_layers(number: int) -> tuple[str, ...]:
    return KEEPABLE[: 2 * number]


def first_layers_whole(number: int) -> tuple[str, ...]:
    return (*KEEPABLE, EVERYTHING) if number < 2 else ("attention",)


@pytest.mark.parametrize(
    "names",
    [*POLICIES, more_in_later_layers, first_layers_whole],
    ids=lambda names: getattr(names, "__name__", str(names)),
)
def test_keeping_changes_no_bit_of_a_gradient(names, plain):
    model = recomputed(names)
    loss_of(model).backward()
    assert_equal(gradients_of(model), plain)


@pytest.mark.parametrize(
    ("names", "linear"), [*((names, "ZeRO-3's") for names in POLICIES), ((), "torch's"), (KEEPABLE, "torch's")], ids=str
)
def test_a_second_pass_runs_what_is_not_kept_and_nothing_after_what_gradients_need(names, linear, monkeypatch):
    if linear == "ZeRO-3's":  # which saves its inputs after the matmul and not before
        monkeypatch.setattr(F, "linear", zero3_linear_wrap)
    dense = {"first_k_dense_replace": LAYERS}
    again, once = backward_calls(recomputed(names, **dense)), backward_calls(initialized(small_config(**dense)))
    expected = sum(number for name, number in MATMULS.items() if name not in names)
    assert again["mm"] - once["mm"] == LAYERS * expected  # the down projection is not among them
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert (again[attention], once[attention]) == (LAYERS * ("attention" not in names), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_kept_bytes_are_the_planners_and_are_freed(moe, dtype, stored):
    number = 1 if moe else 0
    model = recomputed(lambda layer: KEEPABLE if layer == number else ()).to(dtype)
    loss = loss_of(model)
    tokens, shape = TOKENS[:, 1:].numel(), model.config.shape()
    assigned = tokens * shape.num_experts_per_tok
    planned = {
        name: kept_bytes(shape, name, Rows(tokens, assigned, assigned), moe=moe, element=dtype.itemsize)
        for name in ("attention", "attention_projection", "query_key_value", "shared_gate_up" if moe else "gate_up")
    }
    # An attention kernel's log-sum-exp is counted with its output.
    assert {name: stored.bytes[name] for name in planned} == planned
    assert stored.live() > 0
    loss.backward()
    assert stored.live() == 0


def test_a_whole_layer_runs_once_and_stores_nothing_itself(stored):
    model, runs = recomputed(first_layers_whole), []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, number=number: runs.append((number, recomputing())))
    loss_of(model).backward()
    assert runs == [(0, False), (1, False), (2, False), (2, True)]
    assert set(stored.bytes) == {"attention"}  # of the last layer


def test_a_bias_that_zero3_adds_in_place_is_not_added_twice(monkeypatch):
    monkeypatch.setattr(F, "linear", zero3_linear_wrap)
    gradients = []
    for names in (None, (), ("query_key_value",)):
        model = initialized(small_config(attention_bias=True))
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.k_proj.bias.normal_(generator=torch.Generator().manual_seed(3))
                layer.self_attn.v_proj.bias.normal_(generator=torch.Generator().manual_seed(4))
        if names is not None:
            model.recompute_layers(False, lambda number, names=names: names)
        loss_of(model).backward()
        gradients.append(gradients_of(model))
    assert_equal(gradients[1], gradients[0])
    assert_equal(gradients[2], gradients[0])


def test_what_reads_a_kept_result_or_changes_other_tensors_runs_beside_it():
    """As what a library's call does for ZeRO-3 beside the matmul."""
    first, again = contexts(("query_key_value",))()
    for one_pass in (first, again):
        with one_pass, kept("query_key_value"):
            product, doubled, others = torch.ones(2, 3) @ torch.ones(3, 2), torch.empty(2, 2), [torch.empty(2)]
            torch.mul(product, 2, out=doubled)
            torch._foreach_zero_(others)
        assert (product.tolist(), doubled.tolist(), others[0].tolist()) == ([[3] * 2] * 2, [[6] * 2] * 2, [0, 0])


@pytest.mark.parametrize("order", [1, -1], ids=["first first", "last first"])
def test_micro_batches_whose_graphs_live_together_are_kept_apart(order, stored):
    others = TOKENS.flip(0) + 1
    gradients = []
    for model in (initialized(small_config()), recomputed()):
        for loss in [loss_of(model), loss_of(model, others % 256)][::order]:
            loss.backward()
        gradients.append(gradients_of(model))
    assert_equal(gradients[1], gradients[0])
    assert stored.live() == 0


def test_a_second_backward_pass_through_a_graph_computes_what_the_first_has_taken(plain):
    model = recomputed()
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    gradients_of(model)
    loss.backward()
    assert_equal(gradients_of(model), plain)


def test_a_backward_pass_in_another_thread_takes_what_was_kept(plain, stored):
    model = recomputed()
    loss, calls = loss_of(model), []
    thread = threading.Thread(target=lambda: (loss.backward(), calls.append(recomputing())))
    thread.start()
    thread.join()
    assert calls == [False]
    assert_equal(gradients_of(model), plain)
    assert stored.live() == 0


def test_an_error_in_the_first_pass_drops_what_was_stored(stored):
    model = recomputed()

    def fail(*_):
        raise MemoryError("of a test")

    model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError) as raised:  # whose frames hold the layer's tensors
        loss_of(model)
    assert stored.bytes["query_key_value"] > 0
    held = [f for f in _frames(raised.tb) if f.f_code.co_name == "_checkpoint_without_reentrant_generator"]
    results = [f.f_locals["forward_context"].store.results for f in held]
    assert results == [{}]
    assert not recomputing()
    assert kept_result("attention", lambda: "computed") == "computed"


def _frames(traceback):
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def test_without_gradients_nothing_is_kept(stored, plain):
    model = recomputed()
    training = loss_of(model)
    before = dict(stored.bytes)
    with torch.no_grad():
        loss_of(model)
    assert stored.bytes == before
    training.backward()
    assert_equal(gradients_of(model), plain)


def test_a_users_own_checkpointing_keeps_nothing(stored, plain):
    model = recomputed()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    loss_of(model).backward()
    assert_equal(gradients_of(model), plain)
    assert not stored.bytes


def test_the_routing_plan_is_kept_by_every_recomputed_layer():
    first, again = contexts(())()
    plans = iter(["first", "second", "third"])
    with first:
        assert not recomputing()
        assert [kept_result(ROUTING_PLAN, lambda: next(plans)) for _ in range(2)] == ["first", "second"]
        assert kept_result("rows", lambda: "rows") == "rows"
    with again:
        assert recomputing()
        assert kept_result(ROUTING_PLAN, lambda: "computed again") == "first"
        assert kept_result("rows", lambda: "computed again") == "computed again"
        assert kept_result(ROUTING_PLAN, lambda: "computed again") == "second"
    assert not recomputing()


class Plan(NamedTuple):
    splits: list[int]
    rows: torch.Tensor


def test_what_is_stored_has_no_graph_and_keeps_its_type():
    first, again = contexts(("rows",))()
    weight = torch.ones(2, requires_grad=True)
    with first:
        made = kept_result("rows", lambda: Plan([1, 1], weight * 2))
    with again:
        taken = kept_result("rows", lambda: None)
    assert isinstance(taken, Plan)
    assert taken.splits == [1, 1]
    assert made.rows.requires_grad
    assert not taken.rows.requires_grad
    assert taken.rows.data_ptr() == made.rows.data_ptr()
