"""The shuffle: every row arrives once, in order, and no task opens more files than the fan-in allows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.core import shuffle as shuffles
from data_prep.core.shuffle import Shuffle, column, producer, scatter
from data_prep.core.stage import Stage

PRODUCERS = [*range(48), 99_999, 100_000]  # text would sort the last before the one in front of it


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened, in order."""
    paths: list[Path] = []
    original = shuffles._SortedFile.__init__
    monkeypatch.setattr(
        shuffles._SortedFile, "__init__", lambda self, path: (paths.append(path), original(self, path))[1]
    )
    return paths


def run_at_once(phase, function, tasks, workers=None):
    return [function(task, number) for number, task in enumerate(tasks)]


def produce(folder: Path, numbers=PRODUCERS, rows=40) -> Shuffle:
    """Rows of a few keys that all producers share: what tells them apart is who wrote them, and when."""
    shuffle = Shuffle(folder)
    for number in numbers:
        keys = scatter(np.random.default_rng(number).integers(0, 25, rows))
        names = pa.array([f"{number}-{row}" for row in range(rows)])
        shuffle.write(number, keys, {"writer": np.full(rows, number, np.int64), "name": names})
    return shuffle


def consume(shuffle: Shuffle, partitions: int = 7) -> list[tuple[int, int, str]]:
    tables = [shuffle.read(i, partitions) for i in range(partitions)]
    return [row for t in tables for row in zip(*(t[n].to_pylist() for n in ("key", "writer", "name")), strict=True)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("partition_bytes", [None, 2000])  # the latter: many batches in a file, several of one key
def test_every_row_arrives_once_in_the_order_of_key_and_producer(tmp_path, monkeypatch, partition_bytes):
    expected = consume(produce(tmp_path / "plain"))
    assert expected == sorted(expected, key=lambda row: row[:2])
    assert len(set(expected)) == len(PRODUCERS) * 40
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    if partition_bytes:
        monkeypatch.setattr(shuffles, "PARTITION_BYTES", partition_bytes)
    shuffle = produce(tmp_path / "merged")
    shuffle.merge(run_at_once)
    assert consume(shuffle) == expected
    rows = [pair for i in range(7) for pair in shuffle.ordered(i, 7)]
    assert [table["name"][row].as_py() for table, row in rows] == [name for _, _, name in expected]
    key = expected[500][0]
    assert shuffle.lookup(key)["name"].to_pylist() == [name for k, _, name in expected if k == key]
    assert shuffle.lookup(key + 1).num_rows == 0


def test_no_task_opens_more_files_than_the_fan_in(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    shuffle = produce(tmp_path / "rows")
    merges = []

    def run(phase, function, tasks, workers):
        for number, task in enumerate(tasks):
            opened.clear()
            function(task, number)
            merges.append(len(opened))
        return []

    shuffle.merge(run)
    assert max(merges) <= 4
    assert sum(merges) < 2 * len(PRODUCERS)  # 50 and 13
    for consumer in range(20):
        opened.clear()
        shuffle.read(consumer, 20)
        assert 0 < len(opened) <= 4
    shuffle = produce(tmp_path / "few")
    shuffle.merge(run, 2)
    assert max(merges) <= 4
    opened.clear()
    shuffle.lookup(0)
    assert len(opened) == 2


def test_a_few_producers_are_left_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    shuffle = produce(tmp_path / "rows", range(4))
    before = contents(tmp_path)
    shuffle.merge(lambda *words: pytest.fail("nothing to merge"))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("step", ["replace", "unlink"])
def test_killed_in_the_middle_of_a_merge_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch, step):
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    stage = Stage("dedup", None, tmp_path / "whole", {})
    produce(tmp_path / "whole" / "rows").merge(stage.run_tasks)
    expected = contents(tmp_path / "whole" / "rows")
    killed = Stage("dedup", None, tmp_path / "killed", {})
    shuffle = produce(tmp_path / "killed" / "rows")
    owner = os if step == "replace" else Path
    original, calls, kills = getattr(owner, step), 0, 0

    def until_killed(*words, **more):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt
        return original(*words, **more)

    monkeypatch.setattr(owner, step, until_killed)
    while True:
        try:
            shuffle.merge(killed.run_tasks)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 3
    got = contents(tmp_path / "killed" / "rows")
    assert {name: data for name, data in got.items() if not name.endswith(".partial")} == expected
    assert sorted({Path(name).parent.name for name in expected}) == ["", "merged-2"]


def test_chunks_of_an_earlier_attempt_of_a_task_go_last_first(tmp_path, monkeypatch):
    shuffle = Shuffle(tmp_path)
    for task in (0, 1):
        for chunk in range(5):
            shuffle.write(producer(task, chunk), np.array([chunk], np.uint64), {"task": np.array([task])})
    removed = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: removed.append(path.name))
    shuffle.remove_chunks(0, 2)
    assert removed == ["00004.arrow", "00003.arrow", "00002.arrow"]
    monkeypatch.undo()
    shuffle.remove_chunks(0, 2)
    assert column(shuffle.read(0, 1), "task").tolist() == [0, 1, 0, 1, 1, 1, 1]


def test_a_key_that_has_more_rows_than_memory_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffles, "PARTITION_BYTES", 4000)
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    for merged in (False, True):
        shuffle = Shuffle(tmp_path / f"rows-{merged}")
        for number in range(6):
            keys = np.full(300, 5, np.uint64) if number % 2 else scatter(np.arange(300) + 300 * number)
            shuffle.write(number, keys, {"row": np.arange(300) + 1000 * number})
        if merged:
            shuffle.merge(run_at_once)
        tables = list(shuffle.tables(0, 1))
        assert max(table.nbytes for table in tables) <= 4100
        rows = np.concatenate([column(table, "row") for table in tables])
        assert rows.tolist() == column(shuffle.read(0, 1), "row").tolist()


def test_chunks_of_one_task_never_have_the_name_of_anothers():
    assert len({producer(task, chunk) for task in range(3) for chunk in (0, 999, 1000, 1001, 99_999)}) == 15


def test_the_merged_rows_of_an_older_run_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    produce(tmp_path / "drops").merge(run_at_once)
    names = json.loads((tmp_path / "drops" / "merge.json").read_text())["producers"]
    assert len(names) == len(PRODUCERS)
    assert len(Shuffle(tmp_path / "drops").read(0, 1)) == len(PRODUCERS) * 40


def test_producers_without_rows_are_merged_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffles, "FAN_IN", 4)
    shuffle = produce(tmp_path / "rows", range(9), rows=0)
    shuffle.merge(run_at_once)
    assert consume(shuffle) == []
    assert [table.num_rows for table in shuffle.tables(0, 1)] == [0]
    assert shuffle.lookup((1 << 64) - 1).column_names == ["key", "writer", "name"]
