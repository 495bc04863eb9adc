"""Published rows: how close predictions are, and what is refused for which reason."""

from __future__ import annotations

import csv
import json

import pytest

from recipe.planner.tables.published import COLUMNS, Excluded, Prediction, predict
from recipe.planner.tables.published_models import MODELS, published_model
from tests.conftest import SHARED, needs_shared
from tests.in_process import run_script

# billions of parameters as the models' publishers state them
STATED = {
    "mixtral-8x7b": 46.7, "mixtral-8x22b": 141, "qwen3-30b-a3b": 30.5, "qwen3-235b-a22b": 235, "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 117, "dbrx": 132, "olmoe-1b-7b": 6.9, "glm-4.5-air": 106, "glm-4.5": 355, "deepseek-v2-lite": 15.7,
    "deepseek-v2": 236, "deepseek-v3": 671, "kimi-k2": 1027, "llama-7b": 6.7, "llama-65b": 65.2, "llama-3-70b": 70.6,
    "llama-3-405b": 405, "bloom-176b": 176, "gpt-3 175b": 175, "qwen2-57b-a14b": 57.4, "moonlight-16b": 16,
    "nemotron-3-nano-30b": 31.6, "gpt-181b": 181, "gpt-183b": 183, "gpt-187b": 187,
}  # fmt: skip


def row(**values: str) -> dict[str, str]:
    base = {
        "kind": "moe", "model": "Qwen3-30B-A3B", "seq": "4096", "gpus": "64", "gpu": "H100-80G", "precision": "bf16",
        "parallel": "EP8 FSDP64", "gbs_seqs": "512", "mbs": "2", "recompute": "full", "tok_s_gpu": "5000",
    }  # fmt: skip
    return dict.fromkeys(COLUMNS, "") | base | values


@pytest.mark.parametrize("name", STATED)
def test_the_table_of_models_has_the_parameters_that_their_publishers_state(name):
    model, source = MODELS[name]
    assert model.total_parameters / 1e9 == pytest.approx(STATED[name], rel=0.02)
    assert len(source) > 6


def test_models_are_found_by_the_names_that_rows_use():
    assert published_model("Qwen3-235B-A22B (H100)") == MODELS["qwen3-235b-a22b"]
    assert published_model("LLaMA-2-7B FSDP") == MODELS["llama-2-7b"]
    assert published_model("Nemotron-3-Ultra-550B") is None


def test_a_row_that_states_enough_is_predicted():
    found = predict(row())
    assert isinstance(found, Prediction)
    assert 1000 < found.predicted < 20_000
    assert found.assumed == ()


def test_what_is_assumed_is_said():
    found = predict(row(seq="", mbs="", recompute=""))
    assert isinstance(found, Prediction)
    assert set(found.assumed) == {"sequences of 4,096", "micro-batch 1", "selective recompute"}


def test_a_model_that_is_not_known_is_made_from_the_columns_of_its_shape():
    stated = {"model": "X", "layers": "48", "hidden": "2048", "experts": "128", "topk": "8", "total_B": "30.5"}
    assert predict(row(**stated)).predicted == pytest.approx(predict(row()).predicted, rel=0.2)


def test_without_a_pipeline_the_batch_hardly_matters():
    found = predict(row(gbs_seqs=""))
    assert found.assumed == ("one micro-batch a step",)
    assert found.predicted == pytest.approx(predict(row()).predicted, rel=0.1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tok_s_gpu": ""}, "no tokens/s"),
        ({"tok_s_gpu": "", "mfu_pct": "OOM"}, "'OOM'"),
        ({"model": "unheard-of"}, "shape"),
        ({"gpu": "TPU v5p"}, "TPU v5p"),
        ({"gpus": ""}, "number of GPUs"),
        ({"parallel": ""}, "how it is parallelised"),
        ({"parallel": "MCore 5D"}, "degrees"),
        ({"gbs_seqs": "", "parallel": "TP2 PP4 EP8"}, "global batch"),
        ({"gbs_seqs": "", "mbs": ""}, "global batch"),
        ({"precision": "fp8"}, "fp8"),
        ({"parallel": "TP8 PP16", "gpus": "64"}, "does not fit"),
        ({"parallel": "FSDP (ZeRO-3 only)"}, "no expert parallelism"),
        ({"note": "optimizer offload"}, "offload"),
        ({"parallel": "FSDP64 DeepEP"}, "expert-parallel size"),
    ],
)
def test_a_row_that_does_not_is_excluded_with_its_reason(values, reason):
    found = predict(row(**values))
    assert isinstance(found, Excluded)
    assert reason in found.reason


def test_more_communication_is_predicted_to_be_slower():
    inside, across = predict(row(parallel="EP8 FSDP64")), predict(row(parallel="EP32 FSDP64"))
    assert across.predicted < inside.predicted
    assert predict(row(recompute="none")).predicted > inside.predicted


@pytest.mark.parametrize(
    "slower",
    ["no prefetch", "gathers on demand", "eager", "without overlap"],
)
def test_lost_overlap_and_slower_software_are_read_from_the_note(slower):
    assert predict(row(note=slower)).predicted < predict(row()).predicted


def test_selective_recompute_of_torchtitan_runs_every_second_matmul_again():
    none, norms, half, full = (
        predict(row(recompute=words)).predicted for words in ("none", "selective", "selective op", "full")
    )
    assert none > norms > half > full
    assert predict(row(recompute="selective", source="pytorch/torchtitan docs")).predicted == half


def test_weights_that_are_kept_after_the_forward_pass_are_gathered_once():
    assert predict(row(mbs="1", note="reshard_after_forward=False")).predicted > predict(row(mbs="1")).predicted


def test_the_expert_parallel_size_may_be_in_the_note():
    stated = predict(row(parallel="FSDP64", note="DeepEP EP16"))
    assert (stated.run.strategy.ep, stated.assumed) == (16, ())
    assert stated.run.strategy.node_copies < 1


def test_what_a_source_says_of_all_its_moe_rows_holds_for_each():
    across = {"parallel": "EP32 FSDP64", "mbs": "4"}
    assert (
        predict(row(**across, source="NVIDIA-NeMo/Automodel docs")).predicted
        == predict(row(**across, note="DeepEP")).predicted
    )
    assert predict(row(**across, note="DeepEP")).predicted > predict(row(**across)).predicted


def test_the_range_is_around_the_prediction():
    found = predict(row())
    assert found.low < found.predicted < found.high
    assert predict(row(tok_s_gpu=str(found.predicted))).inside
    assert not predict(row(tok_s_gpu=str(2 * found.predicted))).inside


def accuracy(path, *more: str):
    return run_script("benchmarks/planner_accuracy.py", "--rows", path, *more)


@needs_shared
def test_the_median_error_over_published_runs_is_below_fifteen_percent():
    done = accuracy(SHARED / "throughput" / "published.csv", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["median_error"] < 0.15
    assert figures["median_error_moe"] < 0.15
    assert figures["rows_predicted"] >= 69
    rows = list(csv.DictReader(open(SHARED / "throughput" / "published.csv", encoding="utf-8")))
    assert figures["rows_predicted"] + figures["rows_excluded"] == len(rows)


@needs_shared
def test_sources_that_a_fit_has_not_seen_are_predicted_and_are_in_the_range_as_it_claims():
    done = accuracy(SHARED / "throughput" / "published.csv", "--splits", "--json")
    for name in ("one_source_out", "3_folds"):
        figures = json.loads(done.stdout)["splits"][name]
        assert figures["sources_left_out"]["all"]["median_error"] < 0.15
        assert figures["sources_left_out"]["moe"]["median_error"] < 0.25
        assert 0.75 < figures["in_range_mean_of_sources"] < 0.95  # the range claims four of five


def test_any_file_of_these_columns_is_taken(tmp_path):
    path = tmp_path / "rows.csv"
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows([row(), row(gpu="TPU v5p")])
    done = accuracy(path)
    assert "1 of 2 excluded" in done.stdout
    assert "the GPU 'TPU v5p' is not known" in done.stdout


@pytest.mark.parametrize("text", ["a,b\n1,2\n", None])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    done = accuracy(path)
    assert done.returncode == 2
    assert "rows.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_measuring_a_gpu_without_one_is_refused():
    words = ("--ds-config", "ds_configs/h200_1.json", "--model", "recipe/configs/models/1b-a0.3b")
    done = run_script("benchmarks/planner_gpu.py", *words)
    assert (done.returncode, "there is none" in done.stderr) == (2, True)
