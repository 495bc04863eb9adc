"""A run is what it says it is: inputs by content, checkpoints by lineage, states that are sound, nothing taken for granted."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from data_prep import tokenize_corpus
from recipe.base.files import read_json_lines, sha256
from recipe.base.model_shape import load_model_shape
from recipe.planner.cost import checkpoint_bytes
from recipe.run.checkpoint_files import complete, read_manifest, universal_of
from recipe.run.records import read_metrics
from recipe.train import main as train_main
from tests.conftest import ROOT, Called, Prepared, copy_of_run, launch, run_forked, schedule_of
from tests.faults.conftest import report

TRAIN, BRANCH = "recipe/train.py", "recipe/branch.py"
STEPS = 12
pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("lineage")]


@pytest.fixture(scope="module")
def ds_path(tmp_path_factory):
    from tests.conftest import ds_config

    path = tmp_path_factory.mktemp("ds") / "ds.json"
    path.write_text(json.dumps(ds_config(1, micro_batch=8, accumulation=1, autoep_size=1)))
    return path


@pytest.fixture(scope="module")
def finished(prepared, small_model, ds_path, tmp_path_factory):
    """A run of 12 steps with checkpoints every 4, all kept."""
    from tests.conftest import write_run

    run = write_run(tmp_path_factory.mktemp("finished"), "run", prepared, model=str(small_model), **SECTIONS)
    train(run, ds_path)
    return run


SECTIONS = {"schedule": schedule_of(STEPS), "checkpoint": {"every_steps": 4, "keep_last": 9}}


@pytest.fixture
def new_run(prepared, small_model, tmp_path):
    """`write_run` into the test's folder, of the finished run's model."""
    from tests.conftest import write_run

    return lambda name, **sections: write_run(tmp_path, name, prepared, **{"model": str(small_model), **sections})


def train(run, ds_path, *more, code: int = 0) -> str:
    """Train in this run's folder; what it printed, errors last."""
    done = launch(1, TRAIN, *run.arguments(ds_path, *more))
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def copied(finished, new_run, name: str, **sections):
    """The finished run, copied into a folder of the test's own."""
    return copy_of_run(finished, new_run(name, **{**SECTIONS, **sections}))


def checkpoints(run) -> list[str]:
    return sorted(path.name for path in (run.run_dir / "checkpoints").glob("step_*"))


def losses(run) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run.run_dir)}


def optimizer_digest(run, step: int) -> str:
    (path,) = (run.run_dir / "checkpoints" / f"step_{step:08d}").glob("*optim_states.pt")
    return sha256(path)


def test_going_on_from_a_named_checkpoint_leaves_the_younger_ones_behind(finished, new_run, ds_path):
    run = copied(finished, new_run, "named")
    abandoned = optimizer_digest(run, 12)
    (run.run_dir / "checkpoints" / "step_00000008.universal").mkdir()
    printed = train(
        run, ds_path, "--resume", "step_00000004", "--set", "schedule.peak_lr=0.01", "--set", "checkpoint.keep_last=1"
    )
    assert (
        "going on from step_00000004; the younger ones are set aside as step_00000008.left, step_00000012.left"
        in printed
    )
    assert "changed since the last start: schedule.peak_lr is 0.01, was 0.001" in printed
    assert "the run folder is" in printed
    stages = [
        "configuration and data checked", "torch and DeepSpeed imported", "process group of 1 rank",
        "checkpoint step_00000004 verified", "model of ", "DeepSpeed engine initialised",
        "checkpoint step_00000004 loaded", "first step done",
    ]  # fmt: skip
    lines = re.findall(r"^start +\d+\.\d s  (.*)", printed, re.M)
    assert [line[: len(stage)] for line, stage in zip(lines, stages, strict=True)] == stages
    assert printed.index("first step done") < printed.index("step       5/12  loss")
    assert printed.index("training finished") < printed.index(f"run folder  {run.run_dir}\nnext\n")
    # The new branch is saved under the same steps, is what goes on, and is what is read of the run.
    names = checkpoints(run)
    assert {"step_00000008.left", "step_00000008.left.universal", "step_00000012.left"} < set(names)
    assert [p.name for p in complete(run.run_dir / "checkpoints")] == ["step_00000012"]
    assert optimizer_digest(run, 12) != abandoned
    assert "resumed after step 12" in train(run, ds_path, "--resume", "auto", "--set", "schedule.peak_lr=0.01")
    assert losses(run)[5] == losses(finished)[5]
    assert losses(run)[12] != losses(finished)[12]
    report(
        "a run goes on from an older checkpoint by its name",
        "the younger ones are set aside as step_00000008.left, step_00000012.left",
        seconds=None,
        lost_steps=None,
        then="the new branch is saved under their steps, and is what `--resume auto` takes",
    )


def check_planned_bytes(run, checkpoint: Path) -> None:
    """What the planner counts of a ZeRO-3 checkpoint; its universal form has the optimizer's file of one rank beside it."""
    shape = load_model_shape(Path(yaml.safe_load(run.config.read_text())["model"]))
    planned = checkpoint_bytes(sum(shape.parameters().values()), zero_stage=3)
    found = [
        sum(f["bytes"] for f in read_manifest(path)["files"].values())
        for path in (checkpoint, universal_of(checkpoint))
    ]
    ranks = read_manifest(checkpoint)["topology"]["world_size"]
    assert found == pytest.approx([planned, planned * (1 + 1 / ranks)], rel=0.02)


def test_a_resharded_form_is_of_one_checkpoint_alone(finished, new_run, ds_path, write_ds, capsys):
    run = copied(finished, new_run, "resharded")
    words = ("--run", run.run_dir)
    first = run_forked("launch/reshard.py", *words, "--workers", 1)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "and read again for checksums; one process holds up to 0.04 GiB" in first.stderr
    folder = run.run_dir / "checkpoints"
    check_planned_bytes(run, folder / "step_00000012")
    train(run, ds_path, "--resume", "step_00000008", "--set", "schedule.peak_lr=0.01")
    (folder / "step_00000012.left.universal").rename(
        folder / "step_00000012.universal"
    )  # as a copy would bring it back
    two = write_ds(2, micro_batch=4, accumulation=1, autoep_size=1)
    dry = Called(train_main, capsys, *run.arguments(two, "--dry-run", "--resume", "auto"))
    assert (dry.returncode, "first run python launch/reshard.py" in dry.stderr) == (2, True)
    done = launch(2, TRAIN, *run.arguments(two, "--resume", "auto"))
    assert done.returncode == 2
    message = "and its universal form was made from another checkpoint of that name; first run python launch/reshard.py"
    assert message in done.stderr
    made = run_forked("launch/reshard.py", *words, "--workers", 1)
    assert made.returncode == 0, made.stderr[-3000:]
    longer = ("--resume", "auto", "--set", f"schedule.total_tokens={13 * 8 * 32}", "--set", "schedule.peak_lr=0.01")
    done = launch(2, TRAIN, *run.arguments(two, *longer))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed after step 12" in done.stdout
    report(
        "a resharded form of another checkpoint of that step",
        "its universal form was made from another checkpoint of that name",
        seconds=None,
        lost_steps=None,
        then="stops with code 2 before anything is loaded; launch/reshard.py makes it anew",
    )


def test_a_stopped_branch_is_what_goes_on(finished, new_run, ds_path):
    run = copied(finished, new_run, "stopped")
    more = ("--set", "schedule.peak_lr=0.01")
    train(run, ds_path, "--resume", "step_00000004", "--time-limit", "1", *more)
    assert [p.name for p in complete(run.run_dir / "checkpoints")] == ["step_00000004", "step_00000005"]
    assert sorted(losses(run)) == [1, 2, 3, 4, 5]
    assert "resumed after step 5" in train(run, ds_path, "--resume", "auto", *more)


def test_a_ruined_state_is_never_the_newest_checkpoint(finished, new_run, ds_path):
    """An absurd learning rate ruins the weights in one update, whose own loss is finite, at every step a checkpoint is due."""
    run = copied(finished, new_run, "ruined", numerics={"max_nonfinite_in_a_row": 3, "spikes": None})
    words = ("--resume", "auto", "--set", f"schedule.total_tokens={30 * 8 * 32}")
    ruin = ("--set", "schedule.peak_lr=1e30", "--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=1")
    printed = train(run, ds_path, *words, *ruin, code=2)
    assert "3 steps in a row up to 16 were not finite" in printed
    assert "step_00000012 is the newest checkpoint from before them, which --resume auto takes" in printed
    assert [p.name for p in complete(run.run_dir / "checkpoints")][-1] == "step_00000012"
    # Nor does a stop right after that update, or the end of the schedule, save it.
    for end in (
        ("--time-limit", "1"),
        ("--set", f"schedule.total_tokens={13 * 8 * 32}", "--set", "schedule.min_lr=1e30"),
    ):
        printed = train(run, ds_path, *words, *ruin, *end, code=2)
        assert "the update of step 13 has ruined the weights: the " in printed
        assert "step_00000012 is the newest checkpoint from before them" in printed
    assert "resumed after step 12" in train(run, ds_path, *words)
    assert [p.name for p in complete(run.run_dir / "checkpoints")][-1] == "step_00000030"
    report(
        "an update that ruins the weights",
        "3 steps in a row up to 16 were not finite; step_00000012 is the newest checkpoint from before them",
        seconds=None,
        lost_steps=1,
        then="nothing is saved from that update on; stops with code 2; `--resume auto` takes the checkpoint before it",
    )


def faulty(*faults: dict) -> dict[str, str]:
    return {"RECIPE_FAULTS": json.dumps([{"rank": 0, "attempt": 2, **fault} for fault in faults])}


def test_a_checkpoint_after_which_no_step_is_finite_is_set_aside_for_the_one_before_it(finished, new_run, ds_path):
    run = copied(finished, new_run, "suspect", numerics={"max_nonfinite_in_a_row": 3, "spikes": None})
    words = run.arguments(ds_path, "--resume", "auto", "--set", f"schedule.total_tokens={16 * 8 * 32}")
    done = launch(1, TRAIN, *words, env=faulty({"kind": "nan_gradient", "step": 13, "steps": 3}))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "step_00000008 is the newest checkpoint from before them" in done.stderr
    assert "step_00000012.suspect may be ruined and is set aside" in done.stderr
    done = launch(1, TRAIN, *words)
    assert "resumed after step 8" in done.stdout, done.stderr[-3000:]


def test_a_stop_waits_for_a_step_that_is_applied(finished, new_run, ds_path):
    run = copied(finished, new_run, "waits")
    words = run.arguments(
        ds_path, "--resume", "auto", "--set", f"schedule.total_tokens={20 * 8 * 32}", "--time-limit", "1"
    )
    done = launch(1, TRAIN, *words, env=faulty({"kind": "nan_gradient", "step": 13}))
    assert "stopped by a time limit after step 14; --resume auto goes on" in done.stdout, done.stderr[-3000:]
    assert [p.name for p in complete(run.run_dir / "checkpoints")][-1] == "step_00000014"


def test_a_state_that_makes_spikes_is_no_checkpoint_to_go_back_to(finished, new_run, ds_path):
    """A rate that ruins the weights without a NaN: each loss after it is finite, and far above those before."""
    numerics = {"max_nonfinite_in_a_row": 3, "spikes": {"window": 8, "sustained": 3}}
    run = copied(finished, new_run, "spiky", numerics=numerics)
    words = ("--resume", "auto", "--set", f"schedule.total_tokens={30 * 8 * 32}")
    ruin = ("--set", "schedule.peak_lr=0.6", "--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep_last=1")
    printed = train(run, ds_path, *words, *ruin, code=75)
    assert "going back to the last checkpoint before step 14: 3 steps in a row up to 16 were spikes" in printed
    assert "no checkpoint of step 14: the step was skipped, and the weights may be ruined" in printed
    assert [p.name for p in complete(run.run_dir / "checkpoints")][-1] == "step_00000012"
    # From a checkpoint by its name, the order to leave data out is off.
    printed = train(run, ds_path, "--resume", "step_8", "--set", f"schedule.total_tokens={9 * 8 * 32}")
    assert "resumed after step 8, 2,048 tokens\n" in printed
    assert read_manifest(run.run_dir / "checkpoints" / "step_00000009")["train_state"]["sequences"] == 72


def test_checkpoints_that_are_gone_are_not_taken_for_a_new_run(finished, new_run, ds_path, capsys):
    run = copied(finished, new_run, "gone")
    for path in complete(run.run_dir / "checkpoints"):
        shutil.rmtree(path)
    metrics = (run.run_dir / "metrics.jsonl").read_bytes()
    printed = train(run, ds_path, "--resume", "auto", code=2)
    assert (
        "has no complete checkpoint, but the run has saved some, the last after step 12; restore the folder" in printed
    )
    dry = Called(train_main, capsys, *run.arguments(ds_path, "--dry-run", "--resume", "auto"))
    assert (dry.returncode, "the last after step 12; restore the folder" in dry.stderr) == (2, True)
    for name in ("latest", "step_00000004"):
        assert "has no complete checkpoint" in train(run, ds_path, "--resume", name, code=2)
        new = new_run(f"new_{name}", **SECTIONS)
        assert "has no complete checkpoint" in train(new, ds_path, "--resume", name, code=2)
        assert not new.run_dir.exists()
    assert (run.run_dir / "metrics.jsonl").read_bytes() == metrics


def other_model(run, folder: Path, prepared: Prepared) -> list[str]:
    model = Path(yaml.safe_load(run.config.read_text())["model"])
    shape = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "rope_parameters": {"rope_theta": 5e5}}))
    return [f"model={folder}"]


def other_tokens(run, folder: Path, prepared: Prepared) -> list[str]:
    """The same documents, in other shards."""
    (folder / "config.yaml").write_text("source_by: lang\nheld_out: 0.04\n")
    words = ("--input", prepared.deduped, "--tokenizer", prepared.tokenizer, "--output", folder / "tokens")
    assert tokenize_corpus.main([str(w) for w in (*words, "--config", folder / "config.yaml", "--workers", 1)]) == 0
    return [f"data.tokens={folder / 'tokens'}"]


def other_special_tokens(run, folder: Path, prepared: Prepared) -> list[str]:
    shutil.copytree(prepared.tokenizer, folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "bos_token": config["eos_token"]}))
    return [f"tokenizer={folder / 'tokenizer'}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, "was trained with other inputs: model.rope_parameters.rope_theta is 500000.0, was 10000.0"),
        (other_tokens, "was trained with other inputs: data.held_out."),
        (
            other_special_tokens,
            "was trained with other inputs: tokenizer.special_tokens.bos_token is '<|endoftext|>', was not set",
        ),
    ],
)
def test_other_inputs_are_refused_by_what_differs(change, message, finished, ds_path, prepared, tmp_path, capsys):
    words = [word for override in change(finished, tmp_path, prepared) for word in ("--set", override)]
    done = Called(train_main, capsys, *finished.arguments(ds_path, "--dry-run", "--resume", "auto", *words))
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    report(
        f"{change.__name__.replace('_', ' ')} under the same path",
        message.replace("held_out.", "held_out.en.tokens is ..."),
        seconds=None,
        lost_steps=None,
        then="stops with code 2 before anything is written",
    )


def test_another_end_of_document_than_the_shards_have_is_refused(finished, ds_path, prepared, tmp_path, capsys):
    shutil.copytree(prepared.tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos_token": "<|endoftext|>"', '"eos_token": "<|im_end|>"'))
    words = ("--set", f"tokenizer={tmp_path / 'tokenizer'}", "--set", f"run_dir={tmp_path / 'run'}")
    done = Called(train_main, capsys, *finished.arguments(ds_path, "--dry-run", *words))
    assert done.returncode == 2, done.stdout
    assert "the eos_token of" in done.stderr
    assert "restore tokenizer_config.json or tokenize again" in done.stderr


def test_a_checkpoint_of_other_inputs_in_the_folder_is_refused(finished, new_run, ds_path):
    """As if somebody had copied it there: the run's record says nothing against it."""
    run = copied(finished, new_run, "foreign")
    path = run.run_dir / "checkpoints" / "step_00000012"
    manifest = read_manifest(path)
    manifest["identity"]["model"]["num_experts_per_tok"] = 1
    (path / "manifest.json").write_text(json.dumps(manifest))
    printed = train(run, ds_path, "--resume", "auto", code=2)
    assert f"{path} was trained with other inputs: model.num_experts_per_tok is 2, was 1" in printed


def test_evaluation_and_export_take_what_was_trained(new_run, prepared, ds_path, tmp_path):
    """The run's config.json is edited afterwards; its tokens are made anew."""
    (tmp_path / "model").mkdir()
    shape = tmp_path / "model" / "config.json"
    shutil.copy(ROOT / "recipe/configs/models/tiny/config.json", shape)
    shutil.copytree(prepared.tokens, tmp_path / "tokens")
    run = new_run("edited", model=str(tmp_path / "model"), data={"tokens": str(tmp_path / "tokens"), "seq_length": 32},
                  schedule=schedule_of(5))  # fmt: skip
    train(run, ds_path)
    shape.write_text(json.dumps({**json.loads(shape.read_text()), "num_experts_per_tok": 1}))
    done = launch(1, "recipe/export.py", "--run", run.run_dir, "--output", tmp_path / "export")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "export" / "config.json").read_text())["num_experts_per_tok"] == 2
    assert "model.num_experts_per_tok is 1, was 2" in train(run, ds_path, "--resume", "auto", code=2)
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    manifest["results"]["shards"][0]["text_bytes"] += 1
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    for words in (("recipe/evaluate_model.py", "held-out"), ("recipe/export.py", "--output", tmp_path / "second")):
        done = launch(1, *words, "--run", run.run_dir)
        assert done.returncode == 2
        assert "was trained with other inputs: data." in done.stderr
    assert not (tmp_path / "second").exists()


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(finished, new_run, ds_path, tmp_path):
    """Who can write the files can write their checksums, too."""
    run = copied(finished, new_run, "payload")
    path = run.run_dir / "checkpoints" / "step_00000012"
    (states,) = path.glob("*optim_states.pt")
    torch.save({"optimizer_state_dict": Payload(tmp_path / "ran")}, states, pickle_module=pickle)
    manifest = read_manifest(path)
    manifest["files"][states.name] = {"bytes": states.stat().st_size, "sha256": sha256(states)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    done = launch(1, TRAIN, *run.arguments(ds_path, "--resume", "auto"))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "which no state of DeepSpeed needs, and is not loaded: it could run any code" in done.stderr
    made = run_forked("launch/reshard.py", "--run", run.run_dir)
    assert made.returncode == 2, made.stderr[-3000:]
    assert "could run any code" in made.stderr
    assert not (tmp_path / "ran").exists()


def test_a_run_branches_into_a_folder_of_its_own(finished, new_run, ds_path):
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")}
    run = new_run("branch", **SECTIONS)
    words = ("--from", finished.run_dir, "--checkpoint", "step_00000004")
    done = launch(1, BRANCH, *words, *run.arguments(ds_path))
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = finished.run_dir / "checkpoints" / "step_00000004"
    assert (
        f"{run.run_dir} branched from {checkpoint}; train it with:\n  deepspeed --num_gpus 1 recipe/train.py --config"
        in done.stdout
    )
    (start,) = read_json_lines(run.run_dir / "attempts.jsonl")
    assert start["began_from"]["checkpoint"] == "step_00000004"
    train(run, ds_path, "--resume", "auto")
    assert losses(run) == {step: loss for step, loss in losses(finished).items() if step > 4}
    assert {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")} == before
    report(
        "a branch on purpose: recipe/branch.py",
        "branched from step_00000004; train it with: deepspeed ... --resume auto",
        seconds=None,
        lost_steps=0,
        then="losses equal to the last bit in a run folder of its own; the one it came from is untouched",
    )

    # Into another schedule and another order of the data, which then begin at their beginning.
    run = new_run("reordered", seed=1, **SECTIONS)
    done = launch(1, BRANCH, *words, *run.arguments(ds_path))
    assert "the data begin at their beginning, since seed is 1, was 0" in done.stdout, done.stderr[-3000:]
    state = read_manifest(run.run_dir / "checkpoints" / "step_00000004")["train_state"]
    assert (state["step"], state["sequences"], state["tokens"]) == (4, 0, 4 * 8 * 32)


def test_a_branch_of_the_weights_alone_begins_anew(finished, new_run, ds_path):
    run = new_run("weights", optimizer={"betas": [0.9, 0.99], "eps": 1e-7}, **SECTIONS)
    words = ("--from", finished.run_dir)
    done = launch(1, BRANCH, *words, *run.arguments(ds_path))
    assert done.returncode == 2
    assert "is 3,072 tokens into the schedule, and schedule.total_tokens is 3,072; raise it" in done.stderr
    done = launch(1, BRANCH, *words, *run.arguments(ds_path, "--set", "schedule.total_tokens=4096"))
    assert done.returncode == 2
    assert (
        "has other settings: betas is [0.9, 0.99], was [0.9, 0.95]; eps is 1e-07, was 1e-08; restore them, or branch with --weights-only"
        in done.stderr
    )
    assert not run.run_dir.exists()
    done = launch(1, BRANCH, *words, "--weights-only", *run.arguments(ds_path))
    assert done.returncode == 0, done.stderr[-3000:]
    (states,) = (run.run_dir / "checkpoints" / "step_00000000").glob("*optim_states.pt")
    zero = torch.load(states, weights_only=False)["optimizer_state_dict"]
    moments = [value for state in zero["optimizer_state_dict"]["state"].values() for value in state.values()]
    assert moments
    assert not any(torch.as_tensor(value).any() for value in moments)
    assert all(
        (group["betas"], group["eps"]) == ((0.9, 0.99), 1e-7) for group in zero["optimizer_state_dict"]["param_groups"]
    )
    train(run, ds_path, "--resume", "auto")
    found = losses(run)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[1] < losses(finished)[6] < losses(finished)[1]
    done = launch(1, BRANCH, *words, "--weights-only", *run.arguments(ds_path))
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
