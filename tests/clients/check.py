#!/usr/bin/env python3
"""Does every client read an exported folder as the model that was trained? Each in an environment of its own, against our class.

A client is right if its log-probabilities, over the whole vocabulary, and its greedy tokens are those of the class that was
trained, with weights that are read from the folder by hand; a trainer, if its first loss is; a harness, if its scores are those of
recipe/evaluate_model.py. Damaged copies of the first folder must be caught: a check that cannot fail shows nothing.
Without --model, small models are trained and exported first. Needs PyPI where an environment is missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.output_paths import check_output_file, check_output_folder  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402

PROMPTS = ["The old ship", "清晨的海", "   def f(x):\n\treturn 1234567"]
NEW_TOKENS = 12
# 4 rows of 24 tokens: every expert of a small model is chosen in them
ROWS, LENGTH = 4, 24


@dataclass(frozen=True)
class Client:
    """A program of others, how it is run, and how its answer is judged."""

    name: str
    environment: str | None  # of --envs, by requirements/ENVIRONMENT.txt; None: this one
    script: str
    judge: str  # one of JUDGES
    done: str  # what was run, for the table
    bound: float = 1e-4  # on a log-probability's difference, in fp32
    overlay: tuple[str, ...] = ()  # packages over the environment's, without what they need
    prepare: str | None = None  # one of PREPARATIONS
    # (part of a model's kind, part of what the client says): refusals that we know, none of them silent
    refuses: tuple[tuple[str, str], ...] = ()


LOGITS = "log-probabilities of the whole vocabulary, 96 positions, fp32; greedy text"
CLIENTS = (
    Client("transformers 4.57", "tf4", "transformers_client.py", "logits", f"{LOGITS}, with and without the cache; missing keys"),
    Client(
        "transformers 5.17", "tf5", "transformers_client.py", "logits", f"{LOGITS}, with and without the cache; missing keys",
        overlay=("transformers==5.17.0", "huggingface_hub==1.33.0", "httpx==0.28.1", "httpcore==1.0.9"),
    ),
    Client("transformers 5.24", "tf5", "transformers_client.py", "logits", f"{LOGITS}, with and without the cache; missing keys"),
    Client("vLLM, CPU", "vllm", "vllm_client.py", "logits", f"`LLM(...)` offline: {LOGITS}; `chat`", bound=1e-3),
    Client(
        "llama.cpp", "llama", "llama_cpp_client.py", "logits", f"launch/to_gguf.py, f32, llama-cpp-python: {LOGITS}",
        bound=1e-3, prepare="gguf",
    ),
    Client("PEFT", "tf5", "peft_client.py", "training", "LoRA on attention and experts, 8 steps; saved, loaded again"),
    Client("TRL", "tf5", "trl_client.py", "training", "`SFTTrainer` over text, 8 steps"),
    Client("lm-evaluation-harness", "tf5", "lm_eval_client.py", "scores", "`--model hf`, bits per byte of six texts"),
    Client(
        "SGLang", "tf5", "sglang_client.py", "names", "not run (it needs a GPU): the names that its loader's source has",
        overlay=("sglang==0.5.23",),
    ),
)  # fmt: skip


@dataclass
class Case:
    """One folder, and what our class makes of it."""

    folder: Path
    work: Path
    request: dict[str, Any]
    reference: Any  # [B, S, V]
    model: Any
    eos_token_id: int
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))


class Wrong(Exception):
    """A client read the folder as another model."""


def new_case(folder: Path, work: Path) -> Case:
    import torch

    from tests.clients.reference import log_probabilities, reference_model

    work.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = reference_model(folder)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, config["vocab_size"], (ROWS, LENGTH), generator=random).tolist()
    request = {
        "model": str(folder.absolute()),
        "gguf": str((work / "model.gguf").absolute()),
        "dtype": "float32",
        "vocab_size": config["vocab_size"],
        "max_length": min(256, config["max_position_embeddings"]),
        "tokens": tokens,
        "prompts": PROMPTS,
        "new_tokens": NEW_TOKENS,
        "texts": [f"{prompt}: {word} and the keeper of the light" for prompt in PROMPTS for word in ("one", "二")],
        "task": "texts",
        "task_folder": str((work / "task").absolute()),
    }
    write_task(work / "task")
    eos = config["eos_token_id"]
    return Case(folder, work, request, log_probabilities(model, tokens), model, eos if isinstance(eos, int) else eos[0])


def write_task(folder: Path) -> None:
    """The bits a byte of a few texts, a figure that no two models share; data and task as lm-evaluation-harness reads them."""
    folder.mkdir(exist_ok=True)
    rows = [{"text": f"{prompt}, {word} and the keeper of the light"} for prompt in PROMPTS for word in ("one", "描述")]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # JSON is YAML
    task = {
        "task": "texts", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    (folder / "texts.yaml").write_text(json.dumps(task))


def judge_logits(case: Case, client: Client, facts: dict[str, Any], answer: Path) -> str:
    """The largest difference of a log-probability; all else must be equal."""
    import numpy as np
    from tokenizers import Tokenizer

    from tests.clients.reference import greedy

    scores = np.load(f"{answer}.npy")
    expected = case.reference.numpy()[:, : scores.shape[1]]
    difference = float(np.abs(scores - expected).max())
    if not difference <= client.bound:
        raise Wrong(f"log-probabilities differ by {difference:.1g}")
    for keys in ("missing", "unexpected"):
        if facts.get(keys):
            raise Wrong(f"{len(facts[keys])} {keys} keys, such as {facts[keys][0]}")
    tokenizer = Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    for prompt, ids, tokens, text in zip(
        case.request["prompts"], facts["ids"], facts["generated"], facts["text"], strict=True
    ):
        if ids != tokenizer.encode(prompt, add_special_tokens=False).ids:
            raise Wrong(f"other token ids of {prompt!r}")
        own = greedy(case.model, ids, case.request["new_tokens"], case.eos_token_id)
        if tokens != own:
            raise Wrong(f"other greedy tokens after {prompt!r}")
        # vLLM holds a text's end back while a character is unfinished
        full = tokenizer.decode(own)
        if not full.startswith(text.rstrip("\ufffd")) or full[len(text) :][:1] not in ("", "\ufffd"):
            raise Wrong(f"other text after {prompt!r}")
    if facts.get("generated_uncached", facts["generated"]) != facts["generated"]:
        raise Wrong("other greedy tokens with the cache than without")
    return f"{difference:.0e}, same text" if difference else "0, same text"


def judge_training(case: Case, client: Client, facts: dict[str, Any], answer: Path) -> str:
    from tests.clients.reference import loss_of

    own, (first, *_, last) = loss_of(case.model, facts["rows"], facts["labels"]), facts["losses"]
    own += facts.get("auxiliary", 0.0)
    if abs(first - own) > 1e-3:
        raise Wrong(f"its first loss is {first:.4f} and the model's is {own:.4f}")
    if not last < first - 0.02:
        raise Wrong(f"its loss does not fall: {first:.4f}, then {last:.4f}")
    if facts.get("reloaded_difference", 0.0) > 1e-4:
        raise Wrong(f"the adapter that was loaded again gives other logits, by {facts['reloaded_difference']:.1g}")
    return f"loss {first:.2f} → {last:.2f}"


def judge_scores(case: Case, client: Client, facts: dict[str, Any], answer: Path) -> str:
    output = case.work / "scores.json"
    run(
        [
            sys.executable, ROOT / "recipe/evaluate_model.py", "downstream", "--model", case.folder, "--tasks", "texts",
            "--tasks-path", case.request["task_folder"], "--output", output,
        ],
        {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}, case.work / "scores.log",
    )  # fmt: skip
    own = json.loads(output.read_text())["tasks"]["texts"]["bits_per_byte"]["value"]
    theirs = facts["scores"]["bits_per_byte,none"]
    if abs(theirs - own) > 1e-5 * own:
        raise Wrong(f"{theirs:.6f} bits per byte, and evaluate_model.py gives {own:.6f}")
    return f"{theirs:.4f} bits per byte, same score"


def judge_names(case: Case, client: Client, facts: dict[str, Any], answer: Path) -> str:
    if facts["unknown"]:
        raise Wrong(f"{len(facts['unknown'])} tensors that it does not look for, such as {facts['unknown'][0]}")
    return f"{facts['known']} names known, not run"


JUDGES: dict[str, Callable[[Case, Client, dict[str, Any], Path], str]] = {
    "logits": judge_logits,
    "training": judge_training,
    "scores": judge_scores,
    "names": judge_names,
}


def gguf(case: Case, envs: Path) -> None:
    """The folder as GGUF, by the recipe's own command."""
    output = Path(case.request["gguf"])
    output.unlink(missing_ok=True)
    words = ["--model", case.folder, "--llama-cpp", llama_cpp(envs), "--output", output, "--", "--outtype", "f32"]
    run([sys.executable, ROOT / "launch/to_gguf.py", *words], {"PYTHONPATH": str(ROOT)}, case.work / "gguf.log")


PREPARATIONS = {"gguf": gguf}


def llama_cpp(envs: Path) -> Path:
    """The llama.cpp that the runtime was built of: its converter is in the package's source, not in the built package."""
    checkout = envs / "llama.cpp"
    if not checkout.exists():
        pin = (HERE / "requirements" / "llama.txt").read_text().split()[0]
        with made(envs / "source"):
            words = [
                "download",
                "--no-deps",
                "--no-binary",
                ":all:",
                "--dest",
                envs / "source",
                pin,
            ]
            pip(sys.executable, *words)
            (archive,) = (envs / "source").glob("*.tar.gz")
            subprocess.run(["tar", "-xzf", archive, "-C", envs / "source"], check=True)
            (source,) = (envs / "source").glob("*/vendor/llama.cpp")
            checkout.unlink(missing_ok=True)  # a link whose folder is gone
            checkout.symlink_to(source.relative_to(envs))
    return checkout


def python_of(envs: Path, name: str) -> Path:
    """The interpreter of an environment, which is made where it is missing."""
    python = (envs / name / "bin" / "python").absolute()
    if not python.exists():
        print(f"making the environment {name}", file=sys.stderr)
        with made(envs / name):
            subprocess.run([sys.executable, "-m", "venv", str(envs / name)], check=True)
            pip(python, "install", "--requirement", HERE / "requirements" / f"{name}.txt")
            without = HERE / "requirements" / f"{name}.without.txt"
            if without.exists():
                pip(python, "uninstall", "--yes", "--requirement", without)
    return python


def overlay(folder: Path, packages: Iterable[str], python: Path | str = sys.executable) -> Path:
    """A folder for PYTHONPATH with these packages alone, over what an environment has."""
    if not folder.exists():
        with made(folder):
            pip(python, "install", "--no-deps", "--no-compile", "--target", folder, *packages)
    return folder


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A new folder of packages, there whole or not at all: a half one would be used as it is the next time.

    Raises:
        UserError: a command that makes it failed, which says nothing about the client.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            raise UserError(
                f"{folder} could not be made, by {Path(error.cmd[0]).name} {' '.join(error.cmd[1:4])}; what it said stands above"
            ) from None
        raise


def pip(python: Path | str, command: str, *words: object) -> None:
    everything = [python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words]
    subprocess.run([str(word) for word in everything], check=True, stdout=sys.stderr)


def run(words: Iterable[object], environment: dict[str, str], log: Path) -> None:
    """Run to its end, in a folder and an environment where this project is not; what it says goes to `log`."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DS_"))}
    base.update({"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8", **environment})
    with log.open("w") as out:
        subprocess.run(
            [str(word) for word in words], cwd=log.parent, env=base, check=True, stdout=out, stderr=subprocess.STDOUT
        )


def ask(client: Client, case: Case, envs: Path) -> tuple[dict[str, Any], Path]:
    """What a client answers."""
    python = python_of(envs, client.environment) if client.environment else Path(sys.executable)
    environment = {}
    if client.overlay:
        folder = envs / f"overlay-{client.overlay[0].replace('==', '-')}"
        environment["PYTHONPATH"] = str(overlay(folder, client.overlay, python).absolute())
    if client.prepare:
        PREPARATIONS[client.prepare](case, envs)
    stem = case.work / Path(client.script).stem
    request, answer = stem.with_suffix(".request.json"), stem.with_suffix(".answer.json")
    answer.unlink(missing_ok=True)
    request.write_text(json.dumps(case.request))
    run([python, HERE / client.script, request.absolute(), answer.absolute()], environment, stem.with_suffix(".log"))
    return json.loads(answer.read_text(encoding="utf-8")), answer


def last_words(folder: Path) -> str:
    """The last line with an error of the newest log."""
    log = max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [
        line for line in lines if line.split(":")[0].split(".")[-1].endswith("Error") or line.startswith("error:")
    ]
    return (errors or lines or ["it said nothing"])[-1].replace(str(folder), "...")[:200]


def result(client: Client, case: Case, envs: Path) -> dict[str, Any]:
    """A row: what a client made of a folder. `verdict` is right, wrong, or refused."""
    row = {"client": client.name, "model": case.folder.name, "done": client.done, "when": f"{datetime.date.today()}"}
    facts: dict[str, Any] = {}
    try:
        facts, answer = ask(client, case, envs)
        row.update(verdict="right", result=JUDGES[client.judge](case, client, facts, answer))
    except Wrong as error:
        row.update(verdict="wrong", result=str(error))
    except subprocess.CalledProcessError as error:
        ended = last_words(case.work) if error.returncode > 0 else f"ended by {signal.Signals(-error.returncode).name}"
        row.update(verdict="refused", result=ended)
    return {**row, "version": facts.get("version", ""), **({"chat": facts["chat"]} if "chat" in facts else {})}


def damage(folder: Path, output: Path, how: str) -> Path:
    """A copy of a folder with two experts in each other's place, or with the experts of a layer as one tensor."""
    import torch
    from safetensors.torch import load_file, save_file

    output.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            tensors.update(load_file(path))
        elif path.is_file() and path.name != "model.safetensors.index.json":
            (output / path.name).write_bytes(path.read_bytes())
    tensors = {"swapped": swapped, "fused": fused}[how](tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return output


def swapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """The first two experts of every layer changed about."""
    other = {".experts.0.": ".experts.1.", ".experts.1.": ".experts.0."}
    return {
        next((name.replace(a, b) for a, b in other.items() if a in name), name): tensor
        for name, tensor in tensors.items()
    }


def fused(tensors: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 holds them in memory: all experts of a layer in two tensors."""
    import torch

    rest = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    layers = sorted({name.split(".mlp.experts.")[0] for name in tensors if ".mlp.experts." in name})
    for layer in (f"{layer}.mlp.experts" for layer in layers):
        count = len({name.split(".")[5] for name in tensors if name.startswith(f"{layer}.")})

        def stack(matrix: str, layer: str = layer, count: int = count) -> Any:
            return torch.stack([tensors[f"{layer}.{expert}.{matrix}.weight"] for expert in range(count)])

        rest[f"{layer}.gate_up_proj"] = torch.cat((stack("gate_proj"), stack("up_proj")), dim=1)
        rest[f"{layer}.down_proj"] = stack("down_proj")
    return rest


def controls(clients: list[Client], case: Case, envs: Path) -> list[dict[str, Any]]:
    """Rows of damaged folders, for clients that read the sound one rightly: every one must be caught."""
    rows = []
    for how in ("swapped", "fused"):
        # transformers 5 reads fused experts, and rightly
        asked = [c for c in clients if c.judge == "logits" and (how == "swapped" or c.name == "transformers 4.57")]
        if not asked:
            continue
        work = case.work / how
        folder = damage(case.folder, work / f"{case.folder.name}, {how}", how)
        request = {**case.request, "model": str(folder.absolute()), "gguf": str((work / "model.gguf").absolute())}
        damaged = Case(folder, work, request, case.reference, case.model, case.eos_token_id)
        for client in asked:
            row = {**result(client, damaged, envs), "control": how}
            # a client that does not take the sound folder either has caught nothing
            row["caught"] = row["verdict"] == "wrong" or (how == "fused" and row["verdict"] == "refused")
            rows.append(row)
            report(row)
    return rows


def report(row: dict[str, Any]) -> None:
    print(f"{row['client']:<22} {row['version']:<10} {row['model']:<26} {row['verdict']}: {row['result']}", flush=True)


def results_of(path: Path) -> dict[str, Any]:
    """The results in a file that --output has written.

    Raises:
        UserError: it is none of them.
    """
    content = load_json(path)
    needed = {
        "rows": {"client", "version", "model", "done", "when", "verdict", "result"},
        "controls": {"client", "model", "control", "caught", "result"},
    }
    names = {client.name for client in CLIENTS}
    for key, keys in needed.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
            raise UserError(f"{path} is no result of this check (its '{key}'); give a file that --output has written")
        if other := sorted({str(row["client"]) for row in rows} - names):
            raise UserError(
                f"{path} has rows of '{other[0]}', which is no client of this check; remove them, or choose another file"
            )
    return content


def merged(output: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What `output` has, with these rows in the place of those of the same client and model."""
    if not output.exists():
        return found
    old = results_of(output)
    together = {}
    for key in ("rows", "controls"):
        rows = {(row["client"], row["model"]): row for row in [*old[key], *found[key]]}
        names = [client.name for client in CLIENTS]
        together[key] = sorted(rows.values(), key=lambda row: names.index(row["client"]))
    return together


def failures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that must not be: wrong ones, refusals that are not known, and damage that was not caught."""
    known = {client.name: client.refuses for client in CLIENTS}
    return [
        row
        for row in found["rows"]
        if row["verdict"] == "wrong"
        or (
            row["verdict"] == "refused"
            and not any(kind in row["model"] and word in row["result"] for kind, word in known.get(row["client"], ()))
        )
    ] + [row for row in found["controls"] if not row["caught"]]


def table(found: dict[str, Any]) -> str:
    """A row a client, a column a model; and what became of the damaged copies."""
    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    lines = []
    for name in dict.fromkeys(row["client"] for row in found["rows"]):
        rows = {row["model"]: row for row in found["rows"] if row["client"] == name}
        some = next(iter(rows.values()))
        version = next((row["version"] for row in rows.values() if row["version"]), "")
        cells = [cell(rows[model]) if model in rows else "" for model in models]
        lines.append([name, version, some["done"], *cells, max(row["when"] for row in rows.values())])
    head = ["client", "version", "what was run", *models, "when"]
    caught = [row for row in found["controls"] if row["caught"]]
    parts = [markdown_table(head, lines, left=len(head))]
    if found["controls"]:
        parts.append(f"{len(caught)} of {len(found['controls'])} damaged copies caught:")
        rows = [
            [
                row["control"],
                row["model"].removesuffix(f", {row['control']}"),
                row["client"],
                row["result"] if row["caught"] else "not caught",
            ]
            for row in found["controls"]
        ]
        parts.append(markdown_table(["damage", "model", "client", "caught by"], rows, left=4))
    without = [row[0] for row in lines if row[0] not in {control["client"] for control in found["controls"]}]
    if without:
        parts.append(f"Clients that were given no damaged copy: {', '.join(without)}.")
    return "\n\n".join(parts)


def cell(row: dict[str, Any]) -> str:
    return row["result"] if row["verdict"] == "right" else f"{row['verdict']}: {row['result']}".replace("|", "\\|")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", type=Path, default=[], help="an exported folder; once or more")
    parser.add_argument("--client", action="append", choices=[c.name for c in CLIENTS], help="only this; once or more")
    parser.add_argument(
        "--envs", type=Path, default=ROOT / ".venv-clients", metavar="DIR",
        help="virtual environments, made if missing, 10 GB in all (default: .venv-clients of the checkout)",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="a folder for what is made on the way (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="JSON for the results; rows of other clients and models in it stay")
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print such a JSON as a table, and stop")
    return parser.parse_args(argv)


def check(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    from tests.clients.exports import make_exports

    clients = [c for c in CLIENTS if args.client is None or c.name in args.client]
    folders = args.model or make_exports(work / "exports")
    cases = [new_case(folder, work / "cases" / folder.name) for folder in folders]
    rows = []
    for client in clients:
        for case in cases:
            rows.append(result(client, case, args.envs))
            report(rows[-1])
    right = {row["client"] for row in rows if row["verdict"] == "right" and row["model"] == cases[0].folder.name}
    return {"rows": rows, "controls": controls([c for c in clients if c.name in right], cases[0], args.envs)}


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for what would fail after minutes, or with a traceback."""
    check_output_folder("--envs", args.envs)
    if args.work:
        check_output_folder("--work", args.work)
    if args.output:
        check_output_file("--output", args.output)
        merged(args.output, {"rows": [], "controls": []})
    for folder in args.model:
        check_export(folder)
    names = [folder.absolute().name for folder in args.model]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--model: two folders are called {twice[0]}, which is their name in the results; rename one")


def check_export(folder: Path) -> None:
    """Raises UserError if it is no folder that recipe/export.py writes, of a model that the reference knows."""
    from recipe.data.token_folder import tokenizer_file
    from recipe.huggingface.weights_folder import SafetensorsFolder

    config = load_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("glm4_moe", "qwen3_moe", "mixtral"):
        raise UserError(
            f"--model {folder}: config.json has the model_type {kind}; give a folder written by recipe/export.py"
        )
    tokenizer_file(folder)
    SafetensorsFolder(folder)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.table:
        print(table(results_of(args.table)))
        return 0
    check_arguments(args)
    args.envs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = check(args, (args.work or Path(temporary)).absolute())
    if args.output:
        found = merged(args.output, found)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
