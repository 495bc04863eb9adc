"""The planner's command, as a user runs it."""

from __future__ import annotations

import json
from functools import partial

import pytest

import recipe.scaling.cost.tokens
import recipe.scaling.measured
from recipe.base.ds_config import load_ds_config
from recipe.scaling.interval import predict
from tests.conftest import ROOT, run_python
from tests.in_process import run_script
from tests.planted_ladder import LAWS, NATS, write_ladder

pytestmark = pytest.mark.xdist_group("planner")  # beside tests/test_docs.py: they share what the planner has searched

MODEL = ("--model", "recipe/configs/models/30b-a3b")
FLAGSHIP = (*MODEL, "--ds-config", "ds_configs/a100_256.json", "--interconnect", "400g")


def plan(*words: object):
    return run_script("launch/plan.py", *words)


def test_a_plan_says_memory_communication_time_and_money():
    done = plan(*FLAGSHIP)
    assert done.returncode == 0, done.stderr
    for word in ("memory", "optimizer moments", "all_to_all", "dispatch", "NVLink", "network", "exposed all-to-all",
                 "conservative", "MFU / HFU", "goodput", "GPU-hours", "USD"):  # fmt: skip
        assert word in done.stdout, word


def test_a_plan_says_what_its_range_claims():
    for words in (FLAGSHIP, RUN_FLAGSHIP):
        (line,) = [line for line in plan(*words).stdout.splitlines() if line.startswith("time ")]
        assert "the range claims 4 of 5 runs" in line


def test_a_plan_without_a_ladder_imports_nothing_that_takes_longer_than_itself():
    slow = ("torch", "deepspeed", "transformers", "numpy", "scipy")
    words = ["launch/plan.py", *map(str, FLAGSHIP)]
    code = f"import sys, launch.plan; launch.plan.main({words[1:]}); sys.exit(any(m in sys.modules for m in {slow}))"
    assert run_python("-c", code).returncode == 0


def test_json_has_all_that_the_text_has():
    found = json.loads(plan(*FLAGSHIP, "--json").stdout)
    assert found["problems"] == []
    assert found["peak_gib"] == pytest.approx(sum(found["memory_gib"][found["peak_moment"]].values()))
    days = [found["time"][name]["days"] for name in ("optimistic", "expected", "conservative")]
    assert days == sorted(days)
    assert {c["op"] for c in found["collectives"]} == {"all_to_all", "all_gather", "reduce_scatter", "all_reduce"}
    expected = found["time"]["expected"]
    parts = ("compute_s", "optimizer_s", "contention_s", "straggler_s")
    assert expected["step_s"] == pytest.approx(sum(expected[p] for p in parts) + sum(expected["exposed_s"].values()))


def test_goodput_is_a_range_and_days_follow_it():
    found = json.loads(plan(*FLAGSHIP, "--json").stdout)
    goodput = found["goodput"]
    assert goodput["low"] < goodput["expected"] < goodput["high"] < 1
    shares = {"optimistic": goodput["high"], "expected": goodput["expected"], "conservative": goodput["low"]}
    for name, share in shares.items():
        assert found["reliability"][name]["goodput"] == share
        steps = 1e12 / found["tokens_per_step"]
        assert found["time"][name]["days"] == pytest.approx(steps * found["time"][name]["step_s"] / share / 86_400)
    text = plan(*FLAGSHIP).stdout
    assert f"goodput     {goodput['expected']:.1%} ({goodput['low']:.1%} to {goodput['high']:.1%})" in text
    reshard = found["reshard"]["expected"]
    assert reshard["host_memory_bytes"] > reshard["written_bytes"] > 360e9
    assert "reshard     only for another number of GPUs: " in text


def test_a_cluster_that_is_known_is_planned_without_a_range_of_failures():
    known = ("--failures-per-gpu-day", "0", "--restart-s", "300", "--node-storage-gb-per-s", "2.5")
    found = json.loads(plan(*FLAGSHIP, "--json", *known).stdout)
    assert len({tuple(r.values()) for r in found["reliability"].values()}) == 1
    assert found["goodput"]["low"] == found["goodput"]["high"] > 0.9998
    assert found["reliability"]["expected"]["mtbf_s"] is None
    assert "failures    none" in plan(*FLAGSHIP, *known).stdout
    run = ("--config", "recipe/configs/runs/pretrain_30b.yaml", *FLAGSHIP[2:])
    rare, often = (plan(*run, "--failures-per-gpu-day", rate).stdout for rate in ("0.0001", "0.01"))
    goodput = [float(text.split("goodput     ")[1].split("%")[0]) for text in (rare, often)]
    assert goodput[0] > goodput[1] + 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--failures-per-gpu-day", "-1"), "--failures-per-gpu-day -1 is not between 0 and 1"),
        (("--failures-per-gpu-day", "nan"), "--failures-per-gpu-day nan is not between 0 and 1"),
        (("--restart-s", "10"), "--restart-s 10 is less than the 64 s that compiling takes"),
        (("--node-storage-gb-per-s", "0"), "--node-storage-gb-per-s 0 is not above 0"),
    ],
    ids=["negative_rate", "rate_that_is_no_number", "restart_too_short", "no_storage"],
)
def test_what_no_cluster_has_is_refused(words, said):
    done = plan(*FLAGSHIP, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_measured_imbalance_takes_the_place_of_the_range():
    whole = (*FLAGSHIP, "--json", "--recompute", "non_reentrant")
    balanced, skewed = (json.loads(plan(*whole, "--imbalance", i).stdout) for i in (1.0, 2.0))
    assert skewed["peak_gib"] > balanced["peak_gib"] + 3
    for name in ("optimistic", "expected", "conservative"):
        assert skewed["time"][name]["step_s"] > 1.2 * balanced["time"][name]["step_s"]


def test_a_plan_says_what_is_kept_and_in_how_many_parts_tokens_travel():
    text = plan(*FLAGSHIP).stdout
    recipe = json.loads((ROOT / "ds_configs/a100_256.json").read_text())["recipe"]
    assert (
        f"kept        {recipe['kept_gib']:g} GiB of results that are not computed again: attention of 24 layers" in text
    )
    assert f"exchanges   of an MoE layer in {recipe['exchange_parts']} parts" in text
    again = plan(*FLAGSHIP, "--recompute", "non_reentrant").stdout
    assert "kept  " not in again
    values = json.loads(plan(*FLAGSHIP, "--json").stdout)
    assert {name: values[name] for name in recipe} == recipe
    assert values["kept_layers"]["attention"] == 24


@pytest.fixture
def calibration(tmp_path):
    """The file of an H200 whose matmuls, grouped GEMM and whole steps were measured."""
    path = tmp_path / "h200.json"
    constants = {"matmul_efficiency": 0.82, "grouped_gemm": 0.7, "run_efficiency": 0.8}
    path.write_text(json.dumps({
        "format": 2, "gpu": "h200", "device": "NVIDIA H200", "date": "2026-11-28", "commit": "abcdef0123456789", "dirty": False,
        "driver": None, "packages": {"torch": "2.11.0"}, "constants": constants, "steps": {"ours, ZeRO-3": 1.5},
    }))  # fmt: skip
    return path


def test_a_calibrated_plan_says_what_was_measured_on_what_and_when(calibration):
    done = plan(*FLAGSHIP, "--calibration", calibration)
    assert done.returncode == 0, done.stderr
    for words in ("256 x h200", "measured on 1 x NVIDIA H200, 2026-11-28, commit abcdef012345; torch 2.11.0",
                  "share of the bf16 peak            0.82      0.74", "long attention, share of the bf16 peak             -      0.58",
                  "of other steps: 1.50 (ours, ZeRO-3)", "one GPU was measured, not 256: NVLink, the network"):  # fmt: skip
        assert words in done.stdout, words
    measured = json.loads(plan(*FLAGSHIP, "--calibration", calibration, "--json").stdout)
    assert measured["gpu"] == "h200"
    assert measured["calibration"]["constants"]["grouped_gemm"] == {"measured": 0.7, "assumed": 0.8}
    assert measured["calibration"]["constants"]["hbm_efficiency"] == {"measured": None, "assumed": 0.75}
    assert measured["calibration"]["date"] == "2026-11-28"
    assert measured["time"]["expected"]["assumptions"]["compute"] == pytest.approx(0.8)
    assumed = json.loads(plan(*FLAGSHIP, "--gpu", "h200", "--json").stdout)
    assert "calibration" not in assumed
    assert measured["peak_gib"] == assumed["peak_gib"]
    assert measured["collectives"] == assumed["collectives"]
    assert measured["time"]["expected"]["compute_s"] != assumed["time"]["expected"]["compute_s"]


def test_a_calibrated_search_and_the_recipes_own_choice(calibration):
    small = (*MODEL, "--gpus", 16, "--zero", 1, "--ep", 8, "--global-batch-tokens", "1M", "--calibration", calibration)
    searched = plan(*small, "--search")
    assert "measured on 1 x NVIDIA H200" in searched.stdout
    assert json.loads(plan(*small, "--search", "--json").stdout)["plan"]["calibration"]["gpu"] == "h200"
    assert "measured on 1 x NVIDIA H200" in plan(*small).stdout


def test_a_calibration_of_another_gpu_is_refused(calibration):
    done = plan(*FLAGSHIP, "--gpu", "h100", "--calibration", calibration)
    assert done.returncode == 2
    assert "was measured on a GPU of type h200, and --gpu is h100; leave --gpu out" in done.stderr
    assert plan(*FLAGSHIP, "--gpu", "h200", "--calibration", calibration).returncode == 0


RUN = ("--config", "recipe/configs/runs/pretrain_30b.yaml")
RUN_FLAGSHIP = (*RUN, "--ds-config", "ds_configs/a100_256.json", "--interconnect", "400g")


def test_a_run_config_is_planned_by_its_phases():
    done = plan(*RUN_FLAGSHIP)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    names = ["ramp_4m", "ramp_8m", "stable", "decay", "long_32k", "long_64k"]
    assert [name for name in rows if name in names] == names
    assert {"phase", "all", "time", "cost"} <= rows.keys()
    found = json.loads(plan(*RUN_FLAGSHIP, "--json").stdout)
    assert [phase["name"] for phase in found["phases"]] == names
    assert found["total"]["tokens"] == found["phases"][-1]["end_tokens"] == 10**12
    days = sum(phase["plan"]["time"]["expected"]["days"] for phase in found["phases"])
    assert found["total"]["cost"]["expected"]["days"] == pytest.approx(days)
    assert f"{days:.1f} days" in rows["time"]
    for phase in found["phases"]:
        assert f"{phase['steps']:,}" in rows[phase["name"]]
        assert phase["rope_parameters"]["rope_theta"] == (1e6 if "long" in phase["name"] else 5e5)


def test_a_phase_is_planned_with_all_its_terms():
    done = plan(*RUN_FLAGSHIP, "--phase", "long_32k")
    assert "batch       1 x 32,768 tokens a rank, 1 accumulated" in done.stdout
    assert "kept results" in done.stdout
    masked = plan(*RUN_FLAGSHIP, "--phase", "stable", "--set", "data.document_attention=true")
    assert "attention mask" in masked.stdout
    short = json.loads(plan(*RUN_FLAGSHIP, "--phase", "long_32k", "--document-tokens", 4096, "--json").stdout)
    whole = json.loads(plan(*RUN_FLAGSHIP, "--phase", "long_32k", "--json").stdout)
    assert short["time"]["expected"]["step_s"] < whole["time"]["expected"]["step_s"]


def test_a_calibrated_run_says_what_was_measured(calibration):
    done = plan(*RUN_FLAGSHIP, "--calibration", calibration)
    assert "measured on 1 x NVIDIA H200" in done.stdout
    assert (
        json.loads(plan(*RUN_FLAGSHIP, "--calibration", calibration, "--json").stdout)["calibration"]["gpu"] == "h200"
    )


def test_without_a_ds_config_the_recipes_own_choice_is_planned(tmp_path):
    path = tmp_path / "found.json"
    done = plan(*MODEL, "--gpus", 256, "--interconnect", "400g", "--write", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plan(*FLAGSHIP).stdout
    assert path.read_text() == (ROOT / "ds_configs/a100_256.json").read_text()


def test_a_search_writes_a_ds_config_that_loads_and_is_what_it_said(tmp_path):
    path = tmp_path / "found.json"
    done = plan(
        *MODEL,
        "--gpus",
        64,
        "--interconnect",
        "8x200g",
        "--search",
        "--global-batch-tokens",
        "4M",
        "--write",
        path,
        "--zero",
        1,
        "--zero",
        3,
        "--ep",
        1,
        "--ep",
        8,
    )
    assert done.returncode == 0, done.stderr
    assert "choices" in done.stdout
    assert "out of memory" in done.stdout
    assert "on paper" in done.stdout
    ds, _ = load_ds_config(path)
    assert (ds.world_size, ds.train_batch_size) == (64, 1024)
    again = plan(
        *MODEL, "--ds-config", path, "--recompute", "none" if "no recompute" in first_choice(done) else "non_reentrant"
    )
    assert again.returncode == 0, again.stderr


def first_choice(done) -> str:
    return done.stdout.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "--model is missing"),
        ((*FLAGSHIP, "--search"), "give either --ds-config or --search"),
        ((*MODEL, "--search"), "--gpus is missing"),
        (RUN, "--ds-config is missing"),
        (
            (*RUN_FLAGSHIP, *MODEL, "--seq", 8192, "--recompute", "none", "--tokens", "1e9", "--no-compile"),
            "--model, --seq, --recompute, --compile, --tokens: not with --config",
        ),
        (
            (*FLAGSHIP, "--phase", "stable", "--set", "seed=1"),
            "--set goes with --config; give the run config; --phase goes",
        ),
        ((*RUN_FLAGSHIP, "--phase", "anneal"), "--phase anneal is none of the run config's: ramp_4m"),
        (
            (*RUN_FLAGSHIP, "--set", "schedule.total_tokens=2000000000000"),
            "the phases have 1,000,000,000,000 tokens together",
        ),
        ((*RUN_FLAGSHIP, "--gpu", "a100-40gb"), "phases.4 (long_32k): needs"),
        ((*RUN_FLAGSHIP, "--set", "data.document_attention=true", "--imbalance", 2), "set phases.2.kept_gib"),
        ((*MODEL, "--ds-config", "ds_configs/nope.json"), "nope.json"),
        (("--model", "nope", "--ds-config", "ds_configs/a100_256.json"), "nope"),
        ((*FLAGSHIP, "--gpus", 512), "launch 256 or use the ds_config for 512"),
        ((*FLAGSHIP[:-1], "slow"), "--interconnect slow is not understood"),
        ((*FLAGSHIP, "--gpu", "a100"), "choose one of a100-40gb, a100-80gb"),
        ((*FLAGSHIP, "--seq", 16384), "lower --seq"),
        ((*FLAGSHIP, "--imbalance", "2"), "set recipe.kept_gib 20"),
        ((*FLAGSHIP, "--recompute", "none"), "set train_micro_batch_size_per_gpu 2"),
        ((*FLAGSHIP, "--write", "x.json"), "the given one is already written"),
        (
            (*MODEL, "--search", "--gpus", 64, "--write", "/dev/null/x.json"),
            "--write /dev/null/x.json cannot be written",
        ),
        ((*FLAGSHIP, "--calibration", "nope.json"), "nope.json does not exist"),
        ((*FLAGSHIP, "--calibration", "ds_configs/a100_256.json"), "is not a calibration file"),
        (
            (*MODEL, "--cpu-ranks", 4, "--write", "x.json", "--calibration", "y.json"),
            "--calibration does not go with --cpu-ranks",
        ),
        ((*FLAGSHIP, "--imbalance", "0.5"), "--imbalance 0.5 is below 1"),
        ((*MODEL, "--search", "--gpus", 60), "multiple of 8"),
        ((*MODEL, "--search", "--gpus", 64, "--ep", 7), "no expert-parallel size of 7 divides"),
        ((*MODEL, "--search", "--gpus", 8, "--gpu", "a100-40gb", "--zero", 1), "choices fits"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(words, sentence):
    done = plan(*words)
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ds_config_whose_experts_do_not_divide_is_refused(tmp_path):
    config = json.loads((ROOT / "ds_configs/a100_256.json").read_text())
    config["expert_parallel"]["autoep_size"] = 64
    config["zero_optimization"]["zero_hpz_partition_size"] = 8
    (tmp_path / "ds.json").write_text(json.dumps(config))
    done = plan(*MODEL, "--ds-config", tmp_path / "ds.json")
    assert done.returncode == 2
    assert "refused by DeepSpeed for ZeRO-3 with AutoEP" in done.stderr
    del config["zero_optimization"]["zero_hpz_partition_size"]
    (tmp_path / "ds.json").write_text(json.dumps(config))
    done = plan(*MODEL, "--ds-config", tmp_path / "ds.json")
    assert done.returncode == 2
    assert "does not divide the model's 96 routed experts; choose a divisor" in done.stderr


def test_one_node_and_a_small_model_are_written_as_they_are():
    done = plan("--model", "recipe/configs/models/tiny", "--ds-config", "ds_configs/cpu_2.json", "--seq", 128)
    model, cluster = done.stdout.splitlines()[:2]
    assert model == "model       2.39M parameters, 1.73M active"
    assert cluster == "cluster     2 x a100-80gb, 1 node"


def test_a_model_that_fits_no_choice_needs_more_than_another_setting():
    done = plan(*MODEL, "--gpus", 8)
    assert done.returncode == 2
    assert "use more GPUs" in done.stderr
    assert "; set " not in done.stderr


@pytest.fixture
def few_draws(monkeypatch):
    """Of the intervals, which are not what is looked at here."""
    for module in (recipe.scaling.measured, recipe.scaling.cost.tokens):
        monkeypatch.setattr(module, "predict", partial(predict, draws=10))


@pytest.fixture
def ladder(tmp_path, few_draws):
    return write_ladder(tmp_path / "ladder.json", "30b-a3b")


def test_a_plan_with_a_ladder_says_the_loss_and_what_the_batch_costs(ladder):
    done = plan(*FLAGSHIP, "--loss", ladder, "--json")
    assert done.returncode == 0, done.stderr
    loss = json.loads(done.stdout)["loss"]
    assert set(loss["sources"]) == set(LAWS)
    bits, nats = loss["sources"]["en"]["bits_per_byte"], loss["sources"]["en"]["loss"]
    assert bits["low"] < bits["value"] < bits["high"]
    assert nats["value"] == pytest.approx(NATS * bits["value"])
    batch = loss["batch"]
    assert 1 < batch["factor"]["low"] < batch["factor"]["value"] < batch["factor"]["high"]
    days = json.loads(done.stdout)["time"]["expected"]["days"]
    assert batch["days"]["value"] == pytest.approx(days * (batch["factor"]["value"] - 1))
    text = plan(*FLAGSHIP, "--loss", ladder).stdout
    assert f"{bits['value']:.4f} bits per byte" in text
    assert f"With 8.39M this loss takes {batch['factor']['value'] - 1:.0%}" in text


def test_more_tokens_and_a_smaller_batch_lower_the_loss_and_the_price_of_the_batch(ladder):
    def planned(*words):
        return json.loads(
            plan(*MODEL, "--gpus", 256, "--interconnect", "400g", "--loss", ladder, "--json", *words).stdout
        )["loss"]

    usual, longer, small = planned(), planned("--tokens", "4T"), planned("--global-batch-tokens", "4M")
    assert longer["sources"]["zh"]["loss"]["value"] < usual["sources"]["zh"]["loss"]["value"]
    assert small["batch"]["factor"]["value"] < usual["batch"]["factor"]["value"]
    assert longer["batch"]["factor"]["value"] < usual["batch"]["factor"]["value"]


RANKED = ("--search", "--gpus", 16, "--zero", 3, "--ep", 8, "--global-batch-tokens", "1M", "--usd-per-gpu-hour", 2)


def test_models_clusters_and_batches_are_ranked_by_the_cost_of_a_loss(ladder):
    models = ("recipe/configs/models/30b-a3b", "recipe/configs/models/1b-a0.3b")
    words = ("--model", *models, *RANKED, "--gpus", 64, 128, "--global-batch-tokens", "1M", "2M", "--loss", ladder)
    done = plan(*words, "--target-bits-per-byte", "en=0.6", "zh=0.75", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["target_bits_per_byte"] == {"en": 0.6, "zh": 0.75}
    *ranked, refused = found["choices"]
    assert {(c["model"], c["gpus"], c["global_batch_tokens"]) for c in ranked} == {
        ("30b-a3b", gpus, batch) for gpus in (64, 128) for batch in (2**20, 2**21)
    }
    usd = [choice["usd"]["value"] for choice in ranked]
    assert usd == sorted(usd)
    for choice in ranked:
        assert choice["usd"]["low"] < choice["usd"]["value"] < choice["usd"]["high"]
        assert choice["gpu_hours"]["value"] * 2 == pytest.approx(choice["usd"]["value"])
        assert choice["ds_config"]["train_batch_size"] * 4096 == choice["global_batch_tokens"]
    assert refused["model"] == "1b-a0.3b"
    assert "an active share of 0.072 and the model 0.108" in refused["reason"]


def test_one_number_is_the_target_of_every_source(ladder):
    done = plan(*MODEL, *RANKED, "--gpus", 64, "--loss", ladder, "--target-bits-per-byte", "0.8")
    assert done.returncode == 0, done.stderr
    title, head, row, *_ = done.stdout.splitlines()
    assert title == "cost of a loss: en 0.8, zh 0.8 bits per byte"
    assert head.split()[:3] == ["model", "GPUs", "batch"]
    assert row.split()[:3] == ["30b-a3b", "64", "1.05M"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*FLAGSHIP, "--loss", "nope.json"), "nope.json does not exist"),
        ((*FLAGSHIP, "--loss", "ds_configs/a100_256.json"), "is no ladder.json of version 1"),
        (("--model", "recipe/configs/models/7b-a1b", "--gpus", 8, "--loss", "LADDER"), "the model 0.108, of which the ladder says nothing"),
        ((*RUN_FLAGSHIP, "--loss", "LADDER"), "--loss goes with --model"),
        ((*MODEL, "--cpu-ranks", 4, "--write", "x.json", "--loss", "LADDER"), "--loss does not go with --cpu-ranks"),
        ((*MODEL, "recipe/configs/models/7b-a1b", "--gpus", 8, 16, "--search"), "several values of --model, --gpus go with"),
        ((*MODEL, "--gpus", 8, "--global-batch-tokens", "1M", "2M"), "several values of --global-batch-tokens go with"),
        ((*MODEL, "--target-bits-per-byte", 1), "--target-bits-per-byte needs --search, --loss, --gpus; give it"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", 1, "--tokens", "1T", "--write", "x.json"), "--tokens, --write: not with"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "low"), "--target-bits-per-byte low is no number above 0"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "en=-1"), "--target-bits-per-byte en=-1 is no number above 0"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "0.7", "en=0.6"), "is for all sources; give it alone"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "fr=0.7"), "give each source once; the ladder has en, zh"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "en=0.7", "en=0.6"), "give each source once"),
        ((*MODEL, "./recipe/configs/models/30b-a3b", *RANKED, "--loss", "LADDER", "--target-bits-per-byte", 1), "have the same name"),
        ((*MODEL, *RANKED, "--loss", "LADDER", "--target-bits-per-byte", "0.1"), "30b-a3b: no number of tokens is enough"),
        ((*MODEL, *RANKED, "--gpus", 60, "--loss", "LADDER", "--target-bits-per-byte", "0.8"), "multiple of 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_priced_is_refused_in_a_sentence(ladder, words, sentence):
    done = plan(*(ladder if word == "LADDER" else word for word in words))
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
