"""Every file of a folder is read or named."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from data_prep.documents.listing import SUFFIXES, every_file, list_files, matching
from data_prep.documents.reading import document_files, unread_files, write_documents
from recipe.base.errors import UserError

LINE = b'{"id": "a", "text": "t"}\n'


def fill(folder, **contents) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def listed(folder) -> tuple[list[str], list[str]]:
    documents, unread = document_files(folder), unread_files(folder)
    return [str(p.relative_to(folder)) for p in documents], [str(p.relative_to(folder)) for p in unread]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JSONL.GZ", ".Parquet"])
def test_every_known_suffix_is_a_document_file(tmp_path, suffix):
    write_documents(tmp_path / f"x{suffix}", [{"id": "a", "text": "t"}])
    assert listed(tmp_path) == ([f"x{suffix}"], [])
    assert document_files(tmp_path / f"x{suffix}") == [tmp_path / f"x{suffix}"]


def test_what_is_not_read_is_named_but_for_what_tools_leave(tmp_path):
    fill(tmp_path, a_jsonl=LINE, README_md=b"x", sub__b_csv=b"x", c_arrow=b"x", d_warc_gz=b"x", e_jsonl_lz4=b"x")
    fill(tmp_path, a_jsonl_md5=b"x", _git__x_jsonl=LINE, sub___b_jsonl=LINE)
    (tmp_path / "_SUCCESS").touch()
    assert listed(tmp_path) == (["a.jsonl"], ["README.md", "c.arrow", "d.warc.gz", "e.jsonl.lz4", "sub/b.csv"])
    with pytest.raises(UserError, match=r"README.md is none of \.jsonl"):
        document_files(tmp_path / "README.md")


def test_a_folder_without_documents_names_what_it_has(tmp_path):
    fill(tmp_path, **{f"{i}_txt": b"x" for i in range(7)})
    with pytest.raises(
        UserError,
        match=r"holds no file of documents; its files are 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more; .*\.jsonl",
    ):
        document_files(tmp_path)


def test_a_json_file_of_lines_is_read_and_a_manifest_beside_documents_is_named(tmp_path):
    fill(tmp_path, a_json=LINE * 2, b_json_gz=gzip.compress(LINE), c_json=b"", d_json=b'{\n "files": 3\n}\n')
    assert listed(tmp_path) == (["a.json", "b.json.gz"], ["c.json", "d.json"])
    fill(tmp_path, e_json=b'[\n {"source": "x"}]\n')  # beside other suffixes it is no data
    assert listed(tmp_path)[1] == ["c.json", "d.json", "e.json"]
    (tmp_path / "b.json.gz").unlink()
    with pytest.raises(UserError, match=r"e.json is one JSON array.*jq -c '\.\[\]'"):
        document_files(tmp_path)


@pytest.mark.parametrize(
    "content", [b'[{"id": "a"},\n{"id": "b"}]', b'{\n "id": "a"\n}', LINE.decode().encode("utf-16")]
)
def test_a_folder_of_json_that_is_not_lines_is_refused(tmp_path, content):
    fill(tmp_path, a_json=content)
    with pytest.raises(UserError, match=r"a.json is .*convert it: (jq|iconv)"):
        document_files(tmp_path)


def test_links_are_followed_and_a_file_of_two_names_is_read_once(tmp_path):
    fill(tmp_path, in__a_jsonl=LINE, out__b_jsonl=LINE, blobs__0f3c=LINE)
    folder = tmp_path / "in"
    (folder / "linked").symlink_to(tmp_path / "out")
    (folder / "cached.jsonl").symlink_to(tmp_path / "blobs" / "0f3c")
    (folder / "blobs").symlink_to(tmp_path / "blobs")
    (folder / "loop").symlink_to(folder)
    (folder / "linked2").symlink_to(tmp_path / "out")
    (folder / "z.jsonl").hardlink_to(folder / "a.jsonl")
    (folder / "y.jsonl").symlink_to("a.jsonl")
    assert listed(folder) == (["a.jsonl", "cached.jsonl", "linked/b.jsonl"], ["linked2", "loop", "y.jsonl", "z.jsonl"])


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    fill(tmp_path, a_jsonl=LINE)
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"b is a link to .*gone, which does not exist"):
        document_files(tmp_path)


def test_a_link_to_itself_is_told(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    for path in (tmp_path, tmp_path / "a.jsonl"):
        with pytest.raises(UserError, match=r"a\.jsonl is a link that leads to itself"):
            document_files(path)


@pytest.mark.parametrize("name", [b"\xe4.jsonl", b"\xe4.txt", b"\xe4/b.jsonl"])
def test_a_name_that_no_manifest_could_hold_is_told(tmp_path, name):
    fill(tmp_path, a_jsonl=LINE)
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(LINE)
    with pytest.raises(UserError, match=r"the name of /.*/\\xe4.* is not UTF-8; rename it"):
        document_files(tmp_path)
    if path.suffix == ".jsonl":
        with pytest.raises(UserError, match="is not UTF-8"):
            document_files(path)


def test_a_pipe_is_no_file_of_documents(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"files /.*x\.jsonl is neither a file nor a folder"):
        document_files(tmp_path / "x.jsonl", option="files")


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*/shut/*.jsonl", "a/*/x.jsonl", "**", "*", "a/**/shut/x.jsonl"])
@pytest.mark.parametrize("right", [os.R_OK, os.X_OK])
def test_a_folder_that_a_glob_cannot_enter_is_told(tmp_path, monkeypatch, pattern, right):
    fill(tmp_path, a__x_jsonl=LINE, a__shut__x_jsonl=LINE)
    matched = {file for match in matching(str(tmp_path / pattern)) for file in every_file([match])}
    assert tmp_path / "a" / "shut" / "x.jsonl" in matched
    shut = str(tmp_path / "a" / "shut")
    listing, access = os.scandir, os.access

    def scandir(folder):
        if right == os.R_OK and os.path.realpath(folder) == shut:
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr("os.scandir", scandir)
    monkeypatch.setattr("os.access", lambda path, mode: os.path.realpath(path) != shut and access(path, mode))
    with pytest.raises(UserError, match="shut cannot be read: Permission denied"):
        list_files(matching(str(tmp_path / pattern)))
    assert matching(str(tmp_path / "a" / "*.jsonl")) == [tmp_path / "a" / "x.jsonl"]


def test_of_outputs_of_stages_in_a_folder_only_their_documents_are_read(tmp_path):
    stage = json.dumps({"schema": "data_prep.stage"}).encode()
    for name in ("one", "two"):
        fill(tmp_path / name, stage_json=stage, documents__0_jsonl=LINE, dropped__0_jsonl=LINE, tasks__0_json=LINE)
        (tmp_path / name / "manifest.json").write_bytes(LINE)
    assert listed(tmp_path) == (["one/documents/0.jsonl", "two/documents/0.jsonl"], [])
    (tmp_path / "two" / "manifest.json").unlink()
    with pytest.raises(UserError, match="two is the output of a job that has not finished"):
        document_files(tmp_path)
