"""Disks that are full, files that are damaged: what is intact is found, and nothing half-written is taken for whole."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from recipe.run.checkpoint_files import complete, step_of
from tests.faults.conftest import SCHEDULE, STEPS, report

pytestmark = [pytest.mark.distributed, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_checkpoints_and_not_the_run(small_disk, supervise, undisturbed):
    """Filled while a save is being written, and full for the ones after it until room is made."""
    filler = small_disk / "filler"
    faults = [{"kind": "fill_disk", "rank": 1, "file": str(filler)}]
    run = supervise("full", faults, run_dir=str(small_disk / "run"), checkpoint={"every_steps": 2, "keep_last": 1})
    run.run = type(run.run)(run.run.config, small_disk / "run")
    run.until(lambda: len(run.events("checkpoint_failed")) >= 2)
    filler.write_bytes(b"")  # room again, and no second filling
    assert run.finished() == undisturbed
    first, second, *_ = run.events("checkpoint_failed")
    assert "No space left on device" in first["message"] or "could not write it" in first["message"]
    assert "there is no room for it" in second["message"]
    (newest,) = complete(run.run_dir / "checkpoints")
    assert step_of(newest) == STEPS
    assert not list((run.run_dir / "checkpoints").glob("*.partial"))
    report(
        "disk full while a checkpoint is written",
        first["message"],
        seconds=None,
        lost_steps=0,
        then="training goes on, saves again when there is room, losses equal to the last bit",
    )
    report(
        "disk full before a save",
        second["message"],
        seconds=None,
        lost_steps=0,
        then="nothing written, training goes on",
    )


def test_a_run_does_not_end_well_without_its_last_checkpoint(small_disk, supervise):
    with open(small_disk / "filler", "wb") as handle:
        handle.write(bytes(190 << 20))  # no room for any checkpoint from the beginning
    run = supervise("lastless", run_dir=str(small_disk / "run"))
    run.run = type(run.run)(run.run.config, small_disk / "run")
    assert run.wait() == 2
    assert f"the last checkpoint could not be written to {small_disk / 'run' / 'checkpoints'}; make room" in run.output
    assert not run.events("finished")
    assert len(run.events("checkpoint_failed")) == STEPS // 2


def test_damaged_checkpoints_are_named_and_the_newest_intact_one_is_taken(supervise, undisturbed, write_ds):
    sections = {"checkpoint": {"every_steps": 2, "keep_last": 9}}
    run = supervise("damaged", **sections, schedule={**SCHEDULE, "kind": "wsd", "decay_tokens": 1})
    whole = run.finished()
    truncated, flipped, missing = reversed(complete(run.run_dir / "checkpoints")[-3:])
    for path, harm in ((truncated, "truncate"), (flipped, "flip"), (missing, "remove")):
        (victim,) = path.glob("*rank_1*optim_states.pt")
        if harm == "truncate":
            os.truncate(victim, victim.stat().st_size // 2)
        elif harm == "remove":
            victim.unlink()
        else:
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
    (run.run_dir / "metrics.jsonl").unlink()
    again = supervise("damaged", run=run.run)
    resumed = again.finished()
    assert sorted(resumed) == list(range(step_of(missing) - 1, STEPS + 1))
    assert {step: whole[step] for step in resumed} == resumed
    damaged = again.events("checkpoint_damaged")
    assert [event["step"] for event in damaged] == [step_of(path) for path in (truncated, flipped, missing)]
    for event, message, what in zip(
        damaged,
        ("bytes, not", "does not have its checksum", "is missing"),
        ("truncated", "bit-flipped", "missing"),
        strict=True,
    ):
        assert message in event["message"]
        assert "optim_states.pt" in event["message"]
        report(
            f"a {what} checkpoint file",
            event["message"].rsplit("/", 1)[-1],
            seconds=None,
            lost_steps=2,
            then="the one before it is taken, losses equal to the last bit",
        )


def test_a_damaged_shard_stops_the_run_or_is_left_out(supervise, prepared, tmp_path, undisturbed):
    import shutil

    tokens = tmp_path / "tokens"
    shutil.copytree(prepared.tokens, tokens)
    entry = next(
        e for e in json.loads((tokens / "manifest.json").read_text())["results"]["shards"] if e["split"] == "train"
    )
    shard = tokens / f"{entry['prefix']}.bin"
    content = bytearray(shard.read_bytes())
    content[70_000] ^= 1  # in its second block
    shard.write_bytes(content)
    data = {"tokens": str(tokens), "seq_length": 32}
    run = supervise("shard", data=data)
    assert run.wait() == 2
    assert f"{shard} is damaged at byte 65,536" in run.output
    assert [end["kind"] for end in run.events("attempt_ended")] == ["user_error"]
    report(
        "a corrupt token shard",
        "the shard and the block, before its tokens are used",
        seconds=None,
        lost_steps=None,
        then="stops with code 2; with data.on_damage skip goes on and counts",
    )
    skip = ("--set", "data.on_damage=skip")
    limited = supervise("shard", run=run.run, words=skip)  # a fifth of this run's sequences
    assert limited.wait() == 2
    assert "sequences read since the start are damaged, more than a batch and data.max_damaged_share" in limited.output
    again = supervise("shard", run=run.run, words=(*skip, "--set", "data.max_damaged_share=0.5"))
    losses = again.finished()
    (skipped, *_) = again.events("data_skipped")
    assert "sequences in damaged blocks" in skipped["message"]
    assert losses[1] == pytest.approx(undisturbed[1], rel=0.05)
