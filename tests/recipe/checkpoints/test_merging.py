"""Merged checkpoints are the weighted average of what was saved, evaluate as any checkpoint, and appear whole or not at all."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe import merge
from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.checkpoints import merging
from recipe.checkpoints.average import average_file, saved_average
from recipe.checkpoints.merging import check_fingerprints, weighted_average
from recipe.checkpoints.zero_files import ZeroFiles, load_file, masters
from recipe.run.checkpoint_files import complete, read_manifest
from recipe.run.records import read_evaluations, read_events, read_starts
from tests.conftest import Called, RunFiles, copy_of_run, ds_config, launch, run_forked, write_run

STEPS, EVERY, HALF_LIFE = 48, 4, 1024
TOKENS = 8 * 32  # of a step
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
# Constant after the warmup.
CONSTANT = {"total_tokens": STEPS * TOKENS, "peak_lr": 1e-2, "min_lr": 1e-2, "warmup_tokens": 1024}


def sections(small_model: Path) -> dict:
    average = {"half_life_tokens": HALF_LIFE, "every_steps": EVERY}
    return {
        "model": str(small_model),
        "schedule": CONSTANT,
        "checkpoint": {"every_steps": EVERY, "keep_last": 99, "average": average},
        "evaluation": {"every_steps": STEPS},
    }


@pytest.fixture(scope="module")
def ds_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ds") / "ds.json"
    path.write_text(json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2, bf16={"enabled": True})))
    return path


@pytest.fixture(scope="module")
def stable(prepared, small_model, ds_path, tmp_path_factory) -> RunFiles:
    """A run at a constant learning rate."""
    run = write_run(tmp_path_factory.mktemp("stable"), "stable", prepared, **sections(small_model))
    done = launch(2, "recipe/train.py", *run.arguments(ds_path))
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture
def merge_run(tmp_path, capsys):
    """`recipe/merge.py` of a run; the new checkpoint, or what it said."""

    def make(run: Path, *words: object, name: str = "merged") -> Path | Called:
        called = Called(merge.main, capsys, "--run", run, "--output", tmp_path / name, *words)
        if called.returncode:
            return called
        (checkpoint,) = complete(tmp_path / name / "checkpoints")
        return checkpoint

    return make


@pytest.fixture
def merged(stable, merge_run):
    """The same of the stable run, or of another."""
    return lambda *words, run=stable.run_dir, name="merged": merge_run(run, *words, name=name)


def gathered(checkpoint: Path) -> dict[str, np.ndarray]:
    """The fp32 weights of a checkpoint, whole and by name, and its expert bias."""
    files, parts = ZeroFiles(checkpoint, read_manifest(checkpoint)), {}
    layout = files.layout()
    for name in files.optimizer_files:
        state = load_file(checkpoint / name)
        for held in layout.next_rank(state):
            parts.setdefault(held.name, {})[held.first] = held.of(masters(state)).numpy()
    module = load_file(checkpoint / files.model_files[0])["module"]
    bias = module[BIAS.replace(".gate.", ".router.")].numpy()
    return {name: np.concatenate([of[first] for first in sorted(of)]) for name, of in parts.items()} | {BIAS: bias}


def averaged(checkpoint: Path) -> dict[str, np.ndarray]:
    """The moving average that a checkpoint holds."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rank in range(read_manifest(checkpoint)["topology"]["world_size"]):
        for part in saved_average(checkpoint / average_file(rank)).parts:
            parts.setdefault(part.name, {})[part.first] = part.values.numpy()
    return {name: np.concatenate([of[first].reshape(-1) for first in sorted(of)]) for name, of in parts.items()}


def checkpoint_of(run: RunFiles, step: int) -> Path:
    return run.run_dir / "checkpoints" / f"step_{step:08d}"


def test_the_average_of_equal_weights_is_they_themselves():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 1000)
    for weights in ([0.3, 0.7], [1 / 3] * 3, [0.1] * 10):
        assert weighted_average([values] * len(weights), weights).equal(values)


def test_a_merge_is_the_average_of_the_gathered_weights(stable, merged):
    checkpoint = merged("--checkpoints", "step_40", "step_44", "step_48", "--weights", 1, 2, 5)
    weights = gathered(checkpoint)
    sources = [gathered(checkpoint_of(stable, step)) for step in (40, 44, 48)]
    assert weights.keys() == sources[0].keys()
    assert sum(values.size for values in weights.values()) > 500_000
    for name, values in weights.items():
        expected = sum(
            of[name].astype(np.float64) * share for of, share in zip(sources, (1 / 8, 1 / 4, 5 / 8), strict=True)
        )
        np.testing.assert_array_equal(values, expected.astype(np.float32), err_msg=name)
    assert weights[BIAS].any()
    assert abs(weights[BIAS].mean()) < 1e-6
    check_fingerprints(checkpoint, read_manifest(checkpoint))


def test_the_order_of_checkpoints_does_not_matter(merged):
    def files(*words: object, name: str) -> dict:
        return read_manifest(merged(*words, name=name))["files"]

    by_decay = files("--checkpoints", "step_40", "step_44", "step_48", name="one")
    assert files("--checkpoints", "step_48", "step_40", "step_44", name="other") == by_decay
    assert files("--last", 3, name="last") == by_decay
    given = files("--checkpoints", "step_40", "step_48", "--weights", 1, 3, name="given")
    assert files("--checkpoints", "step_48", "step_40", "--weights", 3, 1, name="turned") == given
    assert given != by_decay


def test_the_new_run_folder_says_what_it_was_merged_from(stable, merged):
    checkpoint = merged("--last", 3)
    run, manifest = checkpoint.parent.parent, read_manifest(checkpoint)
    facts = manifest["merged_from"]
    assert facts["merged_by"] == "linear"
    assert [(of["checkpoint"], of["weight"]) for of in facts["merged"]] == [
        ("step_00000040", 0.25), ("step_00000044", 0.5), ("step_00000048", 0.25),
    ]  # fmt: skip
    (start,) = read_starts(run)
    assert start["began_from"]["from"] == str(stable.run_dir)
    assert start["began_from"]["merged"] == facts["merged"]
    assert start["run_config"]["run_dir"] == str(run)
    (event,) = read_events(run)
    assert (event["event"], event["step"]) == ("branched", STEPS)
    newest = read_manifest(checkpoint_of(stable, STEPS))
    assert manifest["train_state"] == {**newest["train_state"], "good_probe": STEPS}
    assert not any(name.startswith("average") for name in manifest["files"])


def test_moments_are_the_newest_checkpoints(stable, merged):
    checkpoint = merged("--last", 2)
    for name in ZeroFiles(checkpoint, read_manifest(checkpoint)).optimizer_files:
        new, newest = (
            load_file(path / name)["optimizer_state_dict"]["optimizer_state_dict"]
            for path in (checkpoint, checkpoint_of(stable, STEPS))
        )
        for number, state in new["state"].items():
            assert all(state[key].equal(newest["state"][number][key]) for key in state)


def test_a_merged_run_evaluates_near_its_last_checkpoint(stable, merged):
    """Which of them is lower after so few steps says nothing: benchmarks/merge.py trains past the steep part."""
    run = merged("--last", 3).parent.parent
    done = launch(2, "recipe/evaluate_model.py", "held-out", "--run", run)  # which compares the fingerprints
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((run / "evaluation.json").read_text())["sources"]
    last = read_evaluations(stable.run_dir)[-1]
    assert last["step"] == STEPS
    assert results.keys() == last["sources"].keys()
    for name, of_last in last["sources"].items():
        assert results[name]["bits_per_byte"] == pytest.approx(of_last["bits_per_byte"], rel=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_the_other_stages_of_zero(prepared, small_model, tmp_path, merge_run, stage):
    run, ds = (
        write_run(
            tmp_path, "run", prepared, **{**sections(small_model), "schedule": {**CONSTANT, "total_tokens": 8 * TOKENS}}
        ),
        tmp_path / "ds.json",
    )
    ds.write_text(
        json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2, stage=stage, bf16={"enabled": True}))
    )
    done = launch(2, "recipe/train.py", *run.arguments(ds))
    assert done.returncode == 0, done.stderr[-3000:]
    for number, words in enumerate((("--last", 2), ("--average",))):  # of which the engine must have the fingerprints
        checkpoint = merge_run(run.run_dir, *words, name=str(number))
        done = launch(
            2, "recipe/export.py", "--run", checkpoint.parent.parent, "--output", tmp_path / f"export{number}"
        )
        assert done.returncode == 0, done.stderr[-3000:]


# The moving average.


def test_the_moving_average_is_its_recursion(stable):
    share = 1 - 0.5 ** (EVERY * TOKENS / HALF_LIFE)
    expected = averaged(checkpoint_of(stable, EVERY))
    for step in range(2 * EVERY, STEPS + 1, EVERY):
        weights = gathered(checkpoint_of(stable, step))
        expected = {name: values + np.float32(share) * (weights[name] - values) for name, values in expected.items()}
    found = averaged(checkpoint_of(stable, STEPS))
    assert found.keys() == expected.keys() == weights.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-6, err_msg=name)
        assert not np.array_equal(values, weights[name])


def test_the_moving_average_becomes_a_checkpoint(stable, merged):
    checkpoint = merged("--average")
    weights, average = gathered(checkpoint), averaged(checkpoint_of(stable, STEPS))
    assert weights.keys() == average.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(values, average[name], err_msg=name)
    check_fingerprints(checkpoint, read_manifest(checkpoint))


def cut_after(run: RunFiles, target: RunFiles, step: int) -> RunFiles:
    """The run as if it had been killed after a checkpoint."""
    copy_of_run(run, target)
    for path in complete(target.run_dir / "checkpoints"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return target


def test_a_resumed_run_goes_on_with_its_average(stable, prepared, small_model, ds_path, tmp_path):
    run = cut_after(stable, write_run(tmp_path, "resumed", prepared, **sections(small_model)), STEPS - EVERY)
    done = launch(2, "recipe/train.py", *run.arguments(ds_path, "--resume", "auto"))
    assert done.returncode == 0, done.stderr[-3000:]
    files = [read_manifest(checkpoint_of(of, STEPS))["files"] for of in (stable, run)]
    for rank in range(2):
        assert files[0][average_file(rank)] == files[1][average_file(rank)]
    assert "average_begun" not in {event["event"] for event in read_events(run.run_dir)}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Between weights; an element by itself says little on other ranks, where Adam divides by nearly nothing."""
    return sum(float(np.square(one[name].reshape(-1) - other[name]).sum()) for name in other) ** 0.5


def without_average(checkpoint: Path) -> None:
    """A checkpoint as of a run that kept none."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for path in checkpoint.glob("average_*"):
        del manifest["files"][path.name]
        path.unlink()
    write_json(checkpoint / "manifest.json", manifest)


@pytest.mark.slow
def test_other_ranks_go_on_with_the_average_and_one_that_is_not_there_begins_anew(
    stable, prepared, small_model, write_ds, tmp_path, capsys
):
    from launch import reshard

    for has_average in (True, False):
        run = cut_after(
            stable, write_run(tmp_path, f"of_{has_average}", prepared, **sections(small_model)), STEPS - EVERY
        )
        newest = checkpoint_of(run, STEPS - EVERY)
        if not has_average:
            without_average(newest)
        assert Called(reshard.main, capsys, "--run", run.run_dir, "--workers", 1).returncode == 0
        ds = write_ds(1, micro_batch=8, accumulation=1, autoep_size=1)
        done = launch(1, "recipe/train.py", *run.arguments(ds, "--resume", "auto"))
        assert done.returncode == 0, done.stderr[-3000:]
        begun = [event["step"] for event in read_events(run.run_dir) if event["event"] == "average_begun"]
        assert begun == ([] if has_average else [STEPS - EVERY])
        if has_average:
            expected, found = averaged(checkpoint_of(stable, STEPS)), averaged(checkpoint_of(run, STEPS))
            assert distance(found, expected) < 0.1 * distance(gathered(checkpoint_of(stable, STEPS)), expected)


# What is refused, and what a kill leaves.


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--checkpoints", "step_48", "step_48"), "is named twice"),
        (("--checkpoints", "step_48"), "two checkpoints at least"),
        (("--checkpoints", "step_48", "step_9"), "no checkpoint 'step_9'"),
        (("--last", "99"), "has 12 checkpoints, not 99"),
        (("--checkpoints", "step_44", "step_48", "--weights", "1"), "1 numbers for 2"),
        (("--last", "2", "--weights", "1", "1"), "--weights goes with --checkpoints"),
    ],
    ids=["twice", "one", "missing", "too many", "weights", "weights of last"],
)
def test_refused(merged, tmp_path, words, problem):
    called = merged(*words)
    assert called.returncode == 2
    assert problem in called.stderr
    assert list(tmp_path.iterdir()) == []


def change(manifest: dict, *keys: str, value: object) -> None:
    for key in keys[:-1]:
        manifest = manifest[key]
    manifest[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (("topology", "world_size"), 4, "merge checkpoints of the same ranks"),
        (("identity", "tokenizer", "vocab_size"), 7, "tokenizer.vocab_size"),
        (("identity", "model", "rope_parameters", "rope_theta"), 123.0, "rope_theta"),
        (("identity", "model", "moe_intermediate_size"), 64, "moe_intermediate_size"),
    ],
    ids=["topology", "tokenizer", "rope", "shape"],
)
def test_checkpoints_of_something_else_are_refused(stable, merged, tmp_path, keys, value, problem):
    run = tmp_path / "run"
    for step in (44, 48):
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        shutil.copy(checkpoint_of(stable, step) / "manifest.json", run / "checkpoints" / f"step_{step:08d}")
    shutil.copy(stable.run_dir / "attempts.jsonl", run)
    path = run / "checkpoints/step_00000044/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest, *keys, value=value)
    write_json(path, manifest)
    called = merged("--last", 2, run=run)
    assert called.returncode == 2
    assert problem in called.stderr
    assert list(tmp_path.iterdir()) == [run]


IN_FIRST, BETWEEN, IN_SECOND = ({"phase": 0}, {"phase": 1, "sequences": 0}, {"phase": 1, "sequences": 32})


@pytest.mark.parametrize(
    ("states", "is_refused"),
    [
        ((IN_FIRST, IN_FIRST, BETWEEN), False),
        ((BETWEEN, IN_SECOND, IN_SECOND), False),
        ((IN_FIRST, IN_FIRST, IN_SECOND), True),
        ((IN_FIRST, BETWEEN, IN_SECOND), True),
    ],
    ids=["to the end of a phase", "from the beginning of a phase", "of two phases", "over a boundary"],
)
def test_checkpoints_of_phases_with_other_rotary_positions_are_refused(stable, states, is_refused):
    second = {"name": "second", "rope_parameters": {"rope_theta": 123.0}}
    phases = [{"name": "first", "tokens": 44 * TOKENS}, second]
    sources = []
    for step, state in zip((40, 44, 48), states, strict=True):
        manifest = read_manifest(checkpoint_of(stable, step))
        manifest["run_config"]["phases"] = phases
        manifest["train_state"] |= state
        sources.append(merging.Weighted(checkpoint_of(stable, step), manifest, 1 / 3))
    if is_refused:
        with pytest.raises(UserError, match=r"rope_theta.*one phase"):
            merge.check_mergeable(sources)
    else:
        merge.check_mergeable(sources)


def test_a_damaged_file_is_refused(stable, merged, prepared, small_model, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(stable.run_dir, run)
    path = run / "checkpoints/step_00000044" / average_file(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    called = merged("--last", 2, run=run)
    assert called.returncode == 2
    assert f"{path} does not have its checksum; merge other checkpoints" in called.stderr
    assert list(tmp_path.iterdir()) == [run]


def test_runs_that_were_trained_apart_are_refused(stable, merged, tmp_path):
    run = tmp_path / "apart"
    shutil.copytree(stable.run_dir, run)
    path = run / "checkpoints/step_00000044/manifest.json"
    write_json(path, {**json.loads(path.read_text()), "time": 0})  # another checkpoint
    called = merged("--checkpoints", "step_48", path.parent)
    assert called.returncode == 2
    assert "did not branch from a common run" in called.stderr


def test_a_failed_merge_leaves_nothing(merged, tmp_path, monkeypatch):
    written = []

    def fails(files, folder):
        written.append(files)
        if len(written) == 3:
            raise UserError("no room is left")
        return write_files(files, folder)

    write_files = merging.write_files
    monkeypatch.setattr(merging, "write_files", fails)
    assert merged("--last", 2).returncode == 2
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from recipe import merge
from recipe.checkpoints import merging

write_files, written = merging.write_files, []

def killed(files, folder):
    written.append(files)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_files(files, folder)

merging.write_files = killed
merge.main(sys.argv[1:])
"""


def test_what_a_killed_merge_left_is_no_run_and_makes_way(stable, merged, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = run_forked(script, "--run", stable.run_dir, "--output", tmp_path / "merged", "--last", "2")
    assert done.returncode == -signal.SIGKILL
    script.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["merged.partial"]
    assert len(list(tmp_path.glob("merged.partial/checkpoints/step_00000048/*.pt"))) == 2
    assert complete(tmp_path / "merged.partial/checkpoints") == []
    assert merged("--last", 2).parent.parent == tmp_path / "merged"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
