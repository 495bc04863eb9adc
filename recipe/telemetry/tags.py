"""The names under which TensorBoard and Prometheus show a step's metrics.

train/  loss, learning rate, gradient norm, tokens           moe/   routing: a scalar per metric and layer, and per source
perf/   tokens/s, MFU, step times, phases, memory, slow ranks  data/  tokens and epochs read of each source, skipped sequences
comm/   waits and bytes per kind of collective, of the steps that are sampled (watch.stragglers_every_steps)
eval/   held-out loss and bits per byte of each source, downstream scores
"""

from __future__ import annotations

from typing import Any

SCALARS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "skipped_steps": "train/skipped_steps",
    "tokens_per_s": "perf/tokens_per_s",
    "step_time_s": "perf/step_time_s/mean",
    "mfu": "perf/mfu",
    "hfu": "perf/hfu",
    "memory_gib": "perf/memory_gib",
    "slowest_over_median": "perf/slowest_rank_over_median",
    "memory_most_gib": "perf/memory_gib_of_the_fullest_rank",
    "waited_median_s": "comm/waited_s/median_rank",
    "waited_least_s": "comm/waited_s/least_rank",
    "skipped_sequences": "data/skipped_sequences",
    "aux_loss": "moe/aux_loss",
    "z_loss": "moe/z_loss",
    "scaled_aux_loss": "moe/scaled_aux_loss",
    "scaled_z_loss": "moe/scaled_z_loss",
    "expert_load_max_over_mean": "moe/expert_load_max_over_mean",
}
# metrics that hold several -> the tags of each of their entries
MAPPINGS = {
    "step_time_percentiles_s": "perf/step_time_s/{}",
    "phase_s": "perf/phase_s/{}",
    "comm_waited_s": "comm/waited_s/{}",
    "comm_bytes": "comm/bytes/{}",
    "source_tokens": "data/tokens/{}",
    "source_epochs": "data/epochs/{}",
}
# What TensorBoard's page "Custom Scalars" puts together.
LAYOUT = {
    "training": {
        "loss, held-out": ["Multiline", ["train/loss", r"eval/[^/]+/loss"]],
        "bits per byte": ["Multiline", [r"eval/[^/]+/bits_per_byte"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "speed": {
        "time of a step by phase": ["Multiline", ["perf/phase_s/.*"]],
        "step times": ["Multiline", ["perf/step_time_s/.*"]],
        "waits for collectives": ["Multiline", ["comm/waited_s/.*"]],
    },
    "routing": {
        "busiest expert over the mean": ["Multiline", [r"moe/load_max_over_mean/moe_layer_\d+"]],
        "dead experts": ["Multiline", ["moe/dead_experts/.*"]],
        "entropy": ["Multiline", ["moe/entropy/.*"]],
    },
    "data": {"tokens by source": ["Multiline", ["data/tokens/.*"]]},
}


def tagged(values: dict[str, Any]) -> dict[str, float]:
    """A step's metrics as tag -> number; what is no number (hosts, counts per expert) is not among them."""
    found = {tag: values[name] for name, tag in SCALARS.items() if name in values}
    for name, tag in MAPPINGS.items():
        found |= {tag.format(key): value for key, value in values.get(name, {}).items()}
    by_source = {f"{name}/{source}": v for source, of in values.get("sources", {}).items() for name, v in of.items()}
    for name, of_layers in {**values.get("routing", {}), **by_source}.items():
        found |= {f"moe/{name}/moe_layer_{layer:02d}": value for layer, value in enumerate(of_layers)}
    return found


def tagged_evaluation(sources: dict[str, dict[str, float]]) -> dict[str, float]:
    """Held-out results by source as tag -> number."""
    names = ("loss", "bits_per_byte")
    return {f"eval/{source}/{name}": found[name] for source, found in sources.items() for name in names}
