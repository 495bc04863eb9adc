"""Every data job ends with the command that usually follows, which is one that exists."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from data_prep.core.following import following_command, is_driven
from tests.conftest import ROOT

STAGES = ["synthetic_corpus", "ingest", "curate", "dedup", "decontaminate", "train_tokenizer", "evaluate_tokenizer", "tokenize", "import_shards", "pack_sequences"]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_is_of_a_job_and_reads_what_was_written(stage):
    command = following_command(stage, Path("a b/out"), Path("a b/in"), Path("a b/tok") if stage == "evaluate_tokenizer" else None)  # fmt: skip
    python, script, *words = shlex.split(command)
    assert python == "python"
    assert (ROOT / script).exists()
    assert words[-2] == "--output"
    assert "a b/out" in words or stage == "evaluate_tokenizer"


def test_the_order_of_the_jobs():
    assert following_command("curate", Path("work/curated")) == "python data_prep/dedup.py --input work/curated --output work/deduped"  # fmt: skip
    assert following_command("train_tokenizer", Path("work/tok"), Path("work/deduped")) == (
        "python data_prep/tokenize_corpus.py --input work/deduped --tokenizer work/tok --output work/tokens"
    )
    assert following_command("unknown", Path("work/x")) == ""


def test_jobs_of_the_quickstart_leave_the_next_command_to_it(tmp_path):
    assert not is_driven(tmp_path / "curated")
    (tmp_path / "quickstart.json").write_text("{}")
    assert is_driven(tmp_path / "curated")
