"""All data jobs alike: help, bad input, resumption after a kill, and results that do not depend on workers."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.core.stage import Stage
from data_prep.documents.reading import write_documents
from recipe.base.errors import UserError
from recipe.base.strict import load_json
from tests.conftest import Prepared, documents_in, run_python
from tests.data_prep.job_server import Kill, run_job

JOBS = ["curate", "dedup", "decontaminate", "train_tokenizer", "tokenize_corpus"]
DOCUMENT = {"id": "a", "text": "The old ship of the harbour is to be moved. " * 10}


def job_words(job: str, source: Path, output: Path, prepared: Prepared, *more: object) -> list[object]:
    words: list[object] = [f"data_prep/{job}.py", "--input", source, "--output", output, "--workers", 1, *more]
    if job == "decontaminate":
        words += ["--evaluation", prepared.evaluation]
    if job in ("tokenize_corpus", "evaluate_tokenizer"):
        words += ["--tokenizer", prepared.tokenizer]
    if job == "dedup, spans":
        words[0], config = "data_prep/dedup.py", output.parent / "dedup.yaml"
        config.write_text("repeated_spans: {min_characters: 40}\n")
        words += ["--config", config]
    if job == "pack_sequences":
        words[2] = prepared.tokens
    if job == "train_tokenizer":
        words += ["--config", prepared.tokenizer.parent / "tokenizer.yaml"]
    return words


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "job",
    [
        *JOBS,
        "synthetic_corpus",
        "evaluate_tokenizer",
        "ingest",
        "import_shards",
        "mix",
        "pack_sequences",
        "train_quality",
    ],
)
def test_help_shows_an_example(job):
    done = run_python(f"data_prep/{job}.py", "--help")
    assert done.returncode == 0
    assert f"python data_prep/{job}.py --" in done.stdout


def test_the_help_of_the_report_shows_an_example():
    assert "python data_prep/report.py work/curated" in run_python("data_prep/report.py", "--help").stdout


@pytest.mark.parametrize("job", JOBS)
def test_bad_input_ends_in_one_sentence_and_code_2(job, prepared, tmp_path):
    empty = tmp_path / "blank.jsonl"
    empty.write_text("\n")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").touch()
    for number, (source, output, message) in enumerate(
        (
            (tmp_path / "missing", tmp_path / "out0", "does not exist"),
            (empty, tmp_path / "out1", "holds no documents"),
            (prepared.deduped, occupied, "holds files of something else"),
            (prepared.deduped, "/proc/nowhere", "cannot be written"),
        )
    ):
        done = run_job(*job_words(job, source, output, prepared))
        assert done.returncode == 2, (number, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in occupied.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("job", JOBS)
def test_a_typo_in_the_config_is_named(job, prepared, tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("sede: 1\nvocab_size: 1024\nsample_bytes: 10\nlanguages: {}\n")
    words = [*job_words(job, prepared.deduped, tmp_path / "out", prepared), "--config", config]
    done = run_job(*words)
    assert done.returncode == 2
    assert "unknown key 'sede'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", JOBS)
def test_bad_records_are_set_aside_up_to_a_limit(job, prepared, tmp_path):
    source = tmp_path / "in.jsonl"
    write_documents(source, [DOCUMENT])
    with open(source, "ab") as handle:
        handle.write(b'{"id": "b"}\nnot json\n')
    done = run_job(*job_words(job, source, tmp_path / "ok", prepared, "--max-bad", 2))
    assert done.returncode == 0, done.stderr
    aside = load_json(tmp_path / "ok" / "bad_records" / "00000.json")
    assert (aside[0]["record"], aside[0]["reason"]) == (2, "missing field 'text'")
    assert len(aside) == 2

    done = run_job(*job_words(job, source, tmp_path / "strict", prepared, "--max-bad", 1))
    assert done.returncode == 2
    assert "more than --max-bad 1" in done.stderr
    assert not (tmp_path / "strict" / "manifest.json").exists()


@pytest.mark.parametrize("job", JOBS)
def test_a_second_run_changes_nothing_and_other_parameters_are_refused(job, prepared, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    write_documents(source, [DOCUMENT])
    words = job_words(job, source, output, prepared)
    assert run_job(*words).returncode == 0
    before = contents(output)
    assert run_job(*words).returncode == 0
    assert contents(output) == before

    write_documents(source, [DOCUMENT, {**DOCUMENT, "id": "b"}])
    done = run_job(*words)
    assert done.returncode == 2
    assert "was made with other inputs" in done.stderr
    assert contents(output) == before


def test_an_output_inside_its_input_is_refused(prepared, tmp_path):
    write_documents(tmp_path / "in.jsonl", [DOCUMENT])
    for output in (tmp_path, tmp_path / "out"):
        done = run_job(*job_words("curate", tmp_path, output, prepared))
        assert done.returncode == 2
        assert "which would read what it wrote" in done.stderr


def test_a_kill_before_the_first_file_does_not_block_the_next_run(prepared, tmp_path):
    write_documents(tmp_path / "in.jsonl", [DOCUMENT])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stage.json.partial").write_text("{")
    assert run_job(*job_words("curate", tmp_path / "in.jsonl", tmp_path / "out", prepared)).returncode == 0


def die(task, number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_in_one_sentence(tmp_path):
    write_documents(tmp_path / "in.jsonl", [DOCUMENT])
    stage = Stage("dedup", tmp_path / "in.jsonl", tmp_path / "out", {})
    with pytest.raises(UserError, match="a worker of dedup: phase was killed"):
        stage.run_tasks("phase", die, [1, 2], workers=2)


def test_ctrl_c_between_tasks_says_that_the_same_command_goes_on(tmp_path):
    write_documents(tmp_path / "in.jsonl", [DOCUMENT])
    stage = Stage("dedup", tmp_path / "in.jsonl", tmp_path / "out", {})

    def interrupted(*_: object) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {}
        raise KeyboardInterrupt

    stage.engine = SimpleNamespace(run=interrupted)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt, match="finished tasks are kept, run the same command again to go on"):
        stage.run_tasks("copy", print, [1, 2])
    assert (tmp_path / "out" / "tasks" / "copy" / "00000.json").exists()


def test_an_unfinished_stage_is_no_input(prepared, tmp_path):
    unfinished = tmp_path / "unfinished"
    (unfinished / "documents").mkdir(parents=True)
    (unfinished / "stage.json").write_text('{"schema": "data_prep.stage"}')
    done = run_job(*job_words("dedup", unfinished, tmp_path / "out", prepared))
    assert done.returncode == 2
    assert "is the output of a job that has not finished; run that job again" in done.stderr


def test_two_processes_may_not_write_one_output(prepared, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_job(*job_words("dedup", prepared.curated, tmp_path / "out", prepared))
    assert done.returncode == 2
    assert "is being written by another process" in done.stderr


def parts_of(prepared: Prepared, folder: Path, parts: int, documents: int = 80) -> Path:
    """A small corpus in so many files."""
    some = documents_in(prepared.curated)[:documents]
    for part in range(parts):
        write_documents(folder / f"{part}.jsonl.gz", some[part::parts])
    return folder


def run_until_not_killed(words: list[object], output: Path, come_to: Path) -> int:
    """Run a job again and again, each time killed before the next change to its output; how often it was."""
    kill = Kill(before_changes_to=output, come_to=come_to)
    for attempt in range(1000):
        done = run_job(*words, kill=kill)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, (attempt, done.stderr)
            return attempt
    raise AssertionError("the job does not get on")


@pytest.mark.parametrize(
    ("job", "workers"),
    [
        ("curate", 2),
        ("dedup", 1),
        ("dedup", 2),
        ("dedup, spans", 1),
        ("decontaminate", 1),
        ("train_tokenizer", 1),
        ("tokenize_corpus", 2),
        ("evaluate_tokenizer", 1),
        ("pack_sequences", 1),
    ],
)
def test_killed_before_each_change_to_its_output_a_job_ends_in_the_same_bytes(job, workers, prepared, tmp_path):
    source = parts_of(prepared, tmp_path / "in", workers)
    assert run_job(*job_words(job, source, tmp_path / "reference", prepared)).returncode == 0
    output = tmp_path / "killed"
    words = job_words(job, source, output, prepared, "--workers", workers)
    kills = run_until_not_killed(words, output, tmp_path / "come_to")
    reference = contents(tmp_path / "reference")
    assert contents(output) == reference
    come_to = (tmp_path / "come_to").read_text()
    assert all(f"os.rename /{name}\n" in come_to for name in reference if name != ".lock")
    assert kills > len(reference) / 2  # workers at once may come to a change each before one of them ends all


@pytest.mark.slow
@pytest.mark.parametrize("job", [*JOBS, "evaluate_tokenizer"])
def test_killed_at_random_moments_a_job_ends_in_the_same_bytes(job, prepared, tmp_path):
    """In the middle of what it writes and computes, too."""
    source = parts_of(prepared, tmp_path / "in", 3, documents=200)
    reference = run_job(*job_words(job, source, tmp_path / "reference", prepared))
    assert reference.returncode == 0
    rng, kills = random.Random(job), 0
    for moment in range(10):
        words = job_words(job, source, tmp_path / f"killed-{moment}", prepared)
        kills += run_job(*words, kill=Kill(after_cpu_s=rng.uniform(0, reference.cpu_s))).returncode == -signal.SIGPROF
        assert run_job(*words).returncode == 0
        assert contents(tmp_path / f"killed-{moment}") == contents(tmp_path / "reference"), moment
    assert kills > 5


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 300 kB, for root; others cannot mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=False).returncode == 0
    if not mounted:
        pytest.skip("this machine does not allow mounts")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("job", ["curate", "dedup", "tokenize_corpus"])
def test_a_full_disk_ends_in_one_sentence_and_goes_on_when_there_is_room(job, prepared, tiny_disk, tmp_path):
    source = parts_of(prepared, tmp_path / "in", 4, documents=400)
    (tiny_disk / "ballast").write_bytes(b"x" * 280_000)
    words = job_words(job, source, tiny_disk / "out", prepared)
    done = run_job(*words)
    assert done.returncode == 2, done.stderr
    assert "No space left on device; free or permit it and run again" in done.stderr
    assert "Traceback" not in done.stderr
    (tiny_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", tiny_disk], check=True)
    assert run_job(*words).returncode == 0
    assert run_job(*job_words(job, source, tmp_path / "reference", prepared)).returncode == 0
    assert contents(tiny_disk / "out") == contents(tmp_path / "reference")


@pytest.mark.parametrize("job", JOBS)
def test_damaged_input_ends_in_one_sentence(job, prepared, tmp_path):
    good = tmp_path / "in" / "a.jsonl.gz"
    write_documents(good, documents_in(prepared.curated)[:50])
    cut = tmp_path / "in" / "b.jsonl.gz"
    cut.write_bytes(good.read_bytes()[:-100])
    done = run_job(*job_words(job, tmp_path / "in", tmp_path / "out", prepared))
    assert done.returncode == 2
    assert "b.jsonl.gz is damaged or truncated; fetch it again or remove it" in done.stderr
    assert "Traceback" not in done.stderr
    cut.unlink()
    shutil.rmtree(tmp_path / "out")
    assert run_job(*job_words(job, tmp_path / "in", tmp_path / "out", prepared)).returncode == 0


# In a small process of its own, since a child's peak begins with that of the process it was forked from.
PEAK = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


@pytest.mark.slow
@pytest.mark.parametrize("job", ["curate", "dedup", "decontaminate", "tokenize_corpus"])
def test_a_document_of_200_megabytes_takes_no_more_memory_than_a_worker_has(job, prepared, tmp_path):
    with open(tmp_path / "in.jsonl", "w", encoding="utf-8") as handle:
        sentence = "住在河边的人大多见过这些船。Most of the people by the river. "
        for identity, size in (("huge", 200_000_000), ("large", 20_000_000), ("small", 1000)):
            text = sentence * (size // len(sentence.encode()))
            handle.write(json.dumps({"id": identity, "text": text}, ensure_ascii=False) + "\n")
    words = job_words(job, tmp_path / "in.jsonl", tmp_path / "out", prepared)
    done = run_python("-c", PEAK, sys.executable, *words)
    code, peak_kib = map(int, done.stdout.split()[-2:])
    assert code == 0, done.stderr
    assert peak_kib < 1024**2
    (aside,) = load_json(tmp_path / "out" / "bad_records" / "00000.json")
    assert (aside["record"], aside["reason"]) == (1, "longer than 33,554,432 bytes")


def test_the_end_of_a_job_tells_documents_reasons_time_and_the_next_command(prepared, tmp_path):
    source = tmp_path / "in.jsonl"
    words = "The cat sat with the dog and it was good to be here with them today. " * 10
    texts = [{"id": "a", "text": words}, {"id": "b", "text": "Too short of the."}, {"id": "c", "text": 5}]
    source.write_text("".join(json.dumps(text) + "\n" for text in texts))
    done = run_job("data_prep/curate.py", "--input", source, "--output", tmp_path / "out", "--workers", 1)
    assert re.search(rf"^curate: 2 documents in, \d kept, [\d.]+ s -> {tmp_path}/out$", done.stdout, re.M)
    assert re.search(
        r"^  dropped +1  fewer than 50 words \(other limits for bilingual, code, verse\) \(words_low\)$",
        done.stdout,
        re.M,
    )
    assert f"set aside 1 record without usable text, with the reasons in {tmp_path}/out/bad_records" in done.stdout
    assert done.stderr.startswith(
        f"curate: reads 1 file, {source.stat().st_size} bytes, 1 task at the same time, writes "
    )
    again = run_job("data_prep/curate.py", "--input", source, "--output", tmp_path / "out", "--workers", 1)
    assert ", finished before -> " in again.stdout
    assert again.stderr == ""


def test_a_job_that_keeps_nothing_says_so_and_one_that_keeps_something_names_the_next_command(prepared, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "b", "text": "Too short of the."}\n')
    nothing = run_job("data_prep/curate.py", "--input", source, "--output", tmp_path / "out").stdout
    assert f"note: no document is left; read some that were dropped in {tmp_path}/out/dropped" in nothing
    assert "next: " not in nothing
    some = run_job("data_prep/curate.py", "--input", prepared.curated, "--output", tmp_path / "more").stdout
    command = f"next: python data_prep/dedup.py --input {tmp_path}/more --output {tmp_path}/deduped"
    assert some.splitlines()[-1] == command
