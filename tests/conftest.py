"""Shared fixtures: the shipped project, a small prepared corpus, and real launches of the deepspeed launcher."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cluster import hosts
from recipe.run.locks import in_turn
from tests.patience import PATIENCE_S
from tests.rank_server import Launched, RankServer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the sample corpora in ../shared")


# On CPU also where there are GPUs: gloo and real processes stand in for them.
CPU = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_command(
    *words: object, timeout: int = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder on CPU, as a user would; output captured, exit code not checked."""
    return subprocess.run(
        [str(w) for w in words],
        cwd=ROOT,
        env={**CPU, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_command(sys.executable, *words, **options)


def launch_words(ranks: int, script: object, *arguments: object) -> list[str]:
    """The deepspeed launcher on a free port with so many local ranks."""
    words = [
        hosts.deepspeed_launcher(),
        "--quiet",
        "--num_gpus",
        ranks,
        "--master_port",
        free_port(),
        script,
        *arguments,
    ]
    return [str(word) for word in words]


_ranks = RankServer(CPU)
atexit.register(_ranks.close)


def launch(
    ranks: int, script: object, *arguments: object, env: dict[str, str] | None = None, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """A script on so many ranks as the launcher would start them, without what it costs to start them."""
    return start_ranks(ranks, script, *arguments, env=env).completed(timeout)


def start_ranks(ranks: int, script: object, *arguments: object, env: dict[str, str] | None = None) -> Launched:
    """As `launch`, without waiting for the end."""
    return _ranks.start(ranks, script, *arguments, port=free_port(), env=env)


def start_forked(script: object, *arguments: object, env: dict[str, str] | None = None) -> Launched:
    """A script as `run_python` runs it, without what its imports cost and without waiting for the end."""
    return _ranks.start(0, script, *arguments, port=0, env=env)


def run_forked(
    script: object, *arguments: object, env: dict[str, str] | None = None, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """As `run_python`, without what imports cost."""
    return start_forked(script, *arguments, env=env).completed(timeout)


class Called:
    """A script's main called in this process: its exit code and what it printed."""

    def __init__(self, main: Callable[[list[str]], int | None], capsys: pytest.CaptureFixture[str], *arguments: object):
        capsys.readouterr()
        try:
            self.returncode = main([str(argument) for argument in arguments]) or 0
        except SystemExit as end:
            self.returncode = end.code
        self.stdout, self.stderr = capsys.readouterr()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes have no place in a test's name: gzip's hold the second at which they were made, and workers must agree."""
    return argname if isinstance(val, bytes) else None


_ports: list[int] = []


def free_port() -> int:
    _ports.append(hosts.free_port())
    return _ports[-1]


def last_port() -> int:
    """The port of this test's last launch."""
    return _ports[-1]


def shared_memory(port: int) -> list[Path]:
    """The buffers of ranks that were launched on this port; each is 66 MiB of memory."""
    return list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))


@pytest.fixture(autouse=True)
def _free_the_shared_memory_of_killed_ranks():
    yield
    while _ports:
        for buffer in shared_memory(_ports.pop()):
            buffer.unlink(missing_ok=True)


def ds_config(
    ranks: int, *, micro_batch: int, accumulation: int, autoep_size: int, stage: int = 3, **more: Any
) -> dict[str, Any]:
    """The shipped cpu_2.json with other sizes."""
    config = json.loads((ROOT / "ds_configs" / "cpu_2.json").read_text())
    config.update(
        train_batch_size=ranks * micro_batch * accumulation,
        train_micro_batch_size_per_gpu=micro_batch,
        gradient_accumulation_steps=accumulation,
        **more,
    )
    config["expert_parallel"]["autoep_size"] = autoep_size
    config["zero_optimization"]["stage"] = stage
    return config


def documents_in(stage: Path) -> list[dict[str, Any]]:
    """All documents that a data job wrote, in order."""
    from data_prep.documents.reading import read_documents

    def refuse(bad: object) -> None:
        raise AssertionError(bad)

    return [d for file in sorted((stage / "documents").iterdir()) for d in read_documents(file, refuse)]


@dataclass(frozen=True)
class Prepared:
    """Folders that the data jobs made from a small synthetic corpus."""

    raw: Path
    curated: Path
    deduped: Path
    tokenizer: Path
    tokens: Path

    @property
    def evaluation(self) -> Path:
        """Evaluation items, one of them from the corpus."""
        return self.raw.parent / "evaluation.jsonl"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    from data_prep import curate, dedup, synthetic_corpus, tokenize_corpus, train_tokenizer

    base = tmp_path_factory.mktemp("prepared")
    made = Prepared(*(base / name for name in ("raw", "curated", "deduped", "tokenizer", "tokens")))
    shipped = yaml.safe_load((ROOT / "data_prep/configs/tokenizer.yaml").read_text(encoding="utf-8"))
    small = {**shipped, "vocab_size": 1024, "reserved_tokens": 2}
    (base / "tokenizer.yaml").write_text(yaml.safe_dump(small, allow_unicode=True), encoding="utf-8")
    (base / "tokenize.yaml").write_text("source_by: lang\nheld_out: 0.05\n", encoding="utf-8")
    jobs = (
        (synthetic_corpus, "--output", made.raw, "--documents", 200),
        (curate, "--input", made.raw, "--output", made.curated, "--workers", 1),
        (dedup, "--input", made.curated, "--output", made.deduped, "--workers", 1),
        (train_tokenizer, "--input", made.deduped, "--output", made.tokenizer, "--config", base / "tokenizer.yaml"),
        (tokenize_corpus, "--input", made.deduped, "--tokenizer", made.tokenizer, "--output", made.tokens,
         "--config", base / "tokenize.yaml", "--workers", 1),
    )  # fmt: skip
    for job, *arguments in jobs:
        assert job.main([str(a) for a in arguments]) == 0
    items = [document["text"][:200] for document in documents_in(made.curated)[:1]] + ["which of these ships " * 10]
    made.evaluation.write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    return made


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run to launch: its config, and where it goes."""

    config: Path
    run_dir: Path

    def arguments(self, ds_path: Path, *more: object) -> list[object]:
        return ["--config", self.config, "--deepspeed_config", ds_path, *more]


def schedule_of(steps: int) -> dict[str, Any]:
    """The schedule of a small run of so many steps of 8 sequences of 32."""
    return {"total_tokens": steps * 8 * 32, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 1024}


def write_run(folder: Path, name: str, prepared: Prepared, **sections: Any) -> RunFiles:
    """Write a small run's config: sequences of 32, 20 steps of 8 sequences, a checkpoint every 10."""
    values = {
        "run_dir": str(folder / name),
        "model": "recipe/configs/models/tiny",
        "tokenizer": str(prepared.tokenizer),
        "data": {"tokens": str(prepared.tokens), "seq_length": 32},
        "schedule": schedule_of(20),
        "checkpoint": {"every_steps": 10},
        "logging": {"every_steps": 1},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return RunFiles(path, folder / name)


@pytest.fixture
def new_run(prepared: Prepared, tmp_path: Path):
    """`write_run` into the test's folder."""

    def make(name: str, **sections: Any) -> RunFiles:
        return write_run(tmp_path, name, prepared, **sections)

    return make


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tests' cheapest model: the tiny one with a single MoE layer, so half its time a step."""
    folder = tmp_path_factory.mktemp("model")
    shape = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": 2}))
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of xdist's workers to need it makes, while the others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    is_made = folder / ".made"
    with in_turn(folder.with_name(f"{name}.lock")):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder


def copy_of_run(source: RunFiles, target: RunFiles) -> RunFiles:
    """A run that has ended, in the folder of another config: to go on from it, or to spoil it."""
    shutil.copytree(source.run_dir, target.run_dir)
    return target


@pytest.fixture
def write_ds(tmp_path: Path):
    """A function that writes a ds_config JSON made by `ds_config` and returns its path."""

    def write(ranks: int, **options: Any) -> Path:
        path = tmp_path / f"ds_{ranks}_{len(list(tmp_path.glob('ds_*')))}.json"
        path.write_text(json.dumps(ds_config(ranks, **options)))
        return path

    return write


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The environment in which Slurm's commands find a cluster of this machine."""
    from tests.clusters import slurm_cluster

    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment
