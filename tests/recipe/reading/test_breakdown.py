"""Where a step's time goes: a trace of a GPU made by hand, and one of this machine's CPU by the profiler."""

from __future__ import annotations

import pytest
import torch

from recipe.model import RecipeMoeForCausalLM
from recipe.reading.breakdown import as_text, breakdown, kind_of, read_trace
from recipe.telemetry.profiling import traced
from tests.recipe.model.test_modeling import initialized, small_config

MAIN, AUTOGRAD = 1, 2  # threads of the host


class Trace:
    """Events as torch's profiler writes them on a GPU: the host runs ahead, kernels name the call that launched them."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self._correlation = 0

    def host(self, name: str, ts: float, dur: float, tid: int = MAIN, cat: str = "cpu_op") -> None:
        self.events.append({"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": ts, "dur": dur, "args": {}})

    def annotation(self, name: str, ts: float, dur: float) -> None:
        self.host(name, ts, dur, cat="user_annotation")

    def kernel(self, name: str, launched: float, ts: float, dur: float, tid: int = MAIN, stream: int = 7) -> None:
        self._correlation += 1
        args = {"correlation": self._correlation}
        self.host("cudaLaunchKernel", launched, 1, tid, "cuda_runtime")
        self.events[-1]["args"] = args
        self.events.append(
            {"ph": "X", "cat": "kernel", "name": name, "tid": stream, "ts": ts, "dur": dur, "args": args}
        )

    def gradient(self, forward: tuple[int, float], backward: tuple[int, float]) -> None:
        number = len(self.events)
        for ph, (tid, ts) in (("s", forward), ("f", backward)):
            self.events.append({"ph": ph, "cat": "fwdbwd", "id": number, "tid": tid, "ts": ts})


@pytest.fixture
def trace() -> Trace:
    made = Trace()
    made.annotation("phase:forward", 0, 100)
    made.annotation("part:attention", 10, 40)
    made.host("aten::linear", 12, 10)
    made.kernel("nvjet_hsh_128x256", 15, 50, 100)
    made.annotation("part:norms", 25, 10)  # within the attention
    made.kernel("vectorized_elementwise_kernel", 27, 150, 20)
    made.annotation("phase:backward", 100, 100)
    made.host("autograd::engine::evaluate_function: MmBackward0", 110, 30, AUTOGRAD)
    made.host("aten::mm", 115, 10, AUTOGRAD)
    made.kernel("sm90_xmma_gemm_bf16", 118, 200, 200, AUTOGRAD)
    made.kernel("ncclDevKernel_ReduceScatter", 190, 300, 150, stream=20)  # half of it beside the matmul
    made.annotation("phase:optimizer", 200, 800)
    made.kernel("multi_tensor_apply_kernel", 210, 500, 100)
    made.gradient((MAIN, 12), (AUTOGRAD, 110))
    return made


def test_kernels_belong_to_the_part_and_phase_of_what_launched_them(trace):
    found = breakdown(trace.events, steps=1)
    us = lambda value: pytest.approx(value * 1e-6)  # noqa: E731
    assert found.parts["attention"] == {"matmul": us(300)}  # 100 forward, 200 backward on another thread
    assert found.parts["norms"] == {"other": us(20)}
    assert found.parts["optimizer"] == {"other": us(100)}
    assert found.parts["other"] == {"communication": us(150)}
    assert found.phases == {"forward": us(120), "backward": us(350), "optimizer": us(100)}
    spent = sum(seconds for part in ("attention", "norms") for seconds in found.parts[part].values())
    assert spent / found.wall_s == pytest.approx(0.32)


def test_the_device_is_idle_when_no_kernel_runs_and_overlap_counts_once(trace):
    found = breakdown(trace.events, steps=1)
    assert found.wall_s == pytest.approx(1000e-6)
    assert found.busy_s == pytest.approx((120 + 250 + 100) * 1e-6)
    assert "| idle | 0.53 | 53.0% |" in as_text(found)


def test_a_mean_step_is_an_nth_of_the_trace(trace):
    assert breakdown(trace.events, steps=4).wall_s == pytest.approx(250e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<GroupedMM>>", "matmul"),
        ("void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("_group_gemm_kernel", "matmul"),
        ("triton_poi_fused_mul_silu_0", "other"),
        ("aten::addmm", "matmul"),
        ("aten::addcmul", "other"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_belong_to_the_parts_they_are_of(tmp_path, recompute):
    model: RecipeMoeForCausalLM = initialized(small_config()).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = torch.randint(0, 256, (2, 16))
    with traced(model, tmp_path / "trace.json") as phases:
        phases.enter("forward")
        loss = model(tokens, targets=tokens).loss
        phases.enter("backward")
        loss.backward()
    events = read_trace(tmp_path / "trace.json")
    whole, parts = breakdown(events, steps=1), {}
    for phase in ("forward", "backward"):
        span = next(e for e in events if e.get("name") == f"phase:{phase}")
        calls = [e for e in events if e.get("name") == "aten::mm" and span["ts"] <= e["ts"] <= span["ts"] + span["dur"]]
        parts[phase] = len(calls)
    assert (
        parts["backward"] >= (3 if recompute else 2) * parts["forward"] - 10
    )  # the head's are all in the forward pass
    for part in ("attention", "experts", "dense MLP", "shared experts", "router"):
        assert whole.parts[part]["matmul"] > 0
    # What no part claims has no matmul: all of them are gradients of parts.
    assert "matmul" not in whole.parts.get("other", {})
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_trace_without_phases_is_not_one_of_ours():
    with pytest.raises(ValueError, match="no annotated phases"):
        breakdown([{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 1, "ts": 0, "dur": 1, "args": {}}], 1)
