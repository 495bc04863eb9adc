"""What a run reports: metrics.jsonl, TensorBoard, Prometheus, trackers, and one console line per logging interval. Rank 0 only."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from recipe.base.settings import Logging
from recipe.base.tables import ProgressLine, duration
from recipe.run.folder import RunFolder
from recipe.run.records import run_name
from recipe.run.reports import say
from recipe.telemetry.prometheus import Exporter
from recipe.telemetry.sinks import Sink, TensorBoard
from recipe.telemetry.tracker_clients import opener
from recipe.telemetry.trackers import Tracker

# The names (tags) under which TensorBoard, Prometheus and the trackers show a step's metrics:
# train/  loss, learning rate, gradient norm, tokens           moe/   routing: a scalar per metric and layer, and per source
# perf/   tokens/s, MFU, step times, phases, memory, slow ranks  data/  tokens and epochs read of each source, skipped sequences
# comm/   waits and bytes per kind of collective, of the steps that are sampled (watch.stragglers_every_steps)
# held_out/  loss and bits per byte, each by source
# eval/   the same by source, as dashboards of older versions have them, and downstream scores
# eval_gap/  downstream scores of one language minus another's, by pair of tasks
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
    "loss, training": {
        "loss, nats per token": ["Multiline", ["train/loss"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "loss, held-out": {
        "bits per byte by source": ["Multiline", ["held_out/bits_per_byte/.*"]],
        "loss by source, nats per token": ["Multiline", ["held_out/loss/.*"]],
    },
    "downstream tasks": {
        "bits per byte of gold answers": ["Multiline", ["eval/.*/bits_per_byte"]],
        "gap between languages": ["Multiline", ["eval_gap/.*"]],
    },
    "speed": {
        "tokens per second": ["Multiline", ["perf/tokens_per_s"]],
        "MFU": ["Multiline", ["perf/mfu"]],
        "time of a step by phase": ["Multiline", ["perf/phase_s/.*"]],
        "step times": ["Multiline", ["perf/step_time_s/.*"]],
        "waits for collectives": ["Multiline", ["comm/waited_s/.*"]],
    },
    "routing health": {
        "busiest expert over the mean": ["Multiline", [r"moe/load_max_over_mean/moe_layer_\d+"]],
        "dead experts": ["Multiline", ["moe/dead_experts/.*"]],
        "entropy": ["Multiline", ["moe/entropy/.*"]],
        "dropped assignments": ["Multiline", ["moe/drop_rate/.*"]],
    },
    "data": {"tokens by source": ["Multiline", ["data/tokens/.*"]]},
}


class MetricsWriter:
    """Appends to a run folder's metrics.jsonl, evaluations.jsonl and events.jsonl, prints, and hands numbers to the sinks.

    What cannot be written is told and waits for room (`recipe.run.reports`); no number is too large or too undefined to report.

    Args:
        first_step: that this attempt will do.
        settings: which sinks there are besides TensorBoard.
    """

    def __init__(self, folder: RunFolder, total_steps: int, first_step: int, settings: Logging | None = None):
        self._folder = folder
        self._total_steps = total_steps
        self._step = first_step - 1  # that was last reported
        self._sinks = opened_sinks(folder, first_step, settings or Logging())
        self._open = ExitStack()
        self._progress = self._open.enter_context(ProgressLine("steps", total_steps, first_step - 1))
        self._open.callback(
            self._close_sinks
        )  # before the progress line goes, which comes back after each printed line

    def step_is_done(self) -> None:
        """For the progress line, which only a terminal has."""
        self._progress.advance()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a step's metrics."""
        self._folder.metrics(step, values)
        image_HW = load_image(load_over_mean(values["tokens_per_expert"]))
        for sink in self._sinks:
            sink.image("moe/tokens_per_expert", image_HW, step)
        self._show(tagged(values), step)
        self._print(self._console_line(step, values))
        self._tell_of_sinks()

    def evaluation(self, step: int, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Write held-out results by source."""
        self._folder.evaluation(step=step, seconds=seconds, sources=results)
        self._show(tagged_evaluation(results), step)
        message = "  ".join(
            f"{name} {result['bits_per_byte']:.4f} bits/byte, loss {result['loss']:.4f}"
            for name, result in results.items()
        )
        self._print(f"step {step:>7,}  held-out  {message}")
        self._tell_of_sinks()

    def downstream(
        self, step: int, results: dict[str, Any], tags: dict[str, float], seconds: float, summary: str
    ) -> None:
        """Write results of downstream tasks, and print their `summary`."""
        self._folder.downstream(step=step, seconds=seconds, **results)
        self._show(tags, step)
        self._print(f"step {step:>7,}  downstream, bits/byte  {summary}  ({duration(seconds)})")
        self._tell_of_sinks()

    def event(self, event: dict[str, Any]) -> None:
        """Write something that happened: its step, its kind as `event`, and in `message` what a reader needs to know."""
        self._folder.event(**event)
        for sink in self._sinks:
            sink.event(event)
        self._print(f"step {event['step']:>7,}  {event['message']}")

    def close(self) -> None:
        """Once or more often."""
        self._open.close()

    def _show(self, tags: dict[str, float], step: int) -> None:
        self._step = step
        for sink in self._sinks:
            sink.numbers(tags, step)

    def _tell_of_sinks(self) -> None:
        for sink in self._sinks:
            for event in sink.take_events():
                self.event({"step": self._step, **event})

    def _close_sinks(self) -> None:
        """TensorBoard last, which shows the events of the others' ends."""
        for sink in reversed(self._sinks):
            sink.close()
            self._tell_of_sinks()

    def _print(self, line: str) -> None:
        self._progress.clear()
        say(line)
        self._progress.show()

    def _console_line(self, step: int, values: dict[str, Any]) -> str:
        mfu = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
        left = duration((self._total_steps - step) * values["step_time_s"])
        return (
            f"step {step:>7,}/{self._total_steps:,}  loss {values['loss']:8.5f}  {values['tokens_per_s']:>9,.0f} tokens/s  "
            f"{left:>7} left{mfu}  lr {values['lr']:.3e}  grad norm {values['grad_norm']:.3f}  "
            f"expert load max/mean {values['expert_load_max_over_mean']:.2f}"
        )


def opened_sinks(folder: RunFolder, first_step: int, settings: Logging) -> list[Sink]:
    """Where numbers go besides the run folder's own files; TensorBoard is the first.

    Raises:
        UserError: the port cannot be served.
    """
    sinks: list[Sink] = [TensorBoard(folder.path / "tensorboard", folder.reports, first_step, LAYOUT)]
    if settings.prometheus_port is not None:
        sinks.append(Exporter(settings.prometheus_port, run_name(folder.path), settings.prometheus_host))
    return sinks + [Tracker(name, opener(name, folder.path)) for name in settings.trackers]


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
    results = [(source, name, result[name]) for source, result in sources.items() for name in names]
    return {
        tag: value for source, name, value in results for tag in (f"held_out/{name}/{source}", f"eval/{source}/{name}")
    }
