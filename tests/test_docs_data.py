"""The commands of docs/data.md and docs/languages.md that need no network run as they stand."""

from __future__ import annotations

import pytest

from recipe.base.strict import load_json
from tests.conftest import ROOT
from tests.documentation import bash_blocks, checkout, run_as_it_stands
from tests.patience import PATIENCE_S


@pytest.mark.slow
def test_the_block_of_the_embedded_corpus_runs_as_it_stands(tmp_path):
    (block,) = bash_blocks(ROOT / "docs/data.md", "Try all jobs on the embedded corpus")
    done = run_as_it_stands(block, checkout(tmp_path), timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout[-4000:]
    work = tmp_path / "work/data"
    assert load_json(work / "clean/manifest.json")["counts"]["dropped"] == {"contaminated": 1}  # as the page says
    totals = load_json(work / "tokens/manifest.json")["counts"]["totals"]
    assert {split: sorted(sources) for split, sources in totals.items()} == {
        "train": ["en", "zh"],
        "held_out": ["en", "zh"],
    }
    assert "max_epochs" in (work / "mixture.yaml").read_text(encoding="utf-8")
    assert "contaminated" in (work / "data.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_block_of_quality_models_runs_as_it_stands(tmp_path):
    (block,) = bash_blocks(ROOT / "docs/data.md", "How do I train a quality model?")
    done = run_as_it_stands(block, checkout(tmp_path), timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
    work = tmp_path / "work/quality"
    assert load_json(work / "curated/manifest.json")["counts"]["dropped"]["quality_low"] > 0
    for model in ("model", "seeds"):
        assert sorted(load_json(work / model / "manifest.json")["results"]["languages"]) == ["en", "zh"]
    assert "are judged as labelled" in (work / "data.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_block_of_german_runs_as_it_stands(tmp_path):
    (block,) = bash_blocks(ROOT / "docs/languages.md", "Try it with German")
    done = run_as_it_stands(block, checkout(tmp_path), timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout[-4000:]
    manifest = load_json(tmp_path / "work/german/curated/manifest.json")
    assert manifest["results"]["warnings"] == []
    assert {lang for lang, of in manifest["counts"]["groups"].items() if any(g["out"] for g in of.values())} == {
        "de",
        "en",
    }
