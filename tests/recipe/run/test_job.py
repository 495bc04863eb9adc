"""What a run will need later is asked for by a dry run and a start, in this process."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import socket
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from data_prep import tokenize_corpus
from recipe import train
from recipe.base.errors import ConfigError, UserError
from recipe.base.settings import load_run_config
from recipe.checkpoints.export import check_export_folder
from recipe.data.token_folder import TokenFolder
from recipe.run.job import _check_held_out, _check_outputs, check_job, check_prometheus
from recipe.telemetry import prometheus
from tests.conftest import ROOT, free_port
from tests.recipe.data.test_token_folder import far_end

QUICKSTART = ROOT / "recipe/configs/runs/quickstart.yaml"


@pytest.fixture
def dry(new_run, write_ds, capsys):
    """The exit code and the message of a dry run with overrides."""
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)

    def run(*overrides: str) -> tuple[int, str]:
        words = [word for override in overrides for word in ("--set", override)]
        code = train.main([str(word) for word in new_run("dry").arguments(ds_path, "--dry-run", *words)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run_dir=/proc/run", "/proc is of the kernel's file system proc"),
        ("run_dir={file}", "is no folder"),
        ("run_dir={file}/a/b", "so nothing can be made below it"),
        ("run_dir={folder}/run [v1]", "from which DeepSpeed cannot load checkpoints"),
        ("run_dir={folder}/a*/run", "from which DeepSpeed cannot load checkpoints"),
        ("data.mixture.factors={{en: 0, zh: 0}}", "not be zero for all sources"),
        ("data.mixture.factors={{fr: 1}}", "factors names fr"),
        ("data.mixture.weights={{en: 1, 'no': 1}}", "the mixture names ['en', 'no'] but the tokens have ['en', 'zh']"),
        ("schedule.peak_lr=[1", "--set schedule.peak_lr=[1: the value"),
        ("logging.prometheus_port={port}", "Address already in use"),
        ("logging.trackers=[comet]", "logging.trackers"),
        ("logging.trackers=[wandb, mlflow, wandb]", "logging.trackers names wandb twice"),
        ("evaluation={{every_steps: 5, tokens: {folder}}}", "error: evaluation.tokens: {folder} has no manifest.json"),
        ("model={folder}", "error: model: "),
    ],
)
def test_a_dry_run_refuses_what_fails_later_and_makes_nothing(override, message, dry, tmp_path):
    folder, file = tmp_path / "empty", tmp_path / "file"
    folder.mkdir()
    file.touch()
    with socket.create_server(("", free_port())) as taken:
        code, error = dry(override.format(folder=folder, file=file, port=taken.getsockname()[1]))
    assert (code, error[:7]) == (2, "error: ")
    assert message.replace("{folder}", str(folder)) in error
    assert list(folder.iterdir()) == []


def test_all_inputs_that_are_not_there_are_named_by_their_keys_at_once(dry, tmp_path):
    code, error = dry(f"data.tokens={tmp_path}/a", f"tokenizer={tmp_path}/b", f"model={tmp_path}/c")
    assert code == 2
    starts = [
        "error: model: ",
        f"data.tokens: {tmp_path}/a has no manifest.json; ",
        f"tokenizer {tmp_path}/b holds no ",
    ]
    assert [line[: len(start)] for line, start in zip(error.splitlines(), starts, strict=True)] == starts


def test_the_example_of_continued_pretraining_runs_once_its_paths_exist(prepared, write_ds, tmp_path, capsys):
    config = ROOT / "recipe/configs/runs/continue.yaml"
    tiny = ROOT / "recipe/configs/models/tiny"
    paths = (
        f"run_dir={tmp_path / 'run'}",
        f"model={tiny}",
        f"tokenizer={prepared.tokenizer}",
        f"data.tokens={prepared.tokens}",
    )
    assert {path.partition("=")[0] for path in paths} == set(must_be_set(config))
    small = ("data.seq_length=32", "schedule.total_tokens=4096", "schedule.warmup_tokens=64")  # for the tiny model
    words = [word for override in (*paths, *small) for word in ("--set", override)]
    ds = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    assert train.main(["--config", str(config), "--deepspeed_config", str(ds), "--dry-run", *words]) == 0
    assert "peak lr 0.0003" in capsys.readouterr().out


def must_be_set(config: Path) -> list[str]:
    """The keys that a run config marks so; those of a section with its name."""
    keys, section = [], ""
    for line in config.read_text(encoding="utf-8").splitlines():
        if (heading := re.fullmatch(r"(\w+):", line)) is not None:
            section = f"{heading[1]}."
        elif "# MUST" in line:
            keys.append((section if line.startswith(" ") else "") + line.partition(":")[0].strip())
    return keys


def test_a_tracker_without_its_package_is_refused_even_where_a_folder_has_its_name(dry, tmp_path, monkeypatch):
    assert dry("logging.trackers=[wandb, mlflow]") == (0, "")
    find_spec = importlib.util.find_spec
    folder = ModuleSpec("wandb", None)  # of a folder `wandb`, which the client leaves where it was started
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: {"wandb": folder, "mlflow": None}.get(name, find_spec(name))
    )
    for name, purpose in (("wandb", "Weights & Biases"), ("mlflow", "MLflow")):
        assert dry(f"logging.trackers=[{name}]") == (2,
            f"error: logging.trackers {name}: the Python package {name} is not installed: "
            f"pip install -e '.[{name}]' for {purpose}\n")  # fmt: skip


def test_a_dry_run_lets_a_source_of_weight_zero_be_small(dry, prepared, new_run, tmp_path, capsys):
    manifest = json.loads((prepared.tokens / "manifest.json").read_text())
    smallest = min(s["tokens"] for s in manifest["results"]["shards"] if (s["source"], s["split"]) == ("zh", "train"))
    longer = f"data.seq_length={smallest}"
    wide = tmp_path / "wide"
    wide.mkdir()
    shape = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 10**6}))
    assert dry(f"model={wide}", longer, "data.mixture.weights={en: 1, zh: 0}") == (0, "")
    code, error = dry(f"model={wide}", longer, "data.mixture.weights={en: 1, zh: 1}")
    assert code == 2
    assert "source 'zh' has" in error
    # It need not be there at all: neither its shards, nor, when it is named, the source.
    shutil.copytree(prepared.tokens, tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens" / "shards" / "train" / "zh")
    shutil.rmtree(tmp_path / "tokens" / "shards" / "held_out")
    without = f"data.tokens={tmp_path / 'tokens'}"
    assert dry(without, "data.mixture.weights={en: 1, zh: 0}") == (0, "")
    assert dry(without, "data.mixture.weights={en: 1, zh: 0, fr: 0}") == (0, "")
    assert "zh" in dry(without)[1]


def test_a_dry_run_says_what_cannot_be_exported(new_run, write_ds, tmp_path, capsys):
    shape = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, "scoring_func": "softmax"}))
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    for model, message in ((tmp_path, True), ("recipe/configs/models/tiny", False)):
        assert train.main([str(word) for word in new_run("dry", model=str(model)).arguments(ds_path, "--dry-run")]) == 0
        assert ("export      this model cannot be exported" in capsys.readouterr().out) == message


@pytest.mark.parametrize(
    ("recompute", "kept_gib", "line"),
    [
        ("selective", 0.00052, "kept        attention of 4 layers, attention_projection of 4 layers, within recipe.kept_gib 0.00052"),
        ("selective", 0.0, "kept        nothing, within recipe.kept_gib 0,"),
        ("none", 0.001, "kept        nothing: recipe.kept_gib 0.001 is for compute.recompute selective"),
        ("non_reentrant", 0.0, None),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_recomputed_layers_keep(recompute, kept_gib, line, new_run, write_ds, capsys):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2, recipe={"kept_gib": kept_gib})
    assert (
        train.main([str(w) for w in new_run("dry", compute={"recompute": recompute}).arguments(ds_path, "--dry-run")])
        == 0
    )
    told = [told for told in capsys.readouterr().out.splitlines() if told.startswith("kept")]
    assert told == [] if line is None else told[0].startswith(line)


def test_evaluation_needs_held_out_tokens(prepared, dry, tmp_path, monkeypatch):
    assert dry("evaluation.every_steps=5") == (0, "")
    sources = TokenFolder(prepared.tokens).sources("held_out")
    _check_held_out(sources)
    shard = type("Short", (), {"num_tokens": 1})()
    for changes in ({"shards": (shard,)}, {"text_bytes": 0}):
        with pytest.raises(UserError, match="source 'zh' have no text to evaluate"):
            _check_held_out([sources[0], dataclasses.replace(sources[1], **changes)])
    monkeypatch.setattr(
        TokenFolder, "sources", lambda folder, split, names=None: [] if split == "held_out" else sources
    )
    code, error = dry("evaluation.every_steps=5")
    assert code == 2
    assert "has no held-out shards" in error


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["schedule.warmup_tokens=400001"], "schedule.warmup_tokens + decay_tokens exceed schedule.total_tokens"),
        (["schedule.warmup_tokens=400000"], None),
        (["schedule.decay_tokens=0"], "wsd needs schedule.decay_tokens"),
        (["schedule.kind=cosine"], "schedule.decay_tokens is for kind wsd"),
        (["schedule.min_lr=1"], "exceeds schedule.peak_lr"),
        (["data.mixture={tiers: {en: 2}, anneal: {share: 0.1, tier_weights: {1: 2}}}"], "names tier 2, which anneal"),
        (["data.mixture={anneal: {share: 0.1, tier_weights: {1: -2}}}"], "1 has a negative weight"),
        (["data.mixture.weights={en: 0}"], "data.mixture.weights are all zero"),
        (["data.mixture={weights: {en: 1}, factors: {en: 2}}"], "overrides factors; keep one"),
        (["checkpoint.keep_every_steps=150"], "is no multiple of checkpoint.every_steps"),
        (["watch.heartbeat_s=1000"], "is not below watch.no_progress_s"),
        (["routing.z_loss_coef=0"], "logit_growth raises a z-loss"),
    ],
)
def test_a_run_config_is_asked_for_the_problems_of_all_its_sections(overrides, problem):
    """The quickstart's: WSD, 600,000 tokens of which 200,000 are its decay, a checkpoint every 100 steps."""
    if problem is None:
        load_run_config(QUICKSTART, overrides)
        return
    with pytest.raises(ConfigError) as error:
        load_run_config(QUICKSTART, overrides)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["checkpoints", "heartbeats", "tensorboard"])
def test_what_a_run_makes_in_its_folder_can_be_made(name, tmp_path):
    run = load_run_config(QUICKSTART, [f"run_dir={tmp_path}"])
    _check_outputs(run, starts=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} cannot be written"):
        _check_outputs(run, starts=True)


def test_a_port_that_is_in_use_is_refused_by_a_dry_run_alone():
    with socket.create_server(("", free_port())) as taken:
        port = taken.getsockname()[1]
        check_prometheus(port)
        with pytest.raises(UserError, match=f"prometheus_port {port}: Address already in use; choose another"):
            check_prometheus(port, may_be_in_use=False)
    check_prometheus(port, may_be_in_use=False)
    check_prometheus(None)


@pytest.mark.parametrize(
    ("world_size", "more", "allowed"), [(None, {}, False), (2, {}, True), (None, {"port_may_be_in_use": True}, True)]
)
def test_which_checks_of_a_launch_allow_a_port_that_is_in_use(world_size, more, allowed, monkeypatch):
    def end(run: object, starts: bool) -> None:
        raise UserError(f"allowed: {starts}")

    monkeypatch.setattr("recipe.run.job._check_outputs", end)
    with pytest.raises(UserError, match=f"allowed: {allowed}"):
        check_job(QUICKSTART, [], ROOT / "ds_configs/cpu_2.json", world_size, **more)


def test_a_model_must_have_room_for_the_tokenizers_largest_id_not_only_for_its_tokens(dry, prepared, tmp_path):
    tokenizer, tokens = far_end(prepared, tmp_path / "tokenizer"), tmp_path / "tokens"
    words = ["--input", prepared.deduped, "--tokenizer", tokenizer, "--output", tokens, "--workers", 1]
    assert tokenize_corpus.main([str(w) for w in words]) == 0
    code, message = dry(f"tokenizer={tokenizer}", f"data.tokens={tokens}")
    assert code == 2
    assert "model's vocab_size is 4,096, which its largest id, 70,000, must be below" in message


def test_a_port_that_needs_privileges_is_refused(monkeypatch):
    class Unprivileged(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prometheus.socket, "socket", Unprivileged)
    with pytest.raises(UserError, match="prometheus_port 80: Permission denied"):
        check_prometheus(80)


def test_an_export_goes_where_it_can_be_written(tmp_path):
    check_export_folder(tmp_path / "new" / "export")
    file = tmp_path / "file"
    file.touch()
    for output, message in (
        (file / "export", "is no folder"),
        (tmp_path / ("a" * 250), "more than 255 bytes"),  # with .partial behind it
        (ROOT.__class__("/proc/export"), "the kernel's file system proc"),
        (tmp_path, "exists"),
    ):
        with pytest.raises(UserError, match=message):
            check_export_folder(output)


def test_quantile_balance_is_refused_for_models_that_choose_among_groups(new_run, write_ds, tmp_path, capsys):
    shape = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**shape, "n_group": 2, "topk_group": 1}))
    run = new_run("dry", model=str(tmp_path), routing={"bias_update": "quantile"})
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    assert train.main([str(word) for word in run.arguments(ds_path, "--dry-run")]) == 2
    assert "routing.bias_update quantile needs the model's n_group 1, not 2" in capsys.readouterr().err
