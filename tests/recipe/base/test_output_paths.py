"""What cannot be written is told without making anything."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from recipe.base import output_paths
from recipe.base.arguments import check_results, output_file
from recipe.base.errors import UserError
from recipe.base.output_paths import check_output_file, check_output_folder, folder_problem, glob_problem


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


def test_new_and_old_folders_can_be_written_and_none_is_made(tmp_path):
    for path in (tmp_path, tmp_path / "a" / "b", Path("relative")):
        assert folder_problem(path) is None
    assert list(tmp_path.iterdir()) == []


def test_files_and_links_to_nothing_stand_in_the_way(tmp_path, file):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for path in (file, file / "a" / "b", link, link / "a"):
        assert "is no folder" in (folder_problem(path) or "")


@pytest.mark.parametrize("path", ["/proc/run", "/proc/self/fd/a/b", "/sys/run", "/dev/pts/run"])
def test_file_systems_of_the_kernel_hold_no_files(path):
    assert folder_problem(Path(path)) is not None


def test_a_folder_without_permission_is_told(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    assert folder_problem(tmp_path / "a" / "b") == f"{tmp_path} may not be written to"
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_a_name_that_the_file_system_cannot_hold_is_told(tmp_path):
    assert "more than 255 bytes" in (folder_problem(tmp_path / ("中" * 86)) or "")
    assert folder_problem(tmp_path / ("中" * 85)) is None


def test_a_file_system_that_is_not_known_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "major", lambda device: 9999)
    assert output_paths._file_system(tmp_path) is None


@pytest.mark.parametrize("name", ["run [v1]", "a*", "a?b", "x]", "a[b/run"])
def test_paths_that_are_patterns_are_refused(name, tmp_path, monkeypatch):
    assert "from which DeepSpeed cannot load" in (glob_problem(tmp_path / name) or "")
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    assert glob_problem(Path("run")) is not None  # the folder that a relative path is below counts
    assert glob_problem(Path("/a b/{c}-(d)")) is None


def test_output_files_are_checked(tmp_path, file):
    check_output_file("--output", file)
    check_output_folder("--output", tmp_path / "new")
    for path, message in ((tmp_path, "is a folder, not a file"), (file / "x.json", "is no folder")):
        with pytest.raises(UserError, match=f"--output {path} cannot be written: .*{message}"):
            check_output_file("--output", path)
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder, not a file"):
        output_file(str(tmp_path))


def test_results_of_a_run_are_checked_where_they_go_by_default(tmp_path, file):
    results = lambda **given: check_results(argparse.Namespace(**{"run": None, "output": None, **given}), "r.json")  # noqa: E731
    results()
    results(run=tmp_path)
    with pytest.raises(UserError, match="--output"):
        results(output=file / "x.json")
    with pytest.raises(UserError, match="--run"):
        results(run=file, output=tmp_path / "x.json")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(UserError, match="--output"):
        results(run=tmp_path)
