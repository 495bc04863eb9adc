"""The README.md of an exported model: what it is, what it has read, under which licences, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recipe
from recipe.base.files import read_json_lines
from recipe.base.model_shape import ModelShape
from recipe.base.settings import RunConfig
from recipe.base.strict import load_json
from recipe.base.tables import markdown_table, ratio

UNKNOWN = "not stated"


def model_card(
    run: RunConfig,
    shape: ModelShape,
    tokens_manifest: dict[str, Any],
    *,
    step: int,
    tokens: int,
    read: dict[str, float],
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        tokens_manifest: of the run's token folder.
        step, tokens: that the checkpoint has behind it.
        read: tokens of each source that it has seen.
    """
    total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
    sources = tokens_manifest["counts"]["totals"]["train"]
    licenses = tokens_manifest["results"].get("licenses", {})
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"model_name: {run.run_dir.name}",
        "---",
    ]
    data = [
        [name, f"{seen:,.0f}", f"{seen / max(1, sum(read.values())):.1%}", f"{ratio(seen, sources[name]['tokens']):.2f}", f"{sources[name]['documents']:,}"]
        for name, seen in read.items()
    ]  # fmt: skip
    of_license = [
        [name, license, f"{count:,}", f"{ratio(count, sum(found.values())):.1%}"]
        for name, found in licenses.items()
        for license, count in sorted(found.items(), key=lambda item: -item[1])
    ]
    parts = [
        "\n".join(front),
        f"# {run.run_dir.name}",
        f"A decoder-only Mixture-of-Experts language model, `glm4_moe` for transformers: {total:,} parameters, of which a token "
        f"uses {active:,}. {shape.num_hidden_layers} layers, {shape.num_moe_layers} of them with {shape.n_routed_experts} experts "
        f"(top {shape.num_experts_per_tok}, {shape.n_shared_experts} shared); context {run.data.seq_length:,} tokens in training. "
        "A base model: it continues text, and was not trained to follow instructions or to refuse.",
        "## Training",
        f"{tokens:,} tokens in {step:,} steps, {run.schedule.kind} schedule to {run.schedule.total_tokens:,} tokens, peak learning "
        f"rate {run.schedule.peak_lr:g}. Trained with deepspeed-moe-recipe {recipe.__version__}.",
        "## Data",
        markdown_table(["source", "tokens read", "share", "epochs", "documents"], data),
        "### Licences",
        f"Of the documents in the training shards, by the `license` that they carried ('{UNKNOWN}' where they carried none):",
        markdown_table(["source", "licence", "tokens", "share"], of_license, left=2)
        if of_license
        else "The token folder does not list them.",
        "## Evaluation",
        _evaluation(run.run_dir, step),
    ]
    return "\n\n".join(parts) + "\n"


def _evaluation(run_dir: Path, step: int) -> str:
    """Held-out and downstream results of this very step."""
    held_out = [e for e in read_json_lines(run_dir / "evaluations.jsonl") if e["step"] == step]
    if (run_dir / "evaluation.json").exists():
        held_out.append(load_json(run_dir / "evaluation.json"))
    parts = []
    if held_out and held_out[-1]["step"] == step:
        rows = [
            [name, f"{found['bits_per_byte']:.4f}", f"{found['loss']:.4f}", f"{found['tokens']:,}"]
            for name, found in held_out[-1]["sources"].items()
        ]
        parts.append(markdown_table(["held-out", "bits per byte", "loss, nats per token", "tokens"], rows))
    path = run_dir / "results.json"
    results = load_json(path) if path.exists() else {}
    if results.get("step") == step:
        rows = [
            [task, metric, f"{score['value']:.4f}"]
            for task, metrics in results["tasks"].items()
            for metric, score in metrics.items()
        ]
        parts.append(markdown_table(["task", "metric", "score"], rows, left=2))
    return "\n\n".join(parts) if parts else "Not evaluated at this step."
