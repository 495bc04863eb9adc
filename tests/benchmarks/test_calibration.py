"""Constants come back from kernels that were timed with them, and the errors of a plan are those of what was measured."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from benchmarks import contenders
from benchmarks.calibration import calibrated, file_of, main, markdown
from benchmarks.kernel_cases.layers import OneRank
from benchmarks.kernel_cases.matmuls import PLAIN, prefers_triton
from benchmarks.kernel_cases.measuring import flagship
from benchmarks.kernel_constants import BOTH
from benchmarks.kernel_times import cases
from benchmarks.step_run import plans
from recipe.base.hardware import Accelerator, accelerator_named
from recipe.base.model_shape import load_model_shape
from recipe.planner.calibration import WORDS
from recipe.planner.timing.kernels import attention_s, matmul_s
from tests.conftest import ROOT

H200 = accelerator_named("h200")
OTHERS = {"matmul_efficiency": 0.81, "attention_efficiency": 0.66, "attention_half": 1400.0, "hbm_efficiency": 0.84,
          "grouped_gemm": 0.71, "launch_s": 4.2e-6, "host_read_s": 71e-6, "memory_gib": 139.7}  # fmt: skip
FACTS = {"device": "NVIDIA H200", "date": "2026-11-28", "commit": "0123456789abcdef", "dirty": False, "driver": "580.1",
         "packages": {"torch": "2.11.0"}, "memory_gib": OTHERS["memory_gib"]}  # fmt: skip
TRAIN_STEP = json.loads((ROOT / "benchmarks/results/train_step_h200.json").read_text())


def line(kernel, case, seconds, shape, passes="forward", dtype="bfloat16", **more):
    return {
        "kernel": kernel,
        "case": case,
        "pass": passes,
        "shape": shape,
        "dtype": dtype,
        "seconds": seconds,
        "runs": 7,
    } | more


def matmul(gpu, rows, inner, columns):
    return line("matmul", "", matmul_s(gpu, rows, inner, columns), {"rows": rows, "inner": inner, "columns": columns})


def grouped(gpu, experts, case="torch", busiest=1.0):
    """Three matmuls forward and backward, of 196,608 rows in all."""
    rows, inner, columns = 196_608, 2048, 1024
    shape = {"experts": experts, "rows": rows, "inner": inner, "columns": columns, "busiest_over_mean": busiest}
    forward = matmul_s(gpu, rows, inner, columns)
    if case != PLAIN:
        forward = matmul_s(gpu, rows / experts, inner, columns, grouped_over=experts, grouped_gemm=gpu.grouped_gemm)
    return line("grouped_gemm", case, 3 * forward * busiest, shape, BOTH, recipe=case == "torch")


def attention(gpu, seq_length, case="sdpa"):
    batch = 32768 // seq_length
    seconds = 3.5 * attention_s(gpu, batch * seq_length, seq_length, 32 * 128)
    shape = {"batch": batch, "seq_length": seq_length, "heads": 32, "head_dim": 128, "documents": [seq_length]}
    return line("attention", case, seconds, shape, BOTH)


def timed_on(gpu: Accelerator) -> list[dict]:
    """Lines of benchmarks/kernel_times.py as a GPU of these constants would give them, and some that no formula is for."""
    copy = line("streaming", "copy", 2e9 / (gpu.hbm_bytes_per_s * gpu.hbm_efficiency), {}, dtype="uint8", bytes=2e9)
    reads = [{"small_kernels": 0}, {"small_kernels": 20}]
    return [
        matmul(gpu, 8192, 8192, 8192), matmul(gpu, 32768, 2048, 1024) | {"seconds": 1.0},
        *(grouped(gpu, experts, case) for experts in (96, 12) for case in ("torch", PLAIN)),
        grouped(gpu, 96, "deepspeed") | {"seconds": 1.0}, grouped(gpu, 96, busiest=2.0),
        *(attention(gpu, length) for length in (4096, 32768)), attention(gpu, 4096, "flash_attention_2") | {"seconds": 1.0},
        copy | {"seconds": 1.0}, copy | {"case": "norm"}, copy | {"case": "adamw", "dtype": "float32"},
        line("launch", "eager", gpu.launch_s, {}), line("launch", "compiled function", 8 * gpu.launch_s, {}),
        line("host_read", "item", 20e-6, reads[0]), line("host_read", "item, behind", gpu.host_read_s, reads[1]),
        {"kernel": "matmul", "case": "head", "pass": "forward", "shape": {}, "dtype": "bfloat16", "failed": "out of memory"},
    ]  # fmt: skip


def measured(kernels, facts=FACTS, train_step=None):
    constants = calibrated(kernels, train_step, facts)["constants"]
    return {name: constants[name]["measured"] for name in OTHERS}


@pytest.mark.parametrize("constants", [OTHERS, {name: getattr(H200, name) for name in OTHERS}])
def test_kernels_timed_with_other_constants_give_them_back(constants):
    found = measured(timed_on(replace(H200, **constants)), FACTS | {"memory_gib": constants["memory_gib"]})
    assert found == pytest.approx(constants, rel=0.01)


def test_noise_of_the_lines_stays_noise_of_the_constants():
    noise, gpu = random.Random(0), replace(H200, **OTHERS)
    noisy = [m | {"seconds": m["seconds"] * noise.uniform(0.98, 1.02)} if "seconds" in m else m for m in timed_on(gpu)]
    found = measured(noisy)
    half = found.pop("attention_half")
    assert found == pytest.approx({n: v for n, v in OTHERS.items() if n != "attention_half"}, rel=0.045)
    # 1 + half / length is what the two lengths show: two lines of 2% each, the longer nearly without it
    assert 1 + half / 4096 == pytest.approx(1 + OTHERS["attention_half"] / 4096, rel=0.06)


def test_the_measured_constants_bring_the_plan_of_the_kernels_to_what_was_measured():
    gpu = replace(H200, **OTHERS)
    kernels = calibrated([m for m in timed_on(gpu) if m.get("seconds") != 1.0], None, FACTS)["kernels"]
    assert {k["kernel"] for k in kernels} == {"matmul", "grouped_gemm", "attention"}
    for kernel in kernels:
        assert kernel["calibrated_s"] == pytest.approx(kernel["measured_s"], rel=1e-6), kernel
        assert abs(kernel["planned_s"] / kernel["measured_s"] - 1) > 0.02, kernel


def without(kernel):
    return [m for m in timed_on(H200) if m["kernel"] != kernel]


@pytest.mark.parametrize(
    ("name", "kernels", "reason"),
    [
        ("matmul_efficiency", without("matmul"), "no line of matmul was measured"),
        ("matmul_efficiency", [matmul(H200, 8192, 2048, 1024)], "4,096 or more in each dimension"),
        ("matmul_efficiency", [matmul(H200, 8192, 8192, 8192) | {"runs": 1}], "measured 1 times, 3 are needed"),
        ("matmul_efficiency", [matmul(H200, 8192, 8192, 8192) | {"dtype": "float32"}], "it is in float32, not in bf16"),
        ("matmul_efficiency", [{"kernel": "matmul", "case": "x", "failed": "no GPU"}], "x: no GPU"),
        ("matmul_efficiency", [matmul(H200, 8192, 8192, 8192) | {"seconds": float("nan")}], "it has no time"),
        ("matmul_efficiency", [matmul(H200, 8192, 8192, 8192) | {"seconds": 1e-6}], "comes out as"),
        (
            "matmul_efficiency",
            [matmul(H200, 8192, 8192, 8192) | {"shape": {"rows": 8192}}],
            "lacks what its formula needs",
        ),
        ("attention_efficiency", [attention(H200, 4096)], "at 1 lengths, 2 are needed"),
        ("attention_half", [attention(H200, 4096)] * 2, "at 1 lengths, 2 are needed"),
        ("grouped_gemm", [grouped(H200, 96)], "no line of matmul was measured"),
        (
            "grouped_gemm",
            [matmul(H200, 8192, 8192, 8192), grouped(H200, 96, "deepspeed")],
            "no line of the recipe's grouped GEMM",
        ),
        ("host_read_s", [line("host_read", "item", 1e-5, {"small_kernels": 0})], "small kernels behind it"),
        ("launch_s", [line("launch", "compiled function", 5e-5, {})], "no line of an eager launch"),
        ("hbm_efficiency", [line("streaming", "copy", 1.0, {}, bytes=1e9)], "no line of a norm or an update"),
        ("hbm_efficiency", [line("streaming", "norm", 1e-9, {}, bytes=1e9)], "comes out as"),
        ("run_efficiency", timed_on(H200), "no compiled ZeRO-1 step"),
    ],
)
def test_what_cannot_be_derived_is_left_out_with_the_reason(name, kernels, reason):
    calibration = calibrated(kernels, None, FACTS)
    assert calibration["constants"][name]["measured"] is None
    assert reason in calibration["constants"][name]["reason"]
    assert any(note.startswith(f"{name} is not derived: ") for note in calibration["notes"])
    assert name not in (file_of(calibration) or {"constants": {}})["constants"]
    assert reason.replace("|", "/") in markdown(calibration)


def test_attention_as_fast_on_short_sequences_has_no_length_that_halves_it():
    fast = [attention(H200, 4096), attention(H200, 32768)]
    fast[0]["seconds"] = fast[1]["seconds"] / 9  # an eighth of the FLOPs in less than an eighth of the time
    assert measured(fast)["attention_half"] == 0.0


def test_the_lines_of_the_kernels_benchmark_are_those_that_the_constants_are_derived_from():
    """Names and shapes of its cases at the flagship's size, as if a GPU had measured each."""
    with OneRank() as group:
        of_flagship = cases(flagship(), group)
    in_use = "deepspeed" if prefers_triton() else "torch"
    lines = []
    for case in of_flagship:
        rate = 5e14 if case.flops else 3e12
        seconds = (case.flops or case.moved or 1e7) / rate
        if case.kernel == "attention":  # slower on shorter sequences
            seconds *= 1 + 1000 / case.shape["seq_length"]
        lines.append(case.line(seconds=seconds, runs=5, recipe=case.case == in_use) | {"dtype": "bfloat16"})
    calibration = calibrated(lines, None, FACTS)
    assert {name for name, c in calibration["constants"].items() if c["measured"] is None} == {"run_efficiency"}
    used = {name: c["lines"] for name, c in calibration["constants"].items() if c["lines"]}
    assert used == {"matmul_efficiency": 1, "attention_efficiency": 2, "attention_half": 2, "hbm_efficiency": 3,
                    "grouped_gemm": 4, "launch_s": 1, "host_read_s": 1, "memory_gib": 1}  # fmt: skip
    measured = {name: c["measured"] for name, c in calibration["constants"].items()}
    assert measured["hbm_efficiency"] == pytest.approx(3e12 / H200.hbm_bytes_per_s)
    assert measured["attention_efficiency"] == pytest.approx(5e14 / H200.bf16_flops)
    assert measured["attention_half"] == pytest.approx(1000)
    planned = {(k["kernel"], k["case"]) for k in calibration["kernels"]}
    assert {("grouped_gemm", in_use), ("attention", "sdpa"), ("matmul", "head")} <= planned


def test_the_steps_of_the_h200_are_planned_as_they_ran(monkeypatch):
    monkeypatch.setattr(contenders, "CUDA", True)  # so that ours are in bf16, as they ran
    of_run = TRAIN_STEP["case"]
    whole = load_model_shape(ROOT / "recipe/configs/models" / of_run["model"])
    case = contenders.Case(
        whole.model_copy(update={"num_hidden_layers": of_run["layers"]}), of_run["seq_length"], of_run["micro_batch"]
    )
    calibration = calibrated([], TRAIN_STEP, FACTS)
    ours = {name: c for name, c in TRAIN_STEP["contenders"].items() if "planned" in c}
    assert calibration["plans"].keys() == ours.keys()
    for name, plan in calibration["plans"].items():
        for key in ("step_s", "peak_gib"):
            measured, planned = plan[key]["measured"], plan[key]["planned"]
            assert measured == ours[name][key]
            assert planned == plans.planned(contenders.CONTENDERS[name], case, "h200")[key], name
            assert plan[key]["error"] == pytest.approx(planned / measured - 1)
    own = calibration["plans"][calibration["run_efficiency_of"]]
    assert calibration["run_efficiency_of"] == "ours, ZeRO-1"
    assert own["step_s"]["calibrated_error"] == pytest.approx(0, abs=1e-9)
    slow, quick = (ours[name]["step_s"] for name in ("ours, ZeRO-3", "ours, ZeRO-1"))
    assert file_of(calibration)["steps"]["ours, ZeRO-3"] == pytest.approx(slow / quick)  # one rank, so planned alike
    assert "ours, ZeRO-1" not in file_of(calibration)["steps"]  # equal by construction, so no check


def test_the_flagships_slice_is_planned_as_it_ran_and_gives_the_efficiency_of_a_run():
    case = {"model": "30b-a3b", "layers": 2, "seq_length": 4096, "micro_batch": 8, "precision": "bfloat16",
            "recompute": "non_reentrant"}  # fmt: skip
    flagship = {"case": case, "step_s": 0.5, "peak_gib": 40.0}
    calibration = calibrated([], TRAIN_STEP | {"flagship": flagship}, FACTS)
    name = "ours, ZeRO-1, slice of 30b-a3b"
    assert calibration["run_efficiency_of"] == name
    assert calibration["plans"][name]["step_s"]["calibrated_error"] == pytest.approx(0, abs=1e-9)
    assert calibration["plans"]["ours, ZeRO-1"]["step_s"]["calibrated_error"] != pytest.approx(0, abs=1e-3)
    planned = [
        calibrated([], TRAIN_STEP | {"flagship": flagship | {"case": case | {"recompute": mode}}}, FACTS)["plans"][name]
        for mode in ("none", "non_reentrant", "reentrant")
    ]
    none, again, everything = (plan["step_s"]["planned"] for plan in planned)
    assert none < 0.95 * again < 0.95 * everything
    failed = calibrated([], TRAIN_STEP | {"flagship": {"case": case, "failed": "no time was left"}}, FACTS)
    assert failed["run_efficiency_of"] == "ours, ZeRO-1"


def test_a_single_gpu_has_no_imbalance_of_ranks():
    """A cluster's plan adds its own to the efficiency, which must not have one in it."""
    calibration = calibrated([], TRAIN_STEP, FACTS | {"memory_gib": None})
    plan, efficiency = calibration["plans"]["ours, ZeRO-1"], calibration["constants"]["run_efficiency"]
    step, peak = plan["step_s"], plan["peak_gib"]
    assert efficiency["measured"] == pytest.approx(efficiency["planned"] * step["planned"] / step["measured"])
    assert peak["calibrated"] == peak["planned"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"device": "NVIDIA B300"}, "NVIDIA B300 is not in recipe/base/hardware.py; add its datasheet there"),
        ({"device": "x86_64, 2 cores", "small": True}, "x86_64, 2 cores is not in recipe/base/hardware.py"),
        ({"small": True}, "tiny shapes were measured (--small)"),
    ],
)
def test_an_unknown_gpu_and_tiny_shapes_calibrate_nothing(facts, reason):
    calibration = calibrated(timed_on(H200), TRAIN_STEP, FACTS | facts)
    assert file_of(calibration) is None
    assert {c["measured"] for c in calibration["constants"].values()} == {None}
    assert reason in markdown(calibration)


def test_the_command_writes_the_file_that_plans_take(tmp_path, capsys):
    result, output = tmp_path / "h200.json", tmp_path / "calibration.json"
    result.write_text(json.dumps(FACTS | {"kernels": timed_on(replace(H200, **OTHERS)), "train_step": TRAIN_STEP}))
    main([str(result), "--output", str(output)])
    printed = capsys.readouterr().out
    for words in WORDS.values():
        assert words in printed
    content = json.loads(output.read_text())
    assert content["gpu"] == "h200"
    assert content["constants"].keys() == WORDS.keys()
    assert content["constants"]["grouped_gemm"] == pytest.approx(OTHERS["grouped_gemm"])


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (None, "does not exist"),
        ("{", "is not valid"),
        ("[]", "is no result of benchmarks/gpu.py"),
        (json.dumps(TRAIN_STEP), "is no result of benchmarks/gpu.py"),
        (json.dumps(FACTS | {"kernels": [1], "train_step": None}), "is no result of benchmarks/gpu.py"),
        (json.dumps(FACTS | {"kernels": [], "train_step": {}}), "train_step of"),
        (json.dumps({"device": "NVIDIA H200", "kernels": [], "train_step": None}), "calibrates nothing"),
        (json.dumps(FACTS | {"device": "x86_64, 2 cores", "kernels": [], "train_step": None}), "is not in recipe/base/hardware"),
    ],
)  # fmt: skip
def test_another_result_is_refused_in_a_sentence(result, sentence, tmp_path, capsys):
    path, output = tmp_path / "result.json", tmp_path / "calibration.json"
    if result is not None:
        path.write_text(result)
    assert main([str(path), "--output", str(output)]) == 2
    assert sentence in capsys.readouterr().err
    assert not output.exists()
