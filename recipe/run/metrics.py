"""What a run reports: metrics.jsonl, TensorBoard, and one console line per logging interval. Rank 0 only.

metrics.jsonl has one JSON object per logged step, events.jsonl one per event. Both are only ever appended to: after a
resume the steps that were lost appear again, and `read_metrics` takes the last line of each step.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from recipe.base.hardware import accelerator_of
from recipe.base.model_shape import ModelShape
from recipe.run.run_folder import RunFolder


class Throughput:
    """Tokens per second between readings, and MFU where the GPU is a known one."""

    def __init__(self, shape: ModelShape, seq_length: int, world_size: int):
        known = accelerator_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._flops_per_token = shape.training_flops_per_token(seq_length)
        self._peak_flops = known.bf16_flops * world_size if known else None
        self._since, self._tokens, self._steps = time.perf_counter(), 0, 0

    def count(self, tokens: int) -> None:
        self._tokens += tokens
        self._steps += 1

    def take(self) -> dict[str, float]:
        now = time.perf_counter()
        rate = self._tokens / (now - self._since)
        found = {"tokens_per_s": rate, "step_time_s": (now - self._since) / self._steps}
        if self._peak_flops is not None:
            found["mfu"] = rate * self._flops_per_token / self._peak_flops
        self._since, self._tokens, self._steps = now, 0, 0
        return found


class MetricsWriter:
    """Appends to a run folder's metrics.jsonl, events.jsonl and TensorBoard logs, and prints the console line."""

    TAGS = {
        "loss": "train/loss",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "tokens": "train/tokens",
        "tokens_per_s": "perf/tokens_per_s",
        "step_time_s": "perf/step_time_s",
        "mfu": "perf/mfu",
        "aux_loss": "moe/aux_loss",
        "z_loss": "moe/z_loss",
        "scaled_aux_loss": "moe/scaled_aux_loss",
        "scaled_z_loss": "moe/scaled_z_loss",
        "expert_load_max_over_mean": "moe/expert_load_max_over_mean",
        "skipped_steps": "train/skipped_steps",
        "skipped_sequences": "data/skipped_sequences",
        "slowest_over_median": "perf/slowest_rank_over_median",
        "waited_median_s": "perf/waited_median_s",
    }

    def __init__(self, folder: RunFolder, total_steps: int, first_step: int):
        self._folder = folder
        self._file = open(folder.path / "metrics.jsonl", "a", encoding="utf-8")
        # TensorBoard then hides what an earlier incarnation logged from this step on.
        self._board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step)
        self._total_steps = total_steps

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a step's metrics."""
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        self._file.flush()
        for name, tag in self.TAGS.items():
            if name in values:
                self._board.add_scalar(tag, values[name], step)
        self._write_routing(step, values)
        print(self._console_line(step, values), flush=True)

    def event(self, event: dict[str, Any]) -> None:
        """Write something that happened: its step, its kind as `event`, and in `said` what a reader needs to know."""
        self._folder.event(**event)
        self._board.add_text("events", event["said"], event["step"])
        print(f"step {event['step']:>7,}  {event['said']}", flush=True)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _write_routing(self, step: int, values: dict[str, Any]) -> None:
        """A scalar per metric and layer, the same for each source's loads, and the loads as an image."""
        by_source = {f"{name}/{source}": v for source, found in values["sources"].items() for name, v in found.items()}
        for name, of_layers in {**values["routing"], **by_source}.items():
            for layer, value in enumerate(of_layers):
                self._board.add_scalar(f"moe/{name}/moe_layer_{layer:02d}", value, step)
        load_LE = load_over_mean(values["tokens_per_expert"])
        self._board.add_image("moe/tokens_per_expert", load_image(load_LE), step, dataformats="HW")

    def _console_line(self, step: int, values: dict[str, Any]) -> str:
        left = (self._total_steps - step) * values["step_time_s"]
        mfu = f"  mfu {values['mfu']:5.1%}" if "mfu" in values else ""
        return (
            f"step {step:>7,}/{self._total_steps:,}  loss {values['loss']:8.5f}  lr {values['lr']:.3e}  "
            f"grad {values['grad_norm']:7.3f}  {values['tokens_per_s']:>10,.0f} tok/s{mfu}  "
            f"load max/mean {values['expert_load_max_over_mean']:5.2f}  eta {left / 60:.1f} min"
        )


def load_over_mean(tokens_per_expert: list[list[int]] | torch.Tensor) -> torch.Tensor:
    """Assignments of each expert over the mean of its layer, float64 [layers, E]."""
    counts_LE = torch.as_tensor(tokens_per_expert, dtype=torch.float64)
    return counts_LE / counts_LE.mean(dim=1, keepdim=True)


def load_image(load_LE: torch.Tensor) -> torch.Tensor:
    """Grey heatmap, a square per layer (down) and expert (across): black is idle, mid-grey the mean, white twice it."""
    return (load_LE / 2).clamp(max=1.0).repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The logged steps of a run in order; of a step logged twice, the later line."""
    by_step: dict[int, dict[str, Any]] = {}
    with open(Path(run_dir) / "metrics.jsonl", encoding="utf-8") as handle:
        for line in handle:
            if line.endswith("\n"):  # the last line may be cut by a kill
                values = json.loads(line)
                by_step[values["step"]] = values
    return [by_step[step] for step in sorted(by_step)]
