"""Small models for the clients to read: trained on two ranks and exported, by the recipe's own commands.

One of each architecture that an export has, with the parts of it that others have read wrongly: rotary positions of half a
head, groups of experts, biases that the routing learned, experts in front of which no dense layer stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, Prepared, ds_config, launch_words, run_command, run_python, write_run

SOFTMAX = {"scoring_func": "softmax", "n_shared_experts": 0, "first_k_dense_replace": 0}
# name -> what is other than in the shipped tiny model
MODELS: dict[str, dict[str, Any]] = {
    "glm4_moe": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "n_shared_experts": 2,
    },
    "glm4_moe-groups": {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "attention_bias": True},
    "qwen3_moe": SOFTMAX,
    "mixtral": {**SOFTMAX, "use_qk_norm": False},
}
STEPS = 60
SEQ_LENGTH = 64  # tokens; the export states it as the longest that was trained


def make_exports(folder: Path) -> list[Path]:
    """The exported folder of each model, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared = corpus(folder / "corpus")
    return [export(folder, name, changes, prepared) for name, changes in MODELS.items()]


def corpus(folder: Path) -> Prepared:
    """A synthetic corpus, its tokenizer and tokens."""
    folder.mkdir()
    data = Prepared(*(folder / name for name in ("raw", "curated", "deduped", "tokenizer", "tokens")))
    shipped = yaml.safe_load((ROOT / "data_prep/configs/tokenizer.yaml").read_text(encoding="utf-8"))
    settings = {**shipped, "vocab_size": 1024, "reserved_tokens": 2}
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    (folder / "tokenize.yaml").write_text("source_by: lang\n", encoding="utf-8")
    must(run_python("data_prep/synthetic_corpus.py", "--output", data.raw, "--documents", 200))
    must(run_python("data_prep/curate.py", "--input", data.raw, "--output", data.curated, "--workers", 1))
    must(run_python("data_prep/dedup.py", "--input", data.curated, "--output", data.deduped, "--workers", 1))
    words = ["--input", data.deduped, "--output", data.tokenizer, "--config", folder / "tokenizer.yaml"]
    must(run_python("data_prep/train_tokenizer.py", *words))
    words = ["--input", data.deduped, "--tokenizer", data.tokenizer, "--output", data.tokens, "--workers", 1]
    must(run_python("data_prep/tokenize_corpus.py", *words, "--config", folder / "tokenize.yaml"))
    return data


def export(folder: Path, name: str, changes: dict[str, Any], prepared: Prepared) -> Path:
    tiny = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    run_folder = folder / f"run {name}"
    (run_folder / "model").mkdir(parents=True)
    (run_folder / "model" / "config.json").write_text(json.dumps({**tiny, "vocab_size": 1024, **changes}))
    ds = run_folder / "ds.json"
    ds.write_text(json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2)))
    tokens = STEPS * 8 * SEQ_LENGTH
    # the architectures of softmax routing have no place for a bias that balances
    softmax = changes.get("scoring_func") == "softmax"
    sections: dict[str, Any] = {"routing": {"bias_update_rate": 0, "aux_loss_coef": 0.01}} if softmax else {}
    run = write_run(
        run_folder, "run", prepared, model=str(run_folder / "model"),
        data={"tokens": str(prepared.tokens), "seq_length": SEQ_LENGTH},
        schedule={"total_tokens": tokens, "peak_lr": 3e-3, "min_lr": 3e-4, "warmup_tokens": tokens // 10},
        checkpoint={"every_steps": STEPS}, **sections,
    )  # fmt: skip
    output = folder / name
    for script, words in (
        ("recipe/train.py", run.arguments(ds)),
        ("recipe/export.py", ["--run", run.run_dir, "--output", output, "--no-card"]),
    ):
        must(run_command(*launch_words(2, script, *words)))
    return output


def must(done: Any) -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args} ended with {done.returncode}:\n{done.stderr[-3000:]}")
