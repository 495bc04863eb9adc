#!/usr/bin/env python3
"""The whole road on one machine: documents to a trained, evaluated, exported model, each step by its own command."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.curation.settings import load_curate_config
from launch.cluster.hosts import deepspeed_launcher, free_port
from launch.quickstart_summary import next_commands, summary
from recipe.base.errors import INTERRUPTED, UserError, exit_on_user_error
from recipe.base.settings import load_run_config
from recipe.base.strict import load_json
from recipe.base.tables import duration
from recipe.data.token_folder import TokenFolder

ROOT = Path(__file__).resolve().parent.parent
RUN_CONFIG, DS_CONFIG, RANKS = "recipe/configs/runs/quickstart.yaml", "ds_configs/cpu_2.json", 2
# torch warns of a CUDA toolkit without a GPU, which is meant here
NO_HINT_OF_CUDA = "-torch.utils.cpp_extension"
VOCAB_SIZE = 4096  # of recipe/configs/models/tiny
# of the documents, and of their text at most: evaluating it takes seconds on two cores
HELD_OUT, HELD_OUT_BYTES = 0.02, 400_000
EXAMPLE = """examples:
  make quickstart                        the embedded corpus, 3 to 6 minutes on two cores
  make quickstart CORPUS=my/documents    a file or folder of .jsonl(.gz|.zst) or .parquet documents with a field text"""


@dataclass(frozen=True)
class Step:
    """One command of the road.

    Args:
        title: what it does, for a reader.
        words: the command, known when those before it are done.
        note: how long it takes, where that is most of the time.
        before: what it needs of those before it, done just before.
    """

    title: str
    words: Callable[[], list[str]]
    note: str = ""
    before: Callable[[], object] = lambda: None


def shown(words: Sequence[str]) -> str:
    """A command as it is typed in the project's folder, in an environment of launch/env.sh."""
    short = {sys.executable: "python", deepspeed_launcher(): "deepspeed"}
    return shlex.join(short.get(word, word.replace(f"{ROOT}/", "")) for word in words)


def python(title: str, script: str, *arguments: object, before: Callable[[], object] = lambda: None) -> Step:
    return Step(title, lambda: [sys.executable, script, *map(str, arguments)], before=before)


def deepspeed(title: str, script: str, *arguments: object, note: str = "") -> Step:
    def words() -> list[str]:
        launcher = [deepspeed_launcher(), "--quiet", "--num_gpus", RANKS, "--master_port", free_port()]
        return [str(word) for word in (*launcher, script, *arguments)]

    return Step(title, words, note)


def data_steps(raw: Path, work: Path, embedded: bool, curation: Path | None = None) -> list[Step]:
    """From documents to tokens; `curation` is a config of curate.py with other languages than the shipped one."""
    config = [] if curation is None else ["--config", curation]
    curated, deduped, tokenizer, tokens = (work / name for name in ("curated", "deduped", "tokenizer", "tokens"))

    def hold_out() -> None:
        size = load_json(deduped / "manifest.json")["counts"]["bytes_out"]
        write_config(work, "tokenize", {"held_out": min(HELD_OUT, HELD_OUT_BYTES / max(1, size))})

    steps = [
        python("drop documents of low quality", "data_prep/curate.py", "--input", raw, "--output", curated, *config),
        python("drop duplicates", "data_prep/dedup.py", "--input", curated, "--output", deduped),
        python("train the tokenizer", "data_prep/train_tokenizer.py", "--input", deduped, "--output", tokenizer,
               "--config", work / "tokenizer.yaml"),
        python("tokenize", "data_prep/tokenize_corpus.py", "--input", deduped, "--tokenizer", tokenizer,
               "--output", tokens, "--config", work / "tokenize.yaml", before=hold_out),
        python("write the page of the data", "data_prep/report.py", curated, deduped, tokens,
               "--output", work / "data.html"),
    ]  # fmt: skip
    if not embedded:
        return steps
    languages = [] if curation is None else ["--languages", ",".join(load_curate_config(curation).languages)]
    return [
        python("make the embedded corpus", "data_prep/synthetic_corpus.py", "--output", raw, *languages),
        *steps,
    ]


def run_steps(work: Path, overrides: list[str]) -> list[Step]:
    """From tokens to a model."""
    run, export = work / "run", work / "export"
    settings = [f"run_dir={run}", f"tokenizer={work / 'tokenizer'}", f"data.tokens={work / 'tokens'}", *overrides]
    return [
        deepspeed("train a model of 2.4M parameters", "recipe/train.py",
                  "--config", RUN_CONFIG, "--deepspeed_config", DS_CONFIG,
                  *(word for setting in settings for word in ("--set", setting)), note=", 2 to 5 minutes on two cores"),
        deepspeed("evaluate it on held-out documents", "recipe/evaluate_model.py", "held-out", "--run", run,
                  note=", mostly the start of two ranks"),
        python("write the page of the run", "recipe/report.py", run),
        deepspeed("export it as a HuggingFace folder", "recipe/export.py", "--run", run, "--output", export,
                  note=", mostly the start of two ranks"),
    ]  # fmt: skip


def write_step(work: Path) -> Step:
    """The exported model continues the first words of held-out documents."""

    def words() -> list[str]:
        asked = [word for prompt in prompts(work) for word in ("--prompt", prompt)]
        return [sys.executable, "launch/generate.py", "--model", str(work / "export"), *asked]

    return Step("generate text, with transformers alone", words)


def follow(steps: Sequence[Step], again: str = "run the quickstart again, it starts from the beginning") -> None:
    """Run each step in the project's folder, and say which it is and how long it took; stop with its exit code if it fails.

    Args:
        again: what a user does after a step that failed or was interrupted.
    """
    for at, step in enumerate(steps, start=1):
        step.before()
        position, started, words = f"[{at} of {len(steps)}]", time.monotonic(), step.words()
        print(f"\n{position} {step.title}{step.note}\n$ {shown(words)}", flush=True)
        try:
            code = _run(words)
        except KeyboardInterrupt:
            print(f"\ninterrupted in {position} {step.title}; {again}", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None
        if code:
            print(
                f"error: stopped in {position} {step.title}: exit code {code}, see the message above; mend its cause and {again}",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(code)
        print(f"{position} took {duration(time.monotonic() - started)}", flush=True)


def _run(words: list[str]) -> int:
    """The exit code. After a ctrl-C, which a terminal sends to the command too, the command has the time to end by itself."""
    # On CPU also where there are GPUs: the shipped ds_config is for two CPU ranks, which share the cores.
    threads = max(1, (os.cpu_count() or 1) // RANKS)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment.setdefault("TORCH_LOGS", NO_HINT_OF_CUDA)
    process = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def write_config(work: Path, name: str, changes: dict[str, float]) -> Path:
    """The shipped configuration of a data job with other sizes, as a file of its own."""
    shipped = yaml.safe_load((ROOT / f"data_prep/configs/{name}.yaml").read_text(encoding="utf-8"))
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**shipped, **changes}, allow_unicode=True), encoding="utf-8")
    return path


def prompts(work: Path) -> list[str]:
    """The first words of one held-out document of each source."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    sources = TokenFolder(work / "tokens").sources("held_out")
    return [tokenizer.decode(next(source.shards[0].documents())[:3].tolist()).strip() for source in sources]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, help="jsonl or parquet documents (default: the embedded synthetic corpus)"
    )
    parser.add_argument(
        "--curation", type=Path,
        help="a config of data_prep/curate.py, which names the languages (default: English and Chinese)",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, default=Path("work/quickstart"),
        help="folder for all results; what an earlier quickstart left in it is removed (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run config, recipe/configs/runs/quickstart.yaml; may be repeated",
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    work, started = args.work.resolve(), time.monotonic()
    embedded = args.corpus is None
    if not embedded and not args.corpus.exists():
        raise UserError(
            f"CORPUS {args.corpus} does not exist; give a file or folder of .jsonl(.gz|.zst) or .parquet documents"
        )
    curation = None if args.curation is None else args.curation.resolve()
    if curation is not None:
        load_curate_config(curation)
    load_run_config(ROOT / RUN_CONFIG, args.set)  # a mistaken --set is told before the minutes of the data
    _start_clean(work)
    write_config(work, "tokenizer", {"vocab_size": VOCAB_SIZE, "reserved_tokens": 8})
    raw = work / "raw" if embedded else args.corpus.resolve()
    steps = [*data_steps(raw, work, embedded, curation), *run_steps(work, args.set), write_step(work)]
    print(f"quickstart: {len(steps)} steps on this machine's CPU, results in {work}", flush=True)
    follow(steps)
    print(f"\nsummary\n{summary(raw, work, embedded, time.monotonic() - started)}")
    prompt = " ".join(prompts(work)[0].split())
    print(f"\n{next_commands(ROOT, work, prompt, embedded)}")


def _start_clean(work: Path) -> None:
    """Remove what an earlier quickstart left in `work`, and nothing else."""
    marker = work / "quickstart.json"
    if marker.exists():
        shutil.rmtree(work)
    elif work.exists() and any(work.iterdir()):
        raise UserError(f"--work {work} holds files of something else; choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"made_by": "launch/quickstart.py"}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
