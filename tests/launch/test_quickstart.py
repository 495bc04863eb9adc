"""The main job as a newcomer runs it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from launch.quickstart import main, unigram_entropy
from tests.conftest import SHARED, Called, needs_shared, run_python


def quickstart(tmp_path, *more):
    done = run_python("launch/quickstart.py", "--work", tmp_path / "work", *more, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    summary = done.stdout[done.stdout.rindex("\nsummary\n") :]
    return done.stdout, dict(re.findall(r"^  (\S[^\n]*?)  +(\S.*)$", summary, re.M))


def check_losses(found):
    first, last = map(float, re.findall(r"(\d+\.\d+) at step", found["loss"]))
    entropy = float(found["unigram entropy"].split()[0])
    assert last < entropy < first
    for language in ("en", "zh"):
        assert 0 < float(found[f"held-out {language}"].split()[0]) < 8


@pytest.mark.slow
def test_the_embedded_corpus_from_documents_to_generated_text(tmp_path):
    output, found = quickstart(tmp_path)
    check_losses(found)
    kept = int(re.fullmatch(r"7,200 in, (.*) kept", found["documents"])[1].replace(",", ""))
    assert 5_950 < kept < 6_050  # 6,000 sound ones, and the planted near duplicates that are too far from them
    for kind, caught, planted in re.findall(r"([a-z_: ]+) (\d+)/(\d+)", found["planted, caught"]):
        assert int(caught) >= 0.95 * int(planted) > 0, kind
    assert float(re.search(r"max/mean (\d+\.\d+)", found["expert load"])[1]) < 2
    assert len(re.findall(r"^\[Glm4MoeForCausalLM\] .{15}", output, re.M)) == 2
    for name in ("run folder", "model"):
        assert found[name].startswith(str(tmp_path))


@pytest.mark.slow
@needs_shared
def test_a_corpus_of_real_documents(tmp_path):
    _, found = quickstart(tmp_path, "--corpus", SHARED / "corpus")
    check_losses(found)
    assert found["documents"].startswith("13,140 in")
    assert "planted, caught" not in found


def test_mistakes_end_in_one_sentence(tmp_path, capsys):
    done = Called(main, capsys, "--work", tmp_path, "--corpus", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "does not exist; give a file or folder" in done.stderr
    (tmp_path / "thesis.tex").touch()
    done = Called(main, capsys, "--work", tmp_path)
    assert done.returncode == 2
    assert "holds files of something else" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_a_failing_step_stops_the_road(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text('{"id": "a"}\n')
    done = run_python("launch/quickstart.py", "--work", tmp_path / "work", "--corpus", tmp_path / "bad")
    assert done.returncode == 2
    assert "holds no documents" in done.stderr
    assert "dedup.py" not in done.stdout


def test_unigram_entropy_of_equally_frequent_tokens_is_the_log_of_their_number():
    source = lambda name, *shards: SimpleNamespace(name=name, shards=[SimpleNamespace(tokens=t) for t in shards])  # noqa: E731
    sources = [source("en", np.array([0, 1])), source("zh", np.array([9, 7]), np.array([2, 8]))]
    assert unigram_entropy(sources[1:], {"zh": 1.0}) == pytest.approx(np.log(4))
    assert unigram_entropy(sources, {"en": 0.5, "zh": 0.5}) == pytest.approx((np.log(4) + np.log(8)) / 2)
