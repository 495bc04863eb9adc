"""A checkpoint goes on with any number of ranks and any expert-parallel size, through DeepSpeed's universal form."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.checkpoints import universal
from recipe.run import checkpoint_files as on_disk
from recipe.run.records import read_metrics
from tests.conftest import launch, run_forked, run_python

pytestmark = pytest.mark.distributed
# ranks, expert parallel size; the batch of 8 is the same
CHAIN = ((4, 4), (2, 2), (4, 1), (1, 1))


def exported(folder: Path) -> dict:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.slow
def test_a_chain_of_topologies_keeps_losses_and_export(new_run, write_ds, tmp_path):
    ds_of = {
        (ranks, ep): write_ds(ranks, micro_batch=8 // ranks, accumulation=1, autoep_size=ep) for ranks, ep in CHAIN
    }
    # One run without, and one that changes its topology every 5 steps; a step's tokens are the same.
    whole, run = (new_run(name, checkpoint={"every_steps": 5, "keep_last": 9}) for name in ("whole", "chain"))
    done = launch(4, "recipe/train.py", *whole.arguments(ds_of[4, 4]))
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(whole.run_dir, run.run_dir)
    for step in (10, 15, 20):  # as if the first attempt had ended after step 5
        shutil.rmtree(run.run_dir / "checkpoints" / f"step_{step:08d}")
    (run.run_dir / "metrics.jsonl").unlink()
    for place, (ranks, ep) in enumerate(CHAIN[1:], start=1):
        name = f"step_{5 * place:08d}"
        reshard = run_python if place == 1 else run_forked  # the first as a user starts it
        made = reshard("launch/reshard.py", "--run", run.run_dir)
        assert made.returncode == 0, made.stderr[-3000:]
        assert (run.run_dir / "checkpoints" / f"{name}.universal" / "manifest.json").exists()
        if place == 1:
            for key, topology in (("before", CHAIN[0]), ("after", CHAIN[1])):
                words = ("--run", run.run_dir, "--checkpoint", name, "--deepspeed_config", ds_of[topology])
                done = launch(topology[0], "recipe/export.py", *words, "--output", tmp_path / key)
                assert done.returncode == 0, done.stderr[-3000:]
            before, after = exported(tmp_path / "before"), exported(tmp_path / "after")
            assert before.keys() == after.keys()
            assert all(before[key].equal(after[key]) for key in before)
        done = launch(ranks, "recipe/train.py", *run.arguments(ds_of[ranks, ep], "--resume", "auto"))
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"resumed after step {5 * place}," in done.stdout
        for step in range(5 * place + 10, 21, 5):
            shutil.rmtree(run.run_dir / "checkpoints" / f"step_{step:08d}")
        found = {m["step"]: m["loss"] for m in read_metrics(run.run_dir)}
        expected = {m["step"]: m["loss"] for m in read_metrics(whole.run_dir)}
        for step in range(5 * place + 1, 21):
            assert found[step] == pytest.approx(expected[step], rel=1e-5), (ranks, ep, step)


def test_what_cannot_be_resharded_is_said(new_run, write_ds):
    run = new_run("stage")
    ds = write_ds(1, micro_batch=8, accumulation=1, autoep_size=1)
    done = launch(1, "recipe/train.py", *run.arguments(ds, "--set", "schedule.total_tokens=1024"))
    assert done.returncode == 0, done.stderr[-3000:]
    other = write_ds(1, micro_batch=8, accumulation=1, autoep_size=1, stage=2)
    done = launch(1, "recipe/train.py", *run.arguments(other, "--resume", "auto"))
    assert done.returncode == 2
    assert "universal checkpoints do not change the ZeRO stage; use a ds_config of the same stage" in done.stderr
    for words, message in ((("--checkpoint", "step_9"), "has no checkpoint 'step_9'"),):
        made = run_python("launch/reshard.py", "--run", run.run_dir, *words)
        assert made.returncode == 2
        assert message in made.stderr
    made = run_python("launch/reshard.py", "--run", "/nonexistent")
    assert made.returncode == 2
    assert "has no complete checkpoint" in made.stderr


@pytest.mark.parametrize("error", [KeyError(0), RuntimeError("Missing AutoEP exp_avg fragments")])
def test_a_checkpoint_from_before_the_first_step_is_not_resharded_in_vain(error, tmp_path, monkeypatch):
    def convert(*_: object) -> None:
        raise error

    monkeypatch.setattr(universal, "convert_to_universal", convert)
    for step, raised in ((0, pytest.raises(UserError, match="train a step")), (1, pytest.raises(type(error)))):
        path = tmp_path / on_disk.checkpoint_name(step)
        path.mkdir()
        manifest = {
            "schema": on_disk.SCHEMA, "version": on_disk.VERSION, "files": {}, "train_state": {"step": step},
            "topology": on_disk.topology(world_size=2, autoep_size=1, zero_stage=3),
        }  # fmt: skip
        write_json(path / on_disk.MANIFEST, manifest)
        with raised:
            universal.make_universal(path, workers=1)
        assert not on_disk.universal_of(path).exists()
