"""Files and folders that are whole or not there, after a crash and after a loss of power."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recipe.base.files import append_json, read_json_lines, rename_folder, replacing, write_json, write_text
from tests.recorded import recorded_disk


@pytest.mark.parametrize("name", [None, ".other.json"])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(name, tmp_path, monkeypatch):
    path, temporary = tmp_path / "a.json", tmp_path / (name or "a.json.partial")
    path.write_text("old")
    calls = recorded_disk(monkeypatch)
    with replacing(path, name and temporary) as given:
        assert given == temporary
        given.write_text("new")
        assert path.read_text() == "old"
    assert calls == [("fsync", temporary), ("rename", temporary, path), ("fsync", tmp_path)]
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_texts_and_json_are_written_so(tmp_path, monkeypatch):
    calls = recorded_disk(monkeypatch)
    write_text(tmp_path / "new" / "a.txt", "ä")
    write_json(tmp_path / "b.json", {"b": "ä"})
    assert [kind for kind, *_ in calls] == ["fsync", "rename", "fsync"] * 2
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ä".encode()
    assert (tmp_path / "b.json").read_bytes() == '{\n "b": "ä"\n}\n'.encode()


def test_all_of_a_folders_names_are_on_the_disk_before_it_has_its_own(tmp_path, monkeypatch):
    folder, target = tmp_path / "a.partial", tmp_path / "a"
    (folder / "b" / "c").mkdir(parents=True)
    calls = recorded_disk(monkeypatch)
    rename_folder(folder, target)
    names = {("fsync", folder), ("fsync", folder / "b"), ("fsync", folder / "b" / "c")}
    assert (set(calls[:3]), calls[3:]) == (names, [("rename", folder, target), ("fsync", tmp_path)])


def test_a_line_that_was_cut_is_left_out_and_followed_by_a_whole_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    append_json(path, {"a": 1})
    with open(path, "ab") as handle:
        handle.write(b'{"a": 2')
    append_json(path, {"a": float("inf")})
    assert read_json_lines(Path(path)) == [{"a": 1}, {"a": float("inf")}]
