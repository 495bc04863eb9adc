"""The README.md of an exported model: what it is, what it has read, under which licences, and how good it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recipe
from recipe.base.model_shape import ModelShape
from recipe.base.settings import RunConfig
from recipe.base.tables import markdown_table, ratio
from recipe.reading.origin import Origin
from recipe.run.records import DOWNSTREAM_RESULTS, HELD_OUT_RESULTS, read_evaluations, read_record

UNKNOWN = "not stated"
TESTED = "4.57"  # the oldest version of transformers that reads exports in the tests
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")  # ISO 639, as hubs list them


@dataclass(frozen=True)
class ExportFacts:
    """What the folder beside the card holds.

    Args:
        model_type, class_name: of its config.json.
        max_positions: that its config.json states, tokens.
        origin: what the weights were trained on before and in this run.
        eos_token, eos_token_id: what ends documents.
        has_chat_template: it was asked for.
    """

    model_type: str
    class_name: str
    max_positions: int
    origin: Origin
    eos_token: str
    eos_token_id: int
    has_chat_template: bool = False


def model_card(
    run: RunConfig,
    shape: ModelShape,
    tokens_manifest: dict[str, Any],
    facts: ExportFacts,
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
    sources = tokens_manifest["counts"]["totals"]["train"]
    licenses = tokens_manifest["results"].get("licenses", {})
    data = [
        [name, f"{seen:,.0f}", f"{seen / max(1, sum(read.values())):.1%}", f"{ratio(seen, sources[name]['tokens']):.2f}", f"{sources[name]['documents']:,}"]
        for name, seen in read.items()
    ]  # fmt: skip
    of_license = [
        [name, license, f"{count:,}", f"{ratio(count, sum(tokens.values())):.1%}"]
        for name, tokens in licenses.items()
        for license, count in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    parts = [
        _front_matter(run, tokens_manifest, facts, read),
        f"# {run.run_dir.name}",
        _what_it_is(shape, facts),
        "## Use",
        _use(facts),
        "## Training",
        f"{tokens:,} tokens in {step:,} steps, {run.schedule.kind} schedule to {run.schedule.total_tokens:,} tokens, peak learning "
        f"rate {run.schedule.peak_lr:g}.{_began(facts.origin)} Trained with deepspeed-moe-recipe {recipe.__version__}.",
        "## Data",
        markdown_table(["source", "tokens read", "share", "epochs", "documents"], data),
        "### Licences",
        f"Of the documents in the training shards, by the `license` that they carried ('{UNKNOWN}' where they carried none):",
        markdown_table(["source", "licence", "tokens", "share"], of_license, left=2)
        if of_license
        else "The token folder does not list them.",
        "Under which licence the weights are given is for their publisher to say: add `license` to the lines above the title.",
        "## Evaluation",
        _evaluation(run.run_dir, step),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: RunConfig, tokens_manifest: dict[str, Any], facts: ExportFacts, read: dict[str, float]) -> str:
    base, name = facts.origin.base_model, run.run_dir.name
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"model_name: {json.dumps(name)}"]
    if languages := languages_of(tokens_manifest, [name for name, seen in read.items() if seen]):
        lines += ["language:", *(f"- {json.dumps(language)}" for language in languages)]  # "no" is not false
    if base is not None and _HUB_NAME.fullmatch(base):
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["tags:", f"- {facts.model_type}", "- moe"]
    return "\n".join(["---", *lines, "---"])


def languages_of(tokens_manifest: dict[str, Any], sources: Iterable[str]) -> list[str]:
    """Languages of these sources of a token folder, where sources are named by them."""
    if tokens_manifest.get("parameters", {}).get("source_by") not in ("lang", "both"):
        return []
    names = {name.split("-")[0] for name in sources}  # both: lang-source
    return sorted(name for name in names if _LANGUAGE.fullmatch(name))


def _what_it_is(shape: ModelShape, facts: ExportFacts) -> str:
    total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
    return (
        f"A decoder-only Mixture-of-Experts language model of the architecture `{facts.model_type}` (`{facts.class_name}`): "
        f"{total:,} parameters, of which a token uses {active:,}. {shape.num_hidden_layers} layers, {shape.num_moe_layers} of them "
        f"with {shape.n_routed_experts} experts (top {shape.num_experts_per_tok}, {shape.n_shared_experts} shared). "
        "A base model: it continues text, and was not trained to follow instructions or to refuse."
    )


def _use(facts: ExportFacts) -> str:
    context = f"Trained on sequences of up to {facts.origin.context:,} tokens"
    if facts.max_positions > facts.origin.context:
        context += (
            f"; config.json states {facts.max_positions:,} (`--max-positions`), beyond what the model was trained on"
        )
    template = (
        "The chat template names the roles in plain text, for tools that need one; the model was not trained on it."
        if facts.has_chat_template
        else "There is no chat template, since this is a base model."
    )
    return (
        f"The weights are safetensors with one tensor per expert and matrix, under the names of `{facts.model_type}`; tested with "
        f"transformers from {TESTED} on. `docs/export.md` of deepspeed-moe-recipe lists what other programs "
        f"read them. {context}. Documents end with `{facts.eos_token}` (id {facts.eos_token_id:,}). {template}"
    )


def _began(origin: Origin) -> str:
    return "" if origin.base_model is None else f" The weights began as those of `{origin.base_model}`."


def _evaluation(run_dir: Path, step: int) -> str:
    """Held-out and downstream results of this very step."""
    held_out = [evaluation for evaluation in read_evaluations(run_dir) if evaluation["step"] == step]
    if (later := read_record(run_dir / HELD_OUT_RESULTS)) is not None:
        held_out.append(later)
    parts = []
    if held_out and held_out[-1]["step"] == step:
        rows = [
            [name, f"{result['bits_per_byte']:.4f}", f"{result['loss']:.4f}", f"{result['tokens']:,}"]
            for name, result in held_out[-1]["sources"].items()
        ]
        parts.append(markdown_table(["held-out", "bits per byte", "loss, nats per token", "tokens"], rows))
    results = read_record(run_dir / DOWNSTREAM_RESULTS) or {}
    if results.get("step") == step:
        rows = [
            [task, metric, f"{score['value']:.4f}"]
            for task, metrics in results["tasks"].items()
            for metric, score in metrics.items()
        ]
        parts.append(markdown_table(["task", "metric", "score"], rows, left=2))
    return "\n\n".join(parts) if parts else "Not evaluated at this step."
