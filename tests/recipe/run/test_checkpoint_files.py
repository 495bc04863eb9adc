"""What counts as a checkpoint, which are kept, and what is said of damage."""

from __future__ import annotations

import argparse
import json
import os

import pytest

from recipe.base import files
from recipe.base.errors import UserError
from recipe.base.files import HashedFile, sha256
from recipe.run import checkpoint_files as on_disk
from recipe.train import resume_from


def make(folder, step, *, keep=False):
    path = folder / on_disk.checkpoint_name(step)
    path.mkdir()
    handle = HashedFile(path / "states.pt")
    handle.write(b"weights" * step)
    facts = {"states.pt": handle.close()}
    manifest = {"schema": on_disk.SCHEMA, "version": on_disk.VERSION, "files": facts}
    (path / on_disk.MANIFEST).write_text(json.dumps(manifest))
    if keep:
        (path / on_disk.KEEP).touch()
    return path


def test_a_hashed_file_has_the_facts_of_what_is_on_disk(tmp_path):
    path = make(tmp_path, 3)
    facts = on_disk.read_manifest(path)["files"]["states.pt"]
    assert facts == {"bytes": 21, "sha256": sha256(path / "states.pt")}


def test_what_is_written_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """A loss of power keeps a name whose content was not flushed."""
    flushed = []
    monkeypatch.setattr(
        files.os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    renamed = []
    monkeypatch.setattr(files.os, "replace", lambda source, target: renamed.append((list(flushed), target)))
    make(tmp_path, 3)
    assert flushed == [str(tmp_path / on_disk.checkpoint_name(3) / "states.pt")]
    files.write_json(tmp_path / "manifest.json", {})
    assert renamed == [([*flushed[:1], str(tmp_path / "manifest.json.partial")], tmp_path / "manifest.json")]
    files.flush_file(tmp_path / "manifest.json.partial")
    files.flush_folder(tmp_path)
    assert flushed[2:] == [str(tmp_path), str(tmp_path / "manifest.json.partial"), str(tmp_path)]


def test_only_committed_folders_are_complete_and_leftovers_go(tmp_path):
    whole = make(tmp_path, 9), make(tmp_path, 100_000_000)
    for name in ("step_00000010.partial", "step_00000011", "step_00000008.damaged", "step_00000009.universal.partial"):
        (tmp_path / name).mkdir()
    assert on_disk.complete(tmp_path) == list(whole)
    on_disk.remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {p.name for p in whole} | {"step_00000008.damaged", "step_00000009.universal.partial"}


def test_retention_spares_the_last_every_nth_and_the_marked(tmp_path):
    paths = {step: make(tmp_path, step, keep=step == 3) for step in range(1, 9)}
    assert on_disk.expendable(tmp_path, 2, 4) == [paths[step] for step in (1, 2, 5, 6)]
    assert on_disk.expendable(tmp_path, 2, None) == [paths[step] for step in (1, 2, 4, 5, 6)]
    assert on_disk.expendable(tmp_path, 2, None, spare=paths[5]) == [paths[step] for step in (1, 2, 4, 6)]
    (tmp_path / "step_00000001.universal").mkdir()
    on_disk.remove(paths[1])
    assert not list(tmp_path.glob("step_00000001*"))


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    checkpoint = make(tmp_path, 1)
    make_universal(checkpoint)
    seen = []

    def killed(path, **_: object) -> None:
        seen.append(path)
        assert not (path / on_disk.MANIFEST).exists()
        if path == checkpoint:
            raise KeyboardInterrupt

    monkeypatch.setattr(on_disk.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        on_disk.remove(checkpoint)
    assert seen == [on_disk.universal_of(checkpoint), checkpoint]  # the form that is made of the other goes before it
    assert on_disk.complete(tmp_path) == []


def make_universal(checkpoint):
    universal = on_disk.universal_of(checkpoint)
    universal.mkdir()
    manifest = {**on_disk.read_manifest(checkpoint), "made_from": on_disk.digest(checkpoint)}
    (universal / on_disk.MANIFEST).write_text(json.dumps(manifest))


def test_a_universal_form_is_of_the_checkpoint_that_it_was_made_from_and_goes_with_it(tmp_path):
    path = make(tmp_path, 4)
    assert on_disk.universal_state(path) == "none"
    make_universal(path)
    assert on_disk.universal_state(path) == "ready"
    aside = on_disk.set_aside(path, "left")
    assert on_disk.universal_state(aside) == "ready"
    assert [p.name for p in on_disk.complete(tmp_path)] == []
    # Another checkpoint of the same step: the form of the first is not taken for its own.
    make_universal(make(tmp_path, 4))
    manifest = on_disk.read_manifest(path)
    (path / on_disk.MANIFEST).write_text(json.dumps({**manifest, "time": 1}))
    assert on_disk.universal_state(path) == "stale"


def test_what_is_set_aside_twice_is_not_lost(tmp_path):
    names = [on_disk.set_aside(make(tmp_path, 4), "left").name for _ in range(3)]
    assert names == ["step_00000004.left", "step_00000004.left1", "step_00000004.left2"]


def test_latest_names_what_is_left(tmp_path):
    make(tmp_path, 2), make(tmp_path, 4)
    (tmp_path / "latest").write_text("step_00000004")
    on_disk.set_aside(tmp_path / "step_00000004", "left")
    assert (tmp_path / "latest").read_text() == "step_00000002"
    on_disk.set_aside(tmp_path / "step_00000002", "left")
    assert not (tmp_path / "latest").exists()


def test_damage_is_named(tmp_path):
    path = make(tmp_path, 2)
    files = sorted(on_disk.read_manifest(path)["files"].items())
    assert on_disk.damage(path, files) == []
    (path / "states.pt").write_bytes(b"weightsweight!")
    assert on_disk.damage(path, files) == [f"{path / 'states.pt'} does not have its checksum"]
    (path / "states.pt").write_bytes(b"w")
    assert on_disk.damage(path, files) == [f"{path / 'states.pt'} has 1 bytes, not 14"]
    (path / "states.pt").unlink()
    assert on_disk.damage(path, files) == [f"{path / 'states.pt'} is missing"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "recipe.checkpoint", "version": 1}'])
def test_a_manifest_that_is_not_ours_is_refused(content, tmp_path):
    path = make(tmp_path, 1)
    (path / on_disk.MANIFEST).write_text(content)
    with pytest.raises(UserError, match="resume from another checkpoint"):
        on_disk.read_manifest(path)


@pytest.mark.parametrize("name", ["step_6", "step_00000006", "step_006"])
def test_a_checkpoint_is_its_step_however_many_zeros(name, tmp_path):
    paths = {step: make(tmp_path, step) for step in (6, 60)}
    assert on_disk.find(tmp_path, name) == paths[6]
    assert resume_from(name) == paths[6].name
    assert on_disk.find(tmp_path, None) == paths[60]


@pytest.mark.parametrize(
    "name", ["step_7", "step_", "6", "newest", "step_6.universal", "../step_6", "step_" + "9" * 5000]
)
def test_a_checkpoint_that_is_none_is_refused(name, tmp_path):
    make(tmp_path, 6)
    with pytest.raises(UserError, match="it has step_00000006"):
        on_disk.find(tmp_path, name)


def test_a_checkpoint_below_a_folder_that_is_a_pattern_is_refused(tmp_path):
    folder = tmp_path / "run [v1]"
    folder.mkdir()
    make(folder, 6)
    with pytest.raises(UserError, match="from which DeepSpeed cannot load"):
        on_disk.find(folder, None)


@pytest.mark.parametrize(
    "text", ["", "step_", "step6", "6", "Auto", "newest", "step_6 ", "step_-1", "step_1e3", "step_" + "9" * 5000]
)
def test_resume_takes_a_word_or_a_step(text):
    for word in ("never", "auto", "latest"):
        assert resume_from(word) == word
    with pytest.raises(argparse.ArgumentTypeError, match="is none of never, auto, latest, step_N"):
        resume_from(text)
