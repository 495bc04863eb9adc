"""What a run reports: metrics.jsonl, TensorBoard, Prometheus, and one console line per logging interval. Rank 0 only."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from recipe.base.settings import LOCAL_HOST
from recipe.base.tables import ProgressLine, as_float, duration
from recipe.run.folder import RunFolder
from recipe.run.reports import say
from recipe.telemetry.board import Board
from recipe.telemetry.prometheus import Exporter

# The names (tags) under which TensorBoard and Prometheus show a step's metrics:
# train/  loss, learning rate, gradient norm, tokens           moe/   routing: a scalar per metric and layer, and per source
# perf/   tokens/s, MFU, step times, phases, memory, slow ranks  data/  tokens and epochs read of each source, skipped sequences
# comm/   waits and bytes per kind of collective, of the steps that are sampled (watch.stragglers_every_steps)
# eval/   held-out loss and bits per byte of each source, downstream scores
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


class MetricsWriter:
    """Appends to a run folder's metrics.jsonl, evaluations.jsonl, events.jsonl and TensorBoard logs, and prints.

    What cannot be written is told and lost (`recipe.run.reports`); no number is too large or too undefined to report.

    Args:
        first_step: that this attempt will do.
        prometheus_port: where to serve the newest values; None: nowhere.
        prometheus_host: the address to serve them on.
    """

    def __init__(
        self,
        folder: RunFolder,
        total_steps: int,
        first_step: int,
        prometheus_port: int | None = None,
        prometheus_host: str = LOCAL_HOST,
    ):
        self._folder = folder
        self._total_steps = total_steps
        self._open = ExitStack()
        self._exporter = None
        if prometheus_port is not None:
            self._exporter = Exporter(prometheus_port, folder.path.name, prometheus_host)
            self._open.callback(self._exporter.close)
        # TensorBoard then hides what an earlier attempt logged from this step on.
        self._board = Board(folder.path / "tensorboard", purge_step=first_step)
        self._board.add_custom_scalars(LAYOUT)
        self._open.callback(self._flush)
        self._progress = self._open.enter_context(ProgressLine("steps", total_steps, first_step - 1))

    def step_is_done(self) -> None:
        """For the progress line, which only a terminal has."""
        self._progress.advance()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a step's metrics."""
        self._folder.metrics(step, values)
        load_LE = load_over_mean(values["tokens_per_expert"])
        self._board.add_image("moe/tokens_per_expert", load_image(load_LE), step, dataformats="HW")
        self._show(tagged(values), step)
        self._print(self._console_line(step, values))

    def evaluation(self, step: int, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Write held-out results by source."""
        self._folder.evaluation(step=step, seconds=seconds, sources=results)
        self._show(tagged_evaluation(results), step)
        message = "  ".join(
            f"{name} {result['bits_per_byte']:.4f} bits/byte, loss {result['loss']:.4f}"
            for name, result in results.items()
        )
        self._print(f"step {step:>7,}  held-out  {message}")

    def event(self, event: dict[str, Any]) -> None:
        """Write something that happened: its step, its kind as `event`, and in `message` what a reader needs to know."""
        self._folder.event(**event)
        self._board.add_text("events", event["message"], event["step"])
        self._flush()
        self._print(f"step {event['step']:>7,}  {event['message']}")

    def close(self) -> None:
        """Once or more often."""
        self._open.close()

    def _show(self, tags: dict[str, float], step: int) -> None:
        for tag, value in tags.items():
            self._board.add_scalar(tag, as_fp32(value), step)
        self._flush()
        if self._exporter is not None:
            self._exporter.set(tags, step)

    def _flush(self) -> None:
        self._folder.reports.write(self._folder.path / "tensorboard", self._board.flush)

    def _print(self, line: str) -> None:
        self._progress.clear()
        say(line)
        self._progress.show()

    def _console_line(self, step: int, values: dict[str, Any]) -> str:
        mfu = f"  mfu {values['mfu']:5.1%}" if "mfu" in values else ""
        return (
            f"step {step:>7,}/{self._total_steps:,}  loss {values['loss']:8.5f}  lr {values['lr']:.3e}  "
            f"grad {values['grad_norm']:7.3f}  {values['tokens_per_s']:>10,.0f} tok/s{mfu}  "
            f"load max/mean {values['expert_load_max_over_mean']:5.2f}  "
            f"eta {duration((self._total_steps - step) * values['step_time_s'])}"
        )


def as_fp32(value: float) -> float:
    """What TensorBoard's event file holds of a number."""
    with np.errstate(over="ignore"):
        return float(np.float32(as_float(value)))


def load_over_mean(tokens_per_expert: list[list[int]] | torch.Tensor) -> torch.Tensor:
    """Assignments of each expert over the mean of its layer, float64 [layers, E]; NaN in a layer that has none."""
    counts_LE = torch.as_tensor(tokens_per_expert, dtype=torch.float64)
    return counts_LE / counts_LE.mean(dim=1, keepdim=True)


def load_image(load_LE: torch.Tensor) -> torch.Tensor:
    """Grey heatmap, a square per layer (down) and expert (across): black is idle, mid-grey the mean, white twice it."""
    shade_LE = (load_LE / 2).nan_to_num(nan=0.0).clamp(max=1.0)
    return shade_LE.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)


def tagged(values: dict[str, Any]) -> dict[str, float]:
    """A step's metrics as tag -> number; what is no number (hosts, counts per expert) is not among them."""
    tags = {tag: values[name] for name, tag in SCALARS.items() if name in values}
    for name, tag in MAPPINGS.items():
        tags |= {tag.format(key): value for key, value in values.get(name, {}).items()}
    by_source = {f"{name}/{source}": v for source, of in values.get("sources", {}).items() for name, v in of.items()}
    for name, of_layers in {**values.get("routing", {}), **by_source}.items():
        tags |= {f"moe/{name}/moe_layer_{layer:02d}": value for layer, value in enumerate(of_layers)}
    return tags


def tagged_evaluation(sources: dict[str, dict[str, float]]) -> dict[str, float]:
    """Held-out results by source as tag -> number."""
    names = ("loss", "bits_per_byte")
    return {f"eval/{source}/{name}": result[name] for source, result in sources.items() for name in names}
