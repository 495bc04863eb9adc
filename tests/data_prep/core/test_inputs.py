"""A stage knows its input again: by size and time of change, and by content where those do not tell."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from data_prep import tokenize_corpus
from data_prep.core.bad_records import BadRecords
from data_prep.core.inputs import part_digest
from data_prep.core.shuffle import Shuffle
from data_prep.core.stage import Stage, for_documents
from data_prep.curation import repeated_lines
from data_prep.deduplication import signatures
from data_prep.deduplication.links import spread_bands
from data_prep.documents.reading import BadRecord, Part, parts_of, records, unread_files, write_documents, write_part
from data_prep.tokenization import shards
from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.base.strict import load_json
from tests.data_prep.test_jobs import contents


def document(name: str, text: str = "some text") -> dict[str, str]:
    return {"id": name, "text": text}


def copy_part(documents, number: int, *, output: Path) -> dict[str, Any]:
    written = write_part(output / "documents", number, documents)
    return {"in": written.documents, "files": written.below(output)}


def run(source: Path, output: Path, finish: bool = True, only: int | None = None) -> Stage:
    """A small stage that copies its input; `only` so many parts of it, as if it were killed then."""
    stage = Stage("copy", source, output, {})
    if not stage.finished:
        work = for_documents(stage, work=partial(copy_part, output=output))
        results = stage.run_tasks("documents", work, stage.parts[:only])
        if finish and only is None:
            stage.finish(counts={"in": sum(r["in"] for r in results), "out": 0}, written=results)
    stage._lock.close()
    return stage


def rewrite(path: Path, data: bytes) -> None:
    """Other content, at another time."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@pytest.fixture
def source(tmp_path) -> Path:
    for folder in ("a", "b"):
        write_documents(tmp_path / "in" / folder / "x.jsonl", [document(folder), document(folder + "2")])
    return tmp_path / "in"


def changed(path: Path, old: bytes = b"some", new: bytes = b"same") -> None:
    rewrite(path, path.read_bytes().replace(old, new))


def test_a_part_has_another_digest_if_and_only_if_its_records_are_others(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [orjson.dumps(document(f"{i:02d}", "t" * (7 * i % 40 + 1))) + b"\n" for i in range(30)]
    path.write_bytes(b"".join(lines))
    parts = parts_of(path, 300)
    assert len(parts) > 3
    before = [(part_digest(part), list(records(part))) for part in parts]
    for changed_line in range(30):
        others = [line.replace(b"t", b"u") if i == changed_line else line for i, line in enumerate(lines)]
        path.write_bytes(b"".join(others))
        for part, (digest, known) in zip(parts, before, strict=True):
            if list(records(part)) != known:
                assert part_digest(part) != digest, (changed_line, part)
        path.write_bytes(b"".join(lines))
        assert [part_digest(part) for part in parts] == [digest for digest, _ in before]


def test_of_a_line_that_no_record_may_have_the_digest_reads_no_more_than_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.core.inputs.MAX_RECORD_BYTES", 50)
    digests = []
    for end in (b"x" * 500 + b"\n", b"x" * 600, b"x" * 40 + b"y" * 500):
        (tmp_path / "x.jsonl").write_bytes(b"x" * 100 + end)
        digests.append(part_digest(Part(tmp_path / "x.jsonl", 0, 100)))
    assert digests[0] == digests[1] != digests[2]


def test_row_groups_of_parquet_have_digests_of_their_own(tmp_path):
    def write(name: str, third: str) -> Path:
        rows = [document(str(i), "same text") for i in range(40)]
        rows[25]["text"] = third
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=10)
        return tmp_path / name

    one, other = write("a.parquet", "text 1"), write("b.parquet", "text 2")
    same = [part_digest(Part(one, i, i + 1)) == part_digest(Part(other, i, i + 1)) for i in range(4)]
    assert not same[2]
    assert part_digest(Part(one)) != part_digest(Part(other))
    assert part_digest(Part(one, 0, 4)) == part_digest(Part(one))
    assert len({part_digest(Part(one, i, i + 1)) for i in range(4)}) == 4


def test_a_touched_input_is_read_again_and_its_new_time_noted(source, tmp_path):
    run(source, tmp_path / "out")
    recorded = load_json(tmp_path / "out/stage.json")["inputs"]
    assert [facts["file"] for facts in recorded] == ["a/x.jsonl", "b/x.jsonl"]
    rewrite(source / "a/x.jsonl", (source / "a/x.jsonl").read_bytes())
    run(source, tmp_path / "out")
    noted = load_json(tmp_path / "out/stage.json")["inputs"]
    assert [facts["mtime_ns"] - before["mtime_ns"] for facts, before in zip(noted, recorded, strict=True)] == [10**9, 0]
    assert not (tmp_path / "out/.engine").exists()


@pytest.mark.parametrize("finish", [True, False])
def test_a_change_that_keeps_the_size_is_told(source, tmp_path, finish):
    run(source, tmp_path / "out", finish)
    before = (tmp_path / "out/stage.json").read_bytes()
    changed(source / "b/x.jsonl")
    with pytest.raises(UserError, match=r"in/b/x.jsonl changed since this stage read it; choose another --output or"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out/stage.json").read_bytes() == before


@pytest.mark.parametrize("other", [True, False])
def test_a_file_put_in_its_place_with_its_time_is_read_again(source, tmp_path, other):
    """As cp -p and rsync -t do."""
    run(source, tmp_path / "out")
    recorded = load_json(tmp_path / "out/stage.json")["inputs"]
    path = source / "b/x.jsonl"
    time = path.stat().st_mtime_ns
    (tmp_path / "copy").write_bytes(path.read_bytes().replace(b"some", b"same") if other else path.read_bytes())
    os.utime(tmp_path / "copy", ns=(time, time))
    (tmp_path / "copy").replace(path)
    if other:
        with pytest.raises(UserError, match=r"in/b/x.jsonl changed since this stage read it"):
            run(source, tmp_path / "out")
        return
    run(source, tmp_path / "out")
    noted = load_json(tmp_path / "out/stage.json")["inputs"]
    assert [facts["mtime_ns"] for facts in noted] == [facts["mtime_ns"] for facts in recorded]
    assert noted != recorded


@pytest.mark.parametrize("again", [True, False])
def test_files_that_killed_processes_have_left_go(source, tmp_path, again):
    run(source, tmp_path / "out", finish=not again)
    left = [tmp_path / "out/documents" / name for name in (".00000.jsonl.zst.host-1.partial", "x.bin.partial")]
    if not again:  # in the middle of the last run
        shutil.rmtree(tmp_path / "out")
        stage = Stage("copy", source, tmp_path / "out", {})
    left[0].parent.mkdir(exist_ok=True)
    for path in left:
        path.touch()
    run(source, tmp_path / "out") if again else stage.finish(counts={"in": 0, "out": 0})
    assert not any(path.exists() for path in left)


def test_what_an_earlier_attempt_wrote_of_a_task_goes_but_nothing_of_others(tmp_path):
    lines = [orjson.dumps(document(str(i), "t" * 100)) + b"\n" for i in range(9)]
    for number in (0, 1):
        write_part(tmp_path / "documents", number, lines, part_bytes=200)
    others = {path.name for path in tmp_path.glob("documents/00001*")}
    assert len(others) > 3
    now = write_part(tmp_path / "documents", 0, lines[:2], part_bytes=200)
    assert {p.name for p in tmp_path.glob("documents/*")} == others | {Path(file["path"]).name for file in now.files}

    for number in (0, 1):
        bad = BadRecords(tmp_path / "x.jsonl", number, tmp_path, 9)
        bad(BadRecord("x.jsonl", 1, "not JSON", "x"))
        bad.write()
    BadRecords(tmp_path / "x.jsonl", 0, tmp_path, 9).write()
    assert [path.name for path in tmp_path.glob("bad_records/*")] == ["00001.json"]


class Letters:
    """An encoder: a token for each character."""

    reference = SimpleNamespace(unknown_id=None, keeps=lambda text, ids: True)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(sum(map(len, texts)), np.uint32), np.cumsum([len(text) for text in texts])


def test_chunks_of_an_earlier_attempt_go_when_a_task_writes_fewer(tmp_path, monkeypatch):
    """One attempt with more documents, languages and lines, and one with fewer, give what the second alone gives."""
    monkeypatch.setattr(signatures, "CHUNK_DOCUMENTS", 2)
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 20)
    monkeypatch.setattr(repeated_lines, "_CHUNK_DOCUMENTS", 2)
    many = [{**document(str(i)), "lang": "en" if i % 2 else "zh"} for i in range(12)]
    few = [each for each in many if each["lang"] == "en"][:3]

    def attempt(documents: list[dict[str, str]], folder: Path) -> None:
        ranking = signatures.Ranking((), "quality")
        signatures.sign_part(enumerate(documents), 0, minhash=(5, 2, 2, 1), ranking=ranking, output=folder)
        config = tokenize_corpus.TokenizeConfig(held_out=0)
        tokenize_corpus.encode_documents(documents, 0, config, 0, Letters(), folder / "tokens")
        spread = {name: Shuffle(folder / name) for name in ("bands", "exact")}
        spread_bands(0, 0, catalog=signatures.Catalog(folder), minhash=(5, 2, 2, 1), **spread)
        write_documents(tmp_path / "in.jsonl", documents)
        labels = pa.table({"record": pa.array(range(len(documents)), pa.uint64())})
        settings = repeated_lines.RepeatedLines(min_documents=2, min_characters=1)
        fate = lambda number: (labels, np.full(len(documents), -1, np.int8))  # noqa: E731
        target = Shuffle(folder / "lines")
        repeated_lines.count_lines(Part(tmp_path / "in.jsonl"), 0, config=settings, target=target, fate=fate)

    attempt(many, tmp_path / "again")
    before = contents(tmp_path / "again")
    attempt(few, tmp_path / "again")
    attempt(few, tmp_path / "fresh")
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")
    assert len(before) > len(contents(tmp_path / "fresh"))


def test_files_of_one_name_that_changed_places_are_told(source, tmp_path):
    run(source, tmp_path / "out")
    (source / "a").rename(source / "c")
    (source / "b").rename(source / "a")
    (source / "c").rename(source / "b")
    os.utime(source / "a/x.jsonl")
    with pytest.raises(UserError, match=r"x\.jsonl changed since"):
        run(source, tmp_path / "out")


def test_a_file_that_no_task_has_read_may_change(source, tmp_path):
    run(source, tmp_path / "out", only=1)
    changed(source / "b/x.jsonl")
    run(source, tmp_path / "out")
    assert load_json(tmp_path / "out/manifest.json")["counts"]["in"] == 4


def test_what_is_missing_new_or_of_another_size_is_named(source, tmp_path):
    run(source, tmp_path / "out")
    (source / "a/x.jsonl").rename(source / "a/y.jsonl")
    write_documents(source / "b/x.jsonl", [document("b")])
    with pytest.raises(UserError) as caught:
        run(source, tmp_path / "out")
    assert "was made with other inputs: a/x.jsonl is missing, a/y.jsonl is new, b/x.jsonl changed from" in str(
        caught.value
    )


def test_the_input_may_lie_elsewhere(source, tmp_path):
    run(source, tmp_path / "out", only=1)
    source.rename(tmp_path / "moved")
    run(tmp_path / "moved", tmp_path / "out")


def test_a_part_that_changes_between_two_phases_is_told(source, tmp_path):
    stage = Stage("x", source, tmp_path / "out", {})
    stage.run_tasks("first", nothing, stage.parts)
    stage.run_tasks("second", nothing, stage.parts)
    changed(source / "a/x.jsonl")
    with pytest.raises(UserError, match=r"a/x\.jsonl changed since this stage read it"):
        stage.run_tasks("third", nothing, stage.parts)


def nothing(part: Part, number: int) -> dict[str, Any]:
    return {}


def overwrite(part: Part, number: int) -> dict[str, Any]:
    changed(part.path)
    return {}


def test_a_part_that_changes_while_it_is_read_is_told(source, tmp_path):
    stage = Stage("x", source, tmp_path / "out", {})
    with pytest.raises(UserError, match="changed while it was read"):
        stage.run_tasks("first", overwrite, stage.parts)
    assert not list((tmp_path / "out/tasks/first").iterdir())


def test_the_files_of_a_job_without_an_input_folder_are_known_again(source, tmp_path):
    files = [source / "a/x.jsonl", source / "b/x.jsonl"]
    stage = Stage("ingest", None, tmp_path / "out", {}, files=files)
    stage.run_tasks("documents", nothing, stage.parts)
    stage._lock.close()
    Stage("ingest", None, tmp_path / "out", {}, files=files)._lock.close()
    changed(source / "b/x.jsonl")
    with pytest.raises(UserError, match=r"b/x\.jsonl changed since"):
        Stage("ingest", None, tmp_path / "out", {}, files=files)
    with pytest.raises(UserError, match=r"a/x\.jsonl is missing|x\.jsonl is missing"):
        Stage("ingest", None, tmp_path / "out", {}, files=files[1:])


def test_a_folder_with_a_stage_json_of_something_else_is_raw(source, tmp_path):
    (source / "stage.json").write_text('{"stage": "theatre"}')
    stage = run(source, tmp_path / "out")
    assert stage.parent is None
    assert stage.unread == ["stage.json"]
    assert load_json(tmp_path / "out/manifest.json")["counts"]["in"] == 4


def test_an_input_that_is_a_link_to_itself_is_told(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop is a link that leads to itself"):
        Stage("x", tmp_path / "loop", tmp_path / "out", {})


def test_a_folder_of_another_version_is_refused(source, tmp_path):
    run(source, tmp_path / "out")
    write_json(tmp_path / "out/stage.json", {**load_json(tmp_path / "out/stage.json"), "version": 2})
    with pytest.raises(UserError, match=r"another version of the data jobs \(its format is 2, not 3\); choose"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "extra", "size", "content"])
def test_an_input_that_is_not_what_its_manifest_lists_is_told(source, tmp_path, damage):
    run(source, tmp_path / "first")
    path = tmp_path / "first/documents/00001.jsonl.zst"
    if damage == "missing":
        path.unlink()
    elif damage == "extra":
        write_documents(path.with_name("00002.jsonl.zst"), [document("c")])
    elif damage == "size":
        write_documents(path, [document("c", "longer" * 100)])
    else:  # sound, and as large: only its digest tells
        before = path.stat().st_size
        write_documents(path, [document("b", "same text"), document("b2", "same text")])
        assert path.stat().st_size == before
    messages = {
        "missing": "documents/00001.jsonl.zst is missing",
        "extra": "documents/00002.jsonl.zst is not listed",
        "size": "documents/00001.jsonl.zst has [0-9]+ bytes, not",
        "content": "documents/00001.jsonl.zst is not what .*first/manifest.json lists",
    }
    with pytest.raises(UserError, match=messages[damage]):
        run(tmp_path / "first", tmp_path / "second")


def test_the_manifest_lists_what_was_written_with_its_checksums(source, tmp_path):
    run(source, tmp_path / "out")
    listed = load_json(tmp_path / "out/manifest.json")["files"]
    assert [entry["path"] for entry in listed] == ["documents/00000.jsonl.zst", "documents/00001.jsonl.zst"]
    for entry in listed:
        data = (tmp_path / "out" / entry["path"]).read_bytes()
        facts = (len(data), hashlib.sha256(data).hexdigest(), xxhash.xxh3_128(data).hexdigest())
        assert (entry["bytes"], entry["sha256"], entry["xxh3_128"]) == facts


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_checksums_are_those_of_the_bytes_on_disk(tmp_path, name):
    written = write_documents(tmp_path / name, [document(str(i), "t" * i) for i in range(1, 3000)])
    data = (tmp_path / name).read_bytes()
    assert written.below(tmp_path)[0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (written.files[0]["bytes"], written.files[0]["path"]) == (len(data), str(tmp_path / name))


def test_files_that_are_not_read_are_named_and_recorded(source, tmp_path, capsys):
    for name in ("README.md", "a/table.csv", ".hidden"):
        (source / name).touch()
    assert [path.name for path in unread_files(source)] == ["README.md", "table.csv"]
    run(source, tmp_path / "out")
    assert capsys.readouterr().out == "2 files of --input are not read as documents: README.md, a/table.csv\n"
    assert load_json(tmp_path / "out/manifest.json")["unread"] == ["README.md", "a/table.csv"]
    run(source, tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_an_input_of_bad_records_alone_says_why(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "body": "x"}\nnot json\n')
    stage = Stage("x", tmp_path / "in.jsonl", tmp_path / "out", {}, max_bad=2)
    work = for_documents(stage, work=lambda documents, number: {"n": len(list(documents))})
    assert stage.run_tasks("documents", work, stage.parts)[0]["n"] == 0
    with pytest.raises(UserError) as caught:
        stage.must_have_documents(0)
    for words in ("all of its 2 records were set aside", "record 1 of in.jsonl: missing field 'text'", "bad_records"):
        assert words in str(caught.value)


def test_more_bad_records_than_permitted_over_all_tasks_say_why(tmp_path):
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.jsonl").write_text('{"id": "a"}\n')
    stage = Stage("x", tmp_path / "in", tmp_path / "out", {}, max_bad=1)
    work = for_documents(stage, work=lambda documents, number: {"n": len(list(documents))})
    with pytest.raises(UserError, match=r"more than --max-bad 1; the first, record 1 of a.jsonl: missing field 'text'"):
        stage.run_tasks("documents", work, stage.parts)


def test_bad_records_of_tasks_done_before_a_kill_count_too(tmp_path):
    for name in "abc":
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.jsonl").write_text('{"id": "a"}\n')

    def stage() -> Stage:
        return Stage("x", tmp_path / "in", tmp_path / "out", {}, max_bad=2)

    def killed_at_the_third(documents, number):
        if number == 2:
            raise KeyboardInterrupt
        return {"n": len(list(documents))}

    first = stage()
    with pytest.raises(KeyboardInterrupt):
        first.run_tasks("documents", for_documents(first, work=killed_at_the_third), first.parts)
    assert len(list(tmp_path.glob("out/tasks/documents/*.json"))) == 2
    first._lock.close()
    again = stage()
    work = for_documents(again, work=lambda documents, number: {"n": len(list(documents))})
    with pytest.raises(UserError, match="3 records of the input have no usable text, more than --max-bad 2"):
        again.run_tasks("documents", work, again.parts)


def test_what_a_failed_run_set_aside_goes_when_the_input_was_mended(tmp_path):
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": "a", "txet": "t"}\n')

    def go() -> None:
        stage = Stage("x", tmp_path / "in", tmp_path / "out", {})
        work = for_documents(stage, work=lambda documents, number: {"n": len(list(documents))})
        stage.run_tasks("documents", work, stage.parts)

    with pytest.raises(UserError, match="correct the input and choose another --output, or raise --max-bad"):
        go()
    assert list((tmp_path / "out" / "bad_records").iterdir())
    path.write_text('{"id": "a", "text": "t"}\n')
    go()
    assert not list((tmp_path / "out" / "bad_records").iterdir())


@pytest.mark.parametrize("output", ["file/below", "/proc/x", "/proc", "link", "n" * 300])
def test_an_output_that_cannot_be_written_is_told_before_the_input_is_looked_at(tmp_path, output):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"--output .*{output} cannot be written: "):
        Stage("x", tmp_path / "no input", tmp_path / output, {})
