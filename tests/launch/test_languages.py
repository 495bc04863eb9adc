"""Another pair of languages than the shipped one, from documents to a trained and evaluated model."""

from __future__ import annotations

import json

import pytest
import yaml

from data_prep import check_languages, curate, dedup, synthetic_corpus, tokenize_corpus, train_tokenizer
from recipe.base.strict import load_json
from recipe.run.records import read_evaluations, read_metrics
from tests.conftest import ROOT, Called, Prepared, ds_config, launch, schedule_of, write_run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 30


def prepare(folder, language: str) -> Prepared:
    """The data jobs on documents in English and another language."""
    made = Prepared(*(folder / name for name in ("raw", "curated", "deduped", "tokenizer", "tokens")))
    (folder / "curate.yaml").write_text(f"languages: [en, {language}]\n", encoding="utf-8")
    shipped = yaml.safe_load((ROOT / "data_prep/configs/tokenizer.yaml").read_text(encoding="utf-8"))
    small = yaml.safe_dump({**shipped, "vocab_size": 1024, "reserved_tokens": 2}, allow_unicode=True)
    (folder / "tokenizer.yaml").write_text(small, encoding="utf-8")
    (folder / "tokenize.yaml").write_text("held_out: 0.05\n", encoding="utf-8")
    jobs = (
        (synthetic_corpus, "--output", made.raw, "--documents", 200, "--languages", f"en,{language}"),
        (curate, "--input", made.raw, "--output", made.curated, "--config", folder / "curate.yaml", "--workers", 1),
        (dedup, "--input", made.curated, "--output", made.deduped, "--workers", 1),
        (train_tokenizer, "--input", made.deduped, "--output", made.tokenizer, "--config", folder / "tokenizer.yaml"),
        (tokenize_corpus, "--input", made.deduped, "--tokenizer", made.tokenizer, "--output", made.tokens,
         "--config", folder / "tokenize.yaml", "--workers", 1),
    )  # fmt: skip
    for job, *arguments in jobs:
        assert job.main([str(a) for a in arguments]) == 0
    return made


@pytest.mark.parametrize("language", ["de", "ja"])
def test_a_model_of_english_and_another_language(language, small_model, tmp_path, capsys):
    made = prepare(tmp_path, language)
    counts = load_json(made.curated / "manifest.json")
    assert counts["results"]["warnings"] == []
    for group in counts["counts"]["groups"][language].values():
        assert group["out"] > 0.8 * group["in"]
    words = ("--config", tmp_path / "curate.yaml", "--input", made.raw, "--tokenizer", made.tokenizer)
    done = Called(check_languages.main, capsys, *words)
    assert done.returncode == 0, done.stderr

    run = write_run(tmp_path, "run", made, model=str(small_model), schedule=schedule_of(STEPS), checkpoint={"every_steps": STEPS}, evaluation={"every_steps": STEPS})  # fmt: skip
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2)))
    done = launch(2, "recipe/train.py", *run.arguments(ds))
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [step["loss"] for step in read_metrics(run.run_dir)]
    assert losses[-1] < losses[0] - 0.5
    held_out = read_evaluations(run.run_dir)[-1]["sources"]
    assert set(held_out) == {"en", language}
    assert all(0 < source["bits_per_byte"] < 8 for source in held_out.values())
