"""The main job as a newcomer runs it."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest

from launch.quickstart import data_steps, follow, main, python, run_steps, shown
from launch.quickstart_summary import next_commands, unigram_entropy
from tests.conftest import ROOT, SHARED, Called, needs_shared, run_python
from tests.documentation import bash_blocks, checkout, run_as_it_stands
from tests.patience import PATIENCE_S
from tests.test_commands import commands as console_commands


def summary_of(output: str) -> dict[str, str]:
    return fields(output[output.rindex("\nsummary\n") :])


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S[^\n]*?)  +(\S.*)$", text, re.M))


def check_losses(found):
    first, last = map(float, re.findall(r"(\d+\.\d+) at step", found["loss"]))
    entropy = float(found["unigram entropy"].split()[0])
    assert last < entropy < first
    for language in ("en", "zh"):
        assert 0 < float(found[f"held-out {language}"].split()[0]) < 8


def check_pages(found):
    for name in ("page of the data", "page of the run"):
        assert Path(url2pathname(urlsplit(found[name]).path)).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_the_readmes_quickstart_runs_as_it_stands(tmp_path):
    installed = subprocess.run(["make", "--question", ".venv/.installed"], cwd=ROOT, check=False)
    assert installed.returncode == 0, (
        "run `make install` first: the README's command would install in the middle of the tests"
    )
    readme, folder = ROOT / "README.md", checkout(tmp_path)
    make, then = bash_blocks(readme, "Quickstart")
    output = run_as_it_stands(make, folder).stdout
    assert "\nsummary\n" in output, output[-4000:]
    assert re.findall(r"^(?:[WIE]\d{4} |.*Warning: |\[W).*", output, re.M) == []  # of other packages
    found = summary_of(output)
    check_embedded(output, found, tmp_path)
    promised = fields(readme.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0])
    assert list(promised) == [name for name in found if name in promised]
    assert {name: found[name] for name in promised if name.startswith("tokens")} == {
        name: text for name, text in promised.items() if name.startswith("tokens")
    }
    # and of docs/evaluate.md what needs no more than the quickstart's export
    (evaluate,) = (
        code for code in bash_blocks(ROOT / "docs/evaluate.md") if "held-out --model work/quickstart" in code
    )
    done = run_as_it_stands(then + evaluate, folder)
    assert done.returncode == 0, done.stdout[-4000:]
    for part in ("training finished", "[Glm4MoeForCausalLM] The", "dry run", "days for 1,000B tokens"):
        assert part in done.stdout, part


def check_embedded(output, found, tmp_path):
    check_losses(found)
    kept = int(re.fullmatch(r"7,200 in, (.*) kept", found["documents"])[1].replace(",", ""))
    assert 5_950 < kept < 6_050  # 6,000 sound ones, and the planted near duplicates that are too far from them
    for kind, caught, planted in re.findall(r"([a-z_: ]+) (\d+)/(\d+)", found["planted, caught"]):
        assert int(caught) >= 0.95 * int(planted) > 0, kind
    assert float(re.search(r"max/mean (\d+\.\d+)", found["expert load"])[1]) < 2
    assert len(re.findall(r"^\[Glm4MoeForCausalLM\] .{15}", output, re.M)) == 2
    for name in ("run folder", "model"):
        assert found[name].startswith(str(tmp_path))
    check_pages(found)
    first_line = "quickstart: 11 steps on this machine's CPU"
    own = [line for line in output.splitlines() if not line.startswith("make")]  # a make in a make says where it is
    assert own[1].startswith(first_line)  # after the command that make shows
    assert [f"[{n} of 11] took " in output for n in range(1, 12)] == [True] * 11


@pytest.mark.slow
@needs_shared
def test_a_corpus_of_real_documents(tmp_path):
    (tmp_path / "corpus").mkdir()
    documents = 0
    for name in (
        "en_react-docs",
        "en_rust-book",
        "en_rust-rfcs",
        "zh_react-docs",
        "zh_rust-book",
        "zh_tensorflow-docs",
    ):
        packed = (SHARED / "corpus" / f"{name}.jsonl.gz").read_bytes()
        documents += gzip.decompress(packed).count(b"\n")
        (tmp_path / "corpus" / f"{name}.jsonl.gz").write_bytes(packed)
    half = (
        "--set",
        "schedule.total_tokens=300000",
        "--set",
        "schedule.decay_tokens=100000",
    )  # of the embedded corpus's
    words = ("launch/quickstart.py", "--work", tmp_path / "work", "--corpus", tmp_path / "corpus", *half)
    done = run_python(*words, timeout=PATIENCE_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = summary_of(done.stdout)
    check_losses(found)
    assert found["documents"].startswith(f"{documents:,} in")
    assert "planted, caught" not in found
    check_pages(found)


def test_mistakes_end_in_one_sentence(tmp_path, capsys):
    done = Called(main, capsys, "--work", tmp_path, "--corpus", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "does not exist; give a file or folder" in done.stderr
    done = Called(main, capsys, "--work", tmp_path / "work", "--set", "schedule.peak_lrr=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'peak_lr'?" in done.stderr
    assert not (tmp_path / "work").exists()
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
    assert "error: stopped in [1 of 10] drop documents of low quality: exit code 2" in done.stderr


def test_ctrl_c_lets_the_command_end_and_says_where_it_was(monkeypatch, capsys):
    waits = []

    class Interrupted:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def wait(self) -> int:
            waits.append("wait")
            if len(waits) == 1:
                raise KeyboardInterrupt
            return -2

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(SystemExit) as exit_:
        follow([python("tokenize", "data_prep/tokenize_corpus.py"), python("train", "recipe/train.py")])
    assert (exit_.value.code, waits) == (130, ["wait", "wait"])
    assert "interrupted in [1 of 2] tokenize; run the quickstart again" in capsys.readouterr().err


def test_steps_are_shown_as_they_are_typed_in_the_projects_folder():
    work = ROOT / "work" / "somewhere"
    steps = [*data_steps(work / "raw", work, True), *run_steps(work, ["seed=1"])]
    typed = [shown(step.words()) for step in steps]
    assert typed[2] == "python data_prep/dedup.py --input work/somewhere/curated --output work/somewhere/deduped"
    assert typed[6].startswith("deepspeed --quiet --num_gpus 2 --master_port ")
    assert typed[6].endswith(
        "--set tokenizer=work/somewhere/tokenizer --set data.tokens=work/somewhere/tokens --set seed=1"
    )
    for line in typed:
        (script,) = re.findall(r"\S+\.py", line)
        assert (ROOT / script).is_file()
    assert len(data_steps(work / "raw", work, False)) == len(data_steps(work / "raw", work, True)) - 1


def test_commands_to_try_are_there():
    lines = next_commands(ROOT, ROOT / "work" / "x", "it's a", embedded=True).splitlines()
    commands = [line.split("  ")[-1] for line in lines[1:]]
    known = console_commands().keys() | {"tensorboard", "make"}
    assert {command.split()[0] for command in commands} <= known
    assert shlex.split(commands[0]) == ["moe-generate", "--model", "work/x/export", "--prompt", "it's a"]
    assert len(next_commands(ROOT, ROOT / "x", "a", embedded=False).splitlines()) == len(lines) - 1


def test_unigram_entropy_of_equally_frequent_tokens_is_the_log_of_their_number():
    source = lambda name, *shards: SimpleNamespace(name=name, shards=[SimpleNamespace(tokens=t) for t in shards])  # noqa: E731
    sources = [source("en", np.array([0, 1])), source("zh", np.array([9, 7]), np.array([2, 8]))]
    assert unigram_entropy(sources[1:], {"zh": 1.0}) == pytest.approx(np.log(4))
    assert unigram_entropy(sources, {"en": 0.5, "zh": 0.5}) == pytest.approx((np.log(4) + np.log(8)) / 2)
