"""The kernels' benchmark counts the work its calls do, gives experts the rows it says, and goes on after a kernel that fails."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import kernel_times
from benchmarks.kernel_cases import attention, expert_rows, layers, matmuls, memory_and_host
from benchmarks.kernel_cases.measuring import BOTH, FORWARD, Case, flagship, tiny


class Flops(TorchDispatchMode):
    """torch's counts of operations, and of grouped matmuls, added up; its own counter refuses `autograd.grad` of a module."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet is torch.ops.aten._grouped_mm:
            # Rows [N, I] by [E, I, C], and the weights' gradient [I, N] by [N, C].
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """FLOPs of the calls that would have been timed."""
    counts: list[int] = []

    def timed(act):
        with Flops() as counter:
            act()
        counts.append(counter.flops)
        return {"seconds": 1.0, "runs": 1}

    for module in (matmuls, attention, layers):
        monkeypatch.setattr(module, "timed", timed)
    return counts


def all_cases(sizes) -> list[Case]:
    with layers.OneRank() as group:
        return kernel_times.cases(sizes, group)


def test_a_line_has_the_flops_that_its_call_does(counted):
    """Grouped by torch are left out: they multiply padding too. So is attention, which computes no causal half on CPU."""
    exact = [
        case for case in all_cases(tiny())
        if case.kernel == "matmul"
        or (case.kernel == "grouped_gemm" and case.case in (matmuls.LOOP, matmuls.PLAIN))
        or (case.kernel == "loss_head" and case.case != "ours")
        or (case.kernel == "moe_layer" and case.case == layers.GLM4)
    ]  # fmt: skip
    assert {case.kernel for case in exact} == {"matmul", "grouped_gemm", "loss_head", "moe_layer"}
    for case in exact:
        case.measure()
        padded = 1.0
        if case.case == matmuls.LOOP:  # its rows are those of the grouped matmul, each expert's a multiple of 8
            rows, experts, busiest = (case.shape[name] for name in ("rows", "experts", "busiest_over_mean"))
            counts = matmuls.expert_rows(rows, experts, busiest)
            padded = sum(max(8, -(-count // 8) * 8) for count in counts) / rows
        assert counted.pop() == pytest.approx(case.flops * padded), case


@pytest.mark.parametrize(("passes", "matmuls_of_eager"), [(FORWARD, 2), (BOTH, 6)])
def test_attention_counts_half_of_the_scores_and_those_it_computes_again(passes, matmuls_of_eager, counted):
    case = attention.attention_case(tiny(), "eager", 64, False, passes)
    case.measure()
    flash = 2 if passes == FORWARD else 2 + attention.BACKWARD_MATMULS
    assert counted.pop() / matmuls_of_eager == pytest.approx(2 * case.flops / flash)


def test_attention_of_documents_counts_what_their_mask_lets_through():
    sizes, lengths = tiny(), attention.document_lengths(64, True)
    assert len(lengths) > 1
    assert sum(lengths) == 64
    mask, _ = attention.documents_apart(sizes, "sdpa", 1, lengths)
    assert mask is not None
    pairs = mask.sum().item()  # the diagonal whole, of which the count has half
    assert attention.attention_flops(lengths, heads=1, head_dim=1) == 4 * (pairs - 64 / 2)


class BytesMoved(TorchDispatchMode):
    """Adds up the bytes of every operation's operands and results."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_moves_the_bytes_of_its_operations(dtype, monkeypatch):
    monkeypatch.setattr(memory_and_host, "DTYPE", dtype)
    x, weight = torch.randn(256, 512, dtype=dtype), torch.ones(512, dtype=dtype)
    with BytesMoved() as moved:
        memory_and_host.rms_norm(x, weight, 1e-5)
    assert memory_and_host.norm_bytes(x.numel(), compiled=False) == pytest.approx(moved.bytes, rel=0.01)
    assert memory_and_host.norm_bytes(x.numel(), compiled=True) == 2 * x.nbytes


@pytest.mark.parametrize("name", [expert_rows.WEIGHTED_SWIGLU, expert_rows.SWIGLU, expert_rows.SUM])
def test_rows_around_the_experts_are_counted_as_their_operands_and_results(name):
    """Read and written once, forward and backward; padding, of which there is little at a real size, is not counted."""
    sizes = tiny()
    call, operands = expert_rows.call_of(name, sizes)
    result = call(*operands)
    grads = torch.autograd.grad(result, operands, torch.ones_like(result))
    forward = [*operands, result]
    backward = [result, *grads] if name == expert_rows.SUM else [*operands, result, *grads]
    padding = 0
    if name == expert_rows.SUM:
        padding = 2 * (operands[0].nbytes - sizes.assignments * operands[0].shape[1] * operands[0].itemsize)
    positions = 2 * 4 * sizes.assignments if name == expert_rows.SUM else 0
    moved = sum(t.nbytes for t in (*forward, *backward)) + positions - padding
    assert expert_rows.bytes_of(name, sizes) == moved


@pytest.mark.parametrize(("rows", "experts"), [(196_608, 96), (196_608, 12), (512, 8), (10, 4), (7, 1), (0, 3)])
@pytest.mark.parametrize("busiest", [1.0, 2.0])
def test_experts_get_all_rows_and_the_busiest_as_many_as_is_said(rows, experts, busiest):
    counts = matmuls.expert_rows(rows, experts, busiest)
    assert len(counts) == experts
    assert sum(counts) == rows
    assert min(counts) >= 0
    assert max(counts) == pytest.approx(rows / experts * (busiest if experts > 1 else 1.0), abs=1)


def test_rows_of_grouped_matmuls_are_padded_as_the_recipe_pads_them():
    counts = [5, 0, 8, 3]
    operands = matmuls.Grouped(counts, inner=16, columns=24)
    assert operands.sizes == [8, 8, 8, 8]
    assert len(operands.x_NI) == sum(counts) + 4 * 8  # known without asking the device
    reference = operands.loop()
    torch.testing.assert_close(operands.grouped_mm()[: len(reference)], reference)


@pytest.mark.parametrize(("experts", "top_k", "busiest"), [(96, 6, 2.0), (12, 6, 1.98), (8, 2, 2.0)])
def test_a_skewed_router_sends_its_busiest_expert_twice_the_mean(experts, top_k, busiest):
    from benchmarks.moe_layer import config_of
    from recipe.model.modeling import MoeBlock

    tokens, hidden = 2048, 1024
    shape = {"tokens": tokens, "hidden": hidden, "width": 16, "experts": experts, "top_k": top_k}
    block = MoeBlock(config_of(shape))
    torch.manual_seed(0)
    torch.nn.init.normal_(block.gate.weight, std=0.02)
    x_TD = torch.randn(tokens, hidden)
    for routing, bound in ((layers.SKEWED, busiest), (layers.UNIFORM, 1.5)):
        told = layers.set_routing(block, x_TD, routing, top_k)
        counts = block.gate(x_TD)[2].flatten().bincount(minlength=experts)
        assert counts.sum().item() == tokens * top_k
        assert counts.max().item() / (tokens * top_k / experts) == pytest.approx(told)
        assert told == pytest.approx(bound, abs=0.05) if routing == layers.SKEWED else told < bound


def test_the_planner_finds_what_it_assumes():
    """Names and shapes that calibration reads, at the flagship's sizes."""
    of = all_cases(flagship())
    names = {kernel: {case.case for case in of if case.kernel == kernel} for kernel in {case.kernel for case in of}}
    assert names.keys() == {"matmul", "grouped_gemm", "attention", "streaming", "launch", "host_read", "loss_head",
                            "expert_rows", "moe_layer", "host_copy"}  # fmt: skip
    assert names["grouped_gemm"] == {"torch", "deepspeed", "loop of matmuls", "one matmul of the same FLOPs"}
    assert names["loss_head"] == {"ours", "ours, not compiled", "plain"}
    assert {"copy", "norm"} <= names["streaming"]
    shapes = [(case.kernel, case.case, case.passes, case.shape) for case in of]
    assert max(Counter(map(str, shapes)).values()) == 1  # no line twice
    grouped = {(s["ep"], s["experts"], s["rows"]) for kernel, *_, s in shapes if kernel == "grouped_gemm"}
    assert grouped == {(1, 96, 8 * 4096 * 6), (8, 12, 8 * 4096 * 6)}
    assert {s["experts"] for kernel, *_, s in shapes if kernel == "moe_layer"} == {96, 12}
    attended = {(s["seq_length"], p) for kernel, _, p, s in shapes if kernel == "attention"}
    assert attended == {(length, passes) for length in (4096, 32768) for passes in (FORWARD, BOTH)}
    assert [case.late for case in of] == sorted(case.late for case in of)


@pytest.mark.slow
def test_all_that_a_cpu_can_do_is_measured(small_result):
    """`small_result` is what `python benchmarks/gpu.py --small` wrote; its kernels are those of `benchmarks/kernel_times.py --small`."""
    measured = small_result["kernels"]
    assert [(line["kernel"], line["case"], line["pass"], line["shape"]) for line in measured] == [
        (case.kernel, case.case, case.passes, case.shape) for case in all_cases(tiny())
    ]
    reasons = {line["failed"] for line in measured if "failed" in line}
    assert all(reason.startswith("not possible here: ") for reason in reasons), reasons
    done = [line for line in measured if "failed" not in line]
    assert {line["kernel"] for line in done} == {line["kernel"] for line in measured} - {"host_copy"}
    for line in done:
        assert line["runs"] > 0
        assert line["seconds"] > 0 or line["kernel"] == "host_read"
        assert (line["flops_per_s"] is None) == (line["flops"] is None)
    grouped = {line["case"]: line["recipe"] for line in done if line["kernel"] == "grouped_gemm"}
    assert [name for name, recipe in grouped.items() if recipe] == ["torch"]  # what AutoEP runs without Triton
    layers_done = [line for line in done if line["kernel"] == "moe_layer"]
    assert {line["case"] for line in layers_done} == {layers.OURS, layers.AUTOEP, layers.GLM4}
    rows_done = {line["case"] for line in done if line["kernel"] == "expert_rows"}
    assert rows_done == {expert_rows.WEIGHTED_SWIGLU, expert_rows.SWIGLU, expert_rows.SUM}
    for line in layers_done:
        skewed = line["shape"]["routing"] == layers.SKEWED
        assert line["busiest_over_mean"] == pytest.approx(2.0, abs=0.1) if skewed else line["busiest_over_mean"] < 1.5


def fake_case(name: str, measure, cost_s: float = 1.0) -> Case:
    return Case("matmul", name, {"rows": 1000}, measure, flops=4e9, cost_s=cost_s)


def fails(error: Exception):
    def measure():
        raise error

    return measure


GOOD = {"seconds": 0.002, "runs": 5, "peak_gib": None}


def test_a_kernel_that_fails_has_a_line_and_the_others_follow():
    of = [fake_case("a", fails(RuntimeError("no such kernel\nfor this shape"))), fake_case("b", lambda: GOOD),
          fake_case("c", lambda: GOOD, cost_s=30.0), fake_case("d", lambda: GOOD)]  # fmt: skip
    with layers.OneRank() as group:
        measured = list(kernel_times.lines(of, lambda: 10.0, group))
    assert [line.get("failed") for line in measured] == [
        "RuntimeError: no such kernel", None, "left out: it may take 30 s, and 10 s were left", None,
    ]  # fmt: skip
    assert measured[1]["flops_per_s"] == 2e12
    table = kernel_times.markdown(measured)
    assert "| matmul | b | forward | rows 1,000 | 2.000 | 2 |" in table
    assert "- matmul, a, forward (rows 1,000): RuntimeError: no such kernel." in table


def test_after_the_loss_of_the_gpu_nothing_more_is_tried(monkeypatch, tmp_path, capsys):
    tried = []
    of = [fake_case("a", lambda: GOOD), fake_case("b", fails(RuntimeError("illegal memory access"))),
          fake_case("c", lambda: tried.append("c"))]  # fmt: skip
    monkeypatch.setattr(kernel_times, "gpu_takes_work", lambda: False)
    monkeypatch.setattr(kernel_times, "cases", lambda sizes, group: of)
    output = tmp_path / "kernels.jsonl"
    assert kernel_times.main(["--small", "--output", str(output)]) == kernel_times.GPU_LOST
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line.get("failed") for line in written] == [
        None, "RuntimeError: illegal memory access", "not measured: the GPU takes no more work after matmul, b",
    ]  # fmt: skip
    assert tried == []
    assert capsys.readouterr().out == output.read_text()


def test_a_line_is_written_before_the_next_kernel_begins(monkeypatch, tmp_path):
    output = tmp_path / "kernels.jsonl"
    output.write_text("of an earlier run\n")
    seen = []

    def measure():
        seen.append(output.read_text().count("\n"))
        return GOOD

    monkeypatch.setattr(kernel_times, "cases", lambda sizes, group: [fake_case(name, measure) for name in "abc"])
    assert kernel_times.main(["--small", "--output", str(output)]) == 0
    assert seen == [0, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_small_must_be_asked_for(capsys):
    assert kernel_times.main([]) == 2
    assert "there is no GPU here; give --small" in capsys.readouterr().err
