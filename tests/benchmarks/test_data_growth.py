"""The measurement of growth: its documents come from the seed alone, its exponents leave out the start-up."""

from __future__ import annotations

import json

import pytest

from benchmarks.data_growth import JOBS, Contender, contender, exponents, main, table_of, write_parts, write_settings
from data_prep import dedup
from tests.conftest import documents_in


@pytest.mark.parametrize("power", [1, 2])
def test_the_exponent_is_that_of_the_growth_beyond_the_start_up(power):
    rows = {str(parts): {"cpu_s": 3 + 0.01 * parts**power if parts > 1 else 3} for parts in (1, 300, 1000, 3000)}
    assert exponents(rows) == {"1000": power, "3000": power}
    assert exponents({"1": {"cpu_s": 3}, "10": {"cpu_s": 2.9}, "20": {"cpu_s": 4}}) == {}


def test_a_smaller_corpus_begins_a_larger_one_and_duplicates_are_planted(tmp_path):
    for parts in (5, 40):
        write_parts(tmp_path / str(parts) / "documents", parts, 4, seed=1)
    small = documents_in(tmp_path / "5")
    assert documents_in(tmp_path / "40")[: len(small)] == small
    words = ["--input", tmp_path / "40", "--output", tmp_path / "out", "--workers", 1]
    assert dedup.main([str(word) for word in words]) == 0
    assert 120 < len(documents_in(tmp_path / "out")) < 160


def test_every_job_is_measured_at_every_size_and_told_in_a_table(tmp_path, monkeypatch, capsys):
    runs = []

    def fake(self, source, repeats):
        parts = len(list(source.iterdir()))
        runs.append((self.name, parts))
        (tmp_path / "run" / "out").mkdir(parents=True)
        return {"cpu_s": 1.0 + parts, "runs": repeats, "peak_mib": 100, "work": tmp_path / "run"}

    monkeypatch.setattr(Contender, "run", fake)
    words = ["--parts", "2", "4", "--workers", "1", "--output", str(tmp_path / "growth.json")]
    assert main(words) == 0
    assert set(runs) == {(job, parts) for job in JOBS for parts in (1, 2, 4)}
    printed = capsys.readouterr().out
    assert "| dedup | 1 | 2.0, 100 MiB | 3.0, 100 MiB | 5.0, ^1.58, 100 MiB |" in printed
    assert main(["--table", str(tmp_path / "growth.json")]) == 0
    assert capsys.readouterr().out == printed
    assert table_of(json.loads((tmp_path / "growth.json").read_text())) + "\n" == printed
    assert main(["--output", str(tmp_path / "nowhere" / "x.json")]) == 2


def test_small_ranges_are_those_of_the_job_that_is_measured(tmp_path):
    write_parts(tmp_path / "parts", 12, 3, seed=1)
    write_settings(tmp_path, tmp_path / "parts", 2000)
    row = contender("dedup", tmp_path, tmp_path / "parts", 1).run(tmp_path / "parts", 1)
    assert len(list((row["work"] / "out" / "tasks" / "candidates").iterdir())) > 12
