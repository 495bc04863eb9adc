"""Constants fitted to planted rows: recovered, judged on sources that the fit has not seen, with the share in range."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from recipe.planner.tables.fitting import FREE, constants_of, fit, grouped_folds, one_source_out, source_of, splits
from recipe.planner.tables.published import COLUMNS, Run, prediction, run_of
from tests.in_process import run_script
from tests.recipe.planner.tables.test_published import row

PRIORS = [free.prior for free in FREE]
PLANTED = [0.87, 0.76, 0.70, 0.80, 0.90, 0.80]
SOURCES = ("arXiv:2101.00001 Table 1", "arXiv:2101.00001 Table 2", "github.com/a/b docs", "a/c README", "d e")


def stated(**values: str) -> Run:
    run = run_of(row(**values))
    assert isinstance(run, Run)
    return run


def planted(values: list[float] = PLANTED) -> list[Run]:
    """Runs of four sources on three generations of GPUs, whose published rates are what `values` predict."""
    layouts = (
        {"gpu": "H100", "parallel": "EP8 FSDP64", "mbs": "8"},
        {"gpu": "A100-80G", "parallel": "EP8 FSDP64", "mbs": "8"},
        {"gpu": "B200", "parallel": "EP8 FSDP64", "mbs": "4"},
    )
    runs = [stated(source=source, **layout) for source in SOURCES for layout in layouts]
    return [replace(run, published=run.predicted(constants_of(values))) for run in runs]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("arXiv:2504.14960 Table 1", "arXiv:2504.14960"),
        ("arxiv.org/abs/2504.14960, Table 2", "arXiv:2504.14960"),
        ("https://github.com/owner/repo/blob/main/README.md", "owner/repo"),
        ("owner/repo docs/a.md (H100)", "owner/repo"),
        ("bigscience train/tr11-176B-ml/README.md:663", "bigscience"),
    ],
)
def test_tables_and_files_of_one_paper_or_project_are_one_source(source, name):
    assert source_of({"source": source}) == name


def test_planted_constants_are_recovered_as_far_as_few_rows_outweigh_what_was_believed():
    values = fit(planted())
    for found, true, believed in zip(values[:3], PLANTED[:3], PRIORS[:3], strict=True):
        assert 0.3 < (found - believed) / (true - believed) < 1
    for run in planted():
        assert abs(prediction(run, constants_of(values)).error) < 0.04 < abs(prediction(run).error)


def test_what_no_row_says_stays_at_its_prior():
    values = fit([run for run in planted() if run.cluster.accelerator.generation == "Ampere"])
    assert values[1:3] == pytest.approx(PRIORS[1:3], rel=1e-3)


def test_no_source_is_judged_by_constants_that_were_fitted_to_it():
    runs = planted()
    for split in splits(runs, one_source_out(runs)):
        assert not {source_of(p.row) for p in split.fitted} & set(split.left_out)
        assert {source_of(p.row) for p in split.judged} == set(split.left_out)
        assert len(split.fitted) + len(split.judged) == len(runs)
    wrong = [replace(run, published=3 * run.published) if source_of(run.row) == "a/c" else run for run in runs]
    (before,), (after,) = (list(splits(these, [["a/c"]])) for these in (runs, wrong))
    assert before.values == after.values
    assert max(abs(p.error) for p in before.judged) < 0.05 < min(abs(p.error) for p in after.judged)


def test_folds_have_every_source_once_and_about_as_many_rows():
    runs = planted()
    folds = grouped_folds(runs, 2)
    assert sorted(source for fold in folds for source in fold) == ["a/b", "a/c", "arXiv:2101.00001", "d"]
    assert sorted(sum(source_of(run.row) in fold for run in runs) for fold in folds) == [6, 9]


def of_file(tmp_path, runs: list[Run], *more: str):
    path = tmp_path / "rows.csv"
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows([run.row | {"tok_s_gpu": str(run.published)} for run in runs])
        writer.writerow(row(gpu="TPU v5p"))
    return run_script("benchmarks/planner_accuracy.py", "--rows", path, "--splits", *more)


def test_both_errors_the_rows_in_range_and_the_reasons_are_reported(tmp_path):
    runs = planted()
    runs[0] = replace(runs[0], published=3 * runs[0].published)  # outside of every range
    figures = json.loads(of_file(tmp_path, runs, "--json").stdout)
    left_out = figures["splits"]["one_source_out"]["sources_left_out"]
    assert left_out["all"]["rows"] == len(runs) == left_out["moe"]["rows"]
    assert left_out["all"]["in_range"] == pytest.approx(1 - 1 / len(runs))
    assert left_out["all"]["median_error"] < 0.05
    assert left_out["dense"] == {"median_error": None, "rows": 0, "in_range": None}
    assert figures["reasons"]["moe"] == {"the GPU 'TPU v5p' is not known": 1}
    shown = of_file(tmp_path, runs).stdout
    assert "one source left out: sources left out" in shown
    assert all(free.name in shown for free in FREE)


def test_rows_of_one_source_cannot_be_split(tmp_path):
    done = of_file(tmp_path, [run for run in planted() if source_of(run.row) == "d"])
    assert (done.returncode, "two sources" in done.stderr) == (2, True)
