"""Every shipped ds_config, rehearsed as its cluster's rank 0."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from launch import rehearse as script
from recipe.base.ds_config import RecipeSection, load_ds_config
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.strict import load_yaml
from recipe.planner.search import shipped
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT, run_forked, run_python
from tests.patience import PATIENCE_S

MODELS = ROOT / "recipe/configs/models"
RUN = ROOT / "recipe/configs/runs/pretrain_30b.yaml"


def rehearse(*words: object, **options):
    return run_forked("launch/rehearse.py", *words, **options)


@pytest.mark.distributed
def test_the_quickstarts_ds_config_is_rehearsed():
    done = rehearse("--ds-config", "ds_configs/cpu_2.json", "--model", MODELS / "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut to fit this machine: 2 of 4 layers" in done.stdout
    assert "recompute non_reentrant; exchanges of tokens in 1 part\n" in done.stdout
    assert "the engine does what is planned" in done.stdout
    assert "is deprecated" not in done.stderr
    phases = re.findall(r"^rehearse: +[\d.ms ]+  (.*)$", done.stderr, re.M)
    starts = ("ds_configs/cpu_2.json with ", "building the engine as rank 0 of 2, ", "step 1 of 3, ", "step 2 of 3, ",
              "step 3 of 3, which is counted; micro-batches: 1, sequences of each: 8", "comparing with the plan")  # fmt: skip
    assert len(phases) == len(starts), done.stderr
    assert all(phase.startswith(start) for phase, start in zip(phases, starts, strict=True)), phases


@pytest.fixture
def in_phases(tmp_path):
    """The quickstart's run config with sequences four times as long in its second phase, of which each rank has one."""
    values = load_yaml(ROOT / "recipe/configs/runs/quickstart.yaml")
    values["phases"] = [
        {"name": "short", "tokens": 500000},
        {
            "name": "long", "batch_tokens": 1024, "data": {"seq_length": 512, "document_attention": True},
            "rope_parameters": {"rope_theta": 1000000.0},
        },
    ]  # fmt: skip
    path = tmp_path / "phases.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.distributed
def test_each_phase_of_a_run_config_is_rehearsed_as_it_is_planned(in_phases):
    done = rehearse("--ds-config", "ds_configs/cpu_2.json", "--config", in_phases, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    short, long = json.loads(done.stdout)
    assert (short["phase"], long["phase"]) == ("short", "long")
    assert short["agrees"] is long["agrees"] is True
    assert [report["cut"]["seq_length"] for report in (short, long)] == [16, 64]
    exchanged = [
        sum(row["engine"] for row in report["collectives"] if row["op"] == "all_to_all") for report in (short, long)
    ]
    assert exchanged[0] == pytest.approx(2 * exchanged[1], rel=0.05)  # 8 x 16 tokens a rank, and 1 x 64


@pytest.mark.distributed
def test_a_chosen_phase_is_rehearsed_with_its_positions_and_documents(in_phases):
    done = rehearse("--ds-config", "ds_configs/cpu_2.json", "--config", in_phases, "--phase", "long")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        "phase long: 1 x 1 sequences of 512 a rank, base frequency 1,000,000, attention inside documents\n"
    )
    assert "sequences of 64; widths" in done.stdout
    assert "the engine does what is planned" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "recompute", "line"),
    [
        ({}, "non_reentrant", "recompute non_reentrant; exchanges of tokens in 1 part"),
        (
            {"kept_gib": 2.5e-4, "exchange_parts": 2}, "selective",
            "recompute selective, which keeps attention of 4 layers, attention_projection of 4 layers, gate_up of 4 layers, "
            "query_key_value of 4 layers, shared_gate_up of 4 layers, rows of 4 layers within recipe.kept_gib 0.00025; exchanges of "
            "tokens in 2 parts",
        ),
        ({"kept_gib": 2.5}, "reentrant", "recompute reentrant, which leaves recipe.kept_gib 2.5 unused; exchanges of tokens in 1 part"),
    ],
)  # fmt: skip
def test_the_report_says_what_is_kept_as_the_ds_config_has_it(recipe, recompute, line):
    ds = load_ds_config("ds_configs/cpu_2.json")[0].model_copy(update={"recipe": RecipeSection(**recipe)})
    work = Workload(load_model_shape(MODELS / "tiny"), cluster_of("a100-80gb", 2, None), ds, RunFacts(1, recompute))
    assert script._recomputed(work) == line
    assert recompute == "reentrant" or script.recompute_for(ds) == recompute


def test_every_mode_can_be_rehearsed():
    words = ["--ds-config", "ds_configs/cpu_2.json", "--model", "m", "--recompute"]
    assert script.RECOMPUTES == ("none", "reentrant", "non_reentrant", "selective")
    assert [script.parse([*words, mode]).recompute for mode in script.RECOMPUTES] == list(script.RECOMPUTES)


@pytest.mark.slow
@pytest.mark.parametrize("config", shipped.SHIPPED, ids=lambda s: s.name)
def test_every_shipped_ds_config_does_what_is_planned(config):
    recompute = shipped.chosen(config).plan.work.run.recompute
    done = rehearse(
        "--ds-config", config.path, "--model", MODELS / config.model, "--recompute", recompute, "--world", config.gpus,
        "--vocab", 512, "--seq", 8, "--json", timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["agrees"] is True
    assert report["groups"]["world"] == config.gpus


@pytest.mark.slow
def test_the_flagships_first_long_phase_does_what_is_planned():
    words = (
        "--ds-config",
        "ds_configs/a100_256.json",
        "--config",
        RUN,
        "--phase",
        "long_32k",
        "--vocab",
        512,
        "--seq",
        2,
    )
    done = rehearse(*words, "--json", timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)
    assert (report["phase"], report["agrees"], report["groups"]["world"]) == ("long_32k", True, 256)
    assert report["cut"]["seq_length"] == 2 * 32768 // 4096


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ds_configs/nope.json", "--model", MODELS / "tiny"), "nope.json"),
        (("ds_configs/a100_256.json", "--model", MODELS / "30b-a3b", "--world", 64), "launch 256"),
        (("ds_configs/cpu_2.json", "--model", MODELS / "tiny", "--layers", 1), "between 2 and"),
        (("ds_configs/cpu_2.json", "--model", MODELS / "tiny", "--phase", "long"), "give it as --config"),
        (("ds_configs/a100_64.json", "--config", RUN, "--phase", "anneal"), "none of the run config's: ramp_4m"),
        (("ds_configs/a100_64.json", "--config", RUN, "--world", 256), "launch 64"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_in_a_sentence(words, sentence, capsys):
    assert script.main(["--ds-config", *map(str, words)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_itself_refuses_without_a_traceback():
    done = run_python("launch/rehearse.py", "--ds-config", "ds_configs/nope.json", "--model", MODELS / "tiny")
    assert done.returncode == 2
    assert "nope.json" in done.stderr
    assert "Traceback" not in done.stderr
