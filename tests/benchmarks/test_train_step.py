"""The benchmark compares like with like: every contender trains the same model on the same tokens."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipe.base.files import write_json
from recipe.base.hardware import accelerator_named
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import USABLE
from tests.conftest import ROOT


@pytest.fixture
def train_step(monkeypatch) -> ModuleType:
    """The script as a module; as a script it puts the project's folder first on the path."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    from benchmarks import train_step

    return train_step


@pytest.fixture
def contenders(train_step) -> ModuleType:
    from benchmarks import contenders

    return contenders


# `small_result` is what `python benchmarks/gpu.py --small` wrote; its part of this script is that of
# `python benchmarks/train_step.py` without a GPU.


@pytest.mark.slow
def test_all_contenders_train_the_same_model(small_result, contenders):
    result = small_result["train_step"]
    assert result["unfinished"] == []
    assert [*result["contenders"]] == [name for name in contenders.CONTENDERS if name != contenders.FLAGSHIP]
    window = result["window"]
    assert all(window[kind]["measured"] > 0 and window[kind]["warm_up"] > 0 for kind in ("uniform", "text"))
    for name, measured in result["contenders"].items():
        assert measured["parameters"] == result["case"]["parameters"], name
        assert measured["first_loss"] == pytest.approx(math.log(4096), abs=0.1), name  # nothing is known yet
        assert measured["last_loss"] < measured["first_loss"], name
        for found in (measured, measured["text"]):
            assert found["step_s_range"][0] <= found["step_s"] <= found["step_s_range"][1], name
            assert ("load" in found) == name.startswith("ours"), name
        if name.startswith("ours"):  # text's frequent tokens make busy experts; the same weights, the same tokens
            assert 1 <= measured["load"] < measured["text"]["load"], name
            first = result["contenders"]["ours, ZeRO-1"]
            assert measured["text"]["load"] == pytest.approx(first["text"]["load"], rel=0.2), name
        assert ("breakdown" in measured) == (name in contenders.TRACED), name
    for name in contenders.TRACED:
        parts, wall = (result["contenders"][name]["breakdown"][key] for key in ("part_s", "wall_s"))
        assert sum(s for kinds in parts.values() for s in kinds.values()) == pytest.approx(wall, rel=0.05), name
        assert {"attention", "experts", "router", "head and loss", "optimizer"} <= parts.keys(), name
    assert result["flagship"]["case"]["recompute"] == "non_reentrant"
    assert result["flagship"]["tokens_per_s"] > 0
    assert "without TransformerEngine" in result["contenders"]["Megatron-Core"]["as_installed"]


@pytest.mark.slow
def test_a_small_result_prints_as_tables(small_result, train_step, contenders, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(small_result["train_step"]))
    train_step.main(["--table", str(tmp_path / "result.json")])
    printed = capsys.readouterr().out
    assert all(name in printed for name in contenders.CONTENDERS)
    assert "after 3 of warm-up" in printed
    assert "Megatron-Core as installed: without TransformerEngine" in printed


def measured(step_s: float, **more: Any) -> dict[str, Any]:
    return {"matmul_flops_per_s": 1e12, "step_s": step_s, "step_s_range": [step_s, step_s], "peak_gib": 8.0, **more}


@pytest.fixture
def megatron(train_step) -> ModuleType:
    from benchmarks.step_run import megatron

    return megatron


@pytest.fixture
def processes(train_step) -> ModuleType:
    from benchmarks.step_run import attempt

    return attempt


@pytest.fixture
def plans(train_step) -> ModuleType:
    from benchmarks.step_run import plans

    return plans


@pytest.fixture
def run(train_step, processes, monkeypatch, tmp_path) -> Callable[..., dict[str, Any]]:
    """The script with a stand-in for what a contender does in its own process; the JSON that it wrote."""
    monkeypatch.setattr(processes, "import_modules", lambda *names: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which the script sets too, for good
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")

    def run(measure: Callable[[str, Path], None], *words: str) -> dict[str, Any]:
        @contextmanager
        def session() -> Iterator[None]:
            yield

        monkeypatch.setitem(sys.modules, "recipe.engine.session", SimpleNamespace(session=session))
        monkeypatch.setattr(processes, "measure", lambda name, case, steps, report: measure(name, report))
        monkeypatch.setattr(train_step, "BEGUN", time.monotonic())
        train_step.main([*words, "--output", str(tmp_path / "result.json")])
        return json.loads((tmp_path / "result.json").read_text())

    return run


FIRST, SECOND, THIRD = "ours, ZeRO-1", "transformers, DeepSpeed AutoEP ZeRO-1", "transformers, AdamW loop"


def test_a_contender_that_ends_badly_is_named_with_its_reason_and_the_others_go_on(run):
    def measure(name: str, report: Path) -> None:
        if name == FIRST:
            raise torch.OutOfMemoryError("CUDA out of memory")
        write_json(report, measured(1.0))
        if name == SECOND:
            raise ValueError("Error in the second half")

    result = run(measure, "--only", FIRST, SECOND, THIRD)
    assert "CUDA out of memory" in result["contenders"][FIRST]["failed"]
    assert "Error in the second half" in result["contenders"][SECOND]["cut"]
    assert result["contenders"][SECOND]["tokens_per_s"] == 128
    assert result["contenders"][THIRD].keys().isdisjoint({"failed", "cut"})
    assert [line.split(":")[0] for line in result["unfinished"]] == [FIRST, SECOND]


def test_what_time_does_not_allow_is_stopped_keeps_its_figures_or_is_named(run, monkeypatch, train_step):
    def measure(name: str, report: Path) -> None:
        write_json(report, measured(1.0))
        time.sleep(60)

    monkeypatch.setattr(train_step, "LEAST_S", 0.2)
    begun = time.monotonic()
    result = run(measure, "--only", FIRST, SECOND, "--seconds", "3")
    assert time.monotonic() - begun < 30
    assert result["contenders"][FIRST]["cut"].startswith("stopped after 1 s")
    assert result["contenders"][FIRST]["step_s"] == 1.0
    assert result["contenders"][SECOND] == {"failed": "not measured: 0 of 3 s are left, too few"}


def test_the_result_is_written_after_each_contender(run, tmp_path):
    def measure(name: str, report: Path) -> None:
        before = tmp_path / "result.json"
        there = len(json.loads(before.read_text())["contenders"]) if before.exists() else 0
        write_json(report, measured(1.0 + there))

    found = run(measure, "--only", FIRST, SECOND, THIRD)["contenders"]
    assert [found[name]["step_s"] for name in (FIRST, SECOND, THIRD)] == [1.0, 2.0, 3.0]


def test_the_flagships_slice_is_the_largest_that_has_room_on_80_gb(plans, contenders, monkeypatch):
    monkeypatch.setattr(contenders, "CUDA", True)
    whole = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
    case = plans.flagship_case(whole, 8, 4096)
    larger = replace(case, shape=whole.model_copy(update={"num_hidden_layers": case.shape.num_hidden_layers + 1}))
    usable = USABLE * accelerator_named("h100").memory_gib
    assert plans.planned(contenders.Ours(), case, "h100")["peak_gib"] <= usable
    assert plans.planned(contenders.Ours(), larger, "h100")["peak_gib"] > usable


def test_ours_stands_beside_the_plan_of_one_rank_and_a_gpu_that_is_not_known_says_so(plans, contenders):
    shape = load_model_shape(ROOT / "recipe/configs/models/30b-a3b").model_copy(update={"num_hidden_layers": 4})
    case, gpu = contenders.Case(shape, 4096, 4), accelerator_named("h200")
    found = plans.with_plans(measured(1.0, text=measured(2.0)), contenders.Ours(), case, gpu)
    balanced = plans.planned(contenders.Ours(), case, "h200", 1.0)
    assert found["planned_at_load"]["step_s"] == {
        "planned": balanced["step_s"],
        "measured_over_planned": pytest.approx(1 / balanced["step_s"]),
    }
    assert found["planned"]["step_s"]["planned"] == balanced["step_s"]  # one rank has all experts, and no imbalance
    twice = found["text"]["planned_at_load"]["step_s"]["measured_over_planned"]
    assert twice == pytest.approx(2 * found["planned_at_load"]["step_s"]["measured_over_planned"])
    assert "does not know" in plans.with_plans(measured(1.0), contenders.Ours(), case, None)["not_planned"]
    assert "planned" not in plans.with_plans(measured(1.0), contenders.megatron, case, gpu)


def test_tokens_are_the_same_in_every_process_and_texts_are_skewed(processes, contenders):
    case = contenders.Case(load_model_shape(ROOT / "recipe/configs/models/tiny"), 512, 4)
    uniform, text = (np.concatenate(processes.batches_of(kind, case)) for kind in ("uniform", "text"))
    assert np.array_equal(np.concatenate(processes.batches_of("text", case)), text)
    assert text.shape == uniform.shape == (16, 513)
    # By the law: (1 / 3.7) / sum of 1 / (r + 2.7) to rank 4,096, or 3.9%.
    assert (text == 0).mean() == pytest.approx(0.039, abs=0.006)
    assert (uniform == 0).mean() < 0.003


def test_the_stand_in_for_the_grouped_gemm_package_is_a_loop_over_experts(megatron):
    torch.manual_seed(0)
    rows, weight = torch.randn(12, 16, requires_grad=True), torch.randn(3, 16, 8, requires_grad=True)
    sizes = torch.tensor([5, 0, 7])
    plain = torch.cat([part @ weight[number] for number, part in enumerate(rows.split(sizes.tolist()))])
    ours = megatron.grouped_matmul(rows, weight, sizes)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(megatron.grouped_matmul(rows, weight.mT.contiguous(), sizes, trans_b=True), plain)
    gradient = torch.randn(12, 8)
    expected = torch.autograd.grad(plain, (rows, weight), gradient)
    torch.testing.assert_close(torch.autograd.grad(ours, (rows, weight), gradient), expected)


def test_the_fused_attention_given_to_megatron_is_causal_attention_of_grouped_heads(megatron):
    torch.manual_seed(0)
    q, k, v = torch.randn(6, 2, 4, 8), torch.randn(6, 2, 2, 8), torch.randn(6, 2, 2, 8)
    found = megatron.CoreAttention()(q, k, v, None)
    k, v = (t.repeat_interleave(2, dim=2) for t in (k, v))
    scores = torch.einsum("sbhd,tbhd->bhst", q, k) / 8**0.5
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), float("-inf"))
    torch.testing.assert_close(found, torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v).flatten(2))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--layers", 1), "--layers 1 must be between 2 and 4"),
        (("--seq", 100_000), "exceeds the model's"),
        (("--output", "nowhere/x.json"), "there is no folder nowhere"),
        (("--model", "nowhere"), "nowhere"),
        (("--only", "Caffe"), "invalid choice"),
        (("--seconds", "0"), "must be above 0 s"),
        (("--seconds", "soon"), "is not a number of seconds"),
        (("--table", "recipe/configs/models/tiny/config.json"), "is no result of this script"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(words, sentence, train_step, capsys):
    try:
        code = train_step.main([str(word) for word in words])
    except SystemExit as end:  # argparse's
        code = end.code
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_a_contender_that_fails_is_reported_and_the_table_says_why(train_step, tmp_path, capsys):
    committed = json.loads((ROOT / "benchmarks/results/train_step.json").read_text())
    committed["contenders"]["Megatron-Core"] = {"failed": "OutOfMemoryError: tried to allocate"}
    (tmp_path / "result.json").write_text(json.dumps(committed))
    train_step.main(["--table", str(tmp_path / "result.json")])
    assert "| Megatron-Core | OutOfMemoryError: tried to allocate |" in capsys.readouterr().out
