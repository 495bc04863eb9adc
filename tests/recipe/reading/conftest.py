"""Run folders as training writes them, of any length, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipe.base.strict import load_json, load_yaml
from recipe.run.records import SCHEMA_VERSION, VERSION_KEY

BEGAN = 1_700_000_000.0


class WrittenRun:
    """Writes a run folder line by line, with a clock of its own: a second a step."""

    def __init__(
        self,
        path: Path,
        model: str = "tiny",
        config: str = "quickstart",
        ds: str = "cpu_2",
        device: str = "cpu",
        ranks: int = 2,
        sources: Sequence[str] = ("en", "zh"),
        layers: int = 2,
    ):
        self.path, self.device, self.now, self.number = path, device, BEGAN, 0
        self.ranks, self.sources, self.layers = ranks, sources, layers
        path.mkdir()
        run = {**load_yaml(f"recipe/configs/runs/{config}.yaml"), "watch": {"heartbeat_s": 10, "no_progress_s": 900}}
        run["model"] = f"recipe/configs/models/{model}"
        self._start = {
            "run_config": run,
            "ds_config": load_json(f"ds_configs/{ds}.json"),
            "command": ["recipe/train.py"],
            "packages": {},
        }

    def _append(self, name: str, value: dict[str, Any]) -> None:
        with open(self.path / name, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({**value, VERSION_KEY: SCHEMA_VERSION}) + "\n")

    def start(self, step: int = 0, *, takes: float = 10.0) -> None:
        self.number += 1
        self._append("attempts.jsonl", {"time": self.now, **self._start})
        self.now += takes
        self.event("started", step, device=self.device, ranks=self.ranks, message=f"resumed after step {step}")

    def event(self, kind: str, step: int, /, **facts: Any) -> None:
        self._append(
            "events.jsonl",
            {"time": self.now, "attempt": self.number, "event": kind, "step": step, "message": kind, **facts},
        )

    def steps(self, first: int, last: int, every: int = 1, loss=lambda step: 2 + 6 / (1 + step / 50)) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as handle:
            for step in range(first, last + 1, every):
                self.now += every
                line = {**self._line(step, loss(step)), VERSION_KEY: SCHEMA_VERSION}
                handle.write(json.dumps(line) + "\n")

    def _line(self, step: int, loss: float) -> dict[str, Any]:
        return {
            "step": step, "time": self.now, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens": step * 2048, "skipped_steps": 0,
            "tokens_per_s": 2048.0, "step_time_s": 1.0, "memory_gib": 1.0, "expert_load_max_over_mean": 1.5,
            "phase_s": {"data_wait": 0.05, "forward": 0.4, "backward": 0.4, "optimizer": 0.1, "checkpoint": 0.05},
            "source_tokens": {name: step * 2048.0 / len(self.sources) for name in self.sources},
            "source_epochs": dict.fromkeys(self.sources, step / 1000),
            "routing": {"load_max_over_mean": [1.2 + 0.3 * (layer % 2) for layer in range(self.layers)], "dead_experts": [0] * self.layers},
        }  # fmt: skip

    def evaluate(self, step: int, bits=lambda source, step: 1 + 2 / (1 + step / 50) + source / 10) -> None:
        """Of every source; `bits` is of its number and the step."""
        self._append("evaluations.jsonl", {"step": step, "attempt": self.number, **self._evaluated(step, bits)})

    def evaluate_after(self, step: int, bits=lambda source, step: 1.5 + source / 10) -> None:
        """As recipe/evaluate_model.py does."""
        (self.path / "evaluation.json").write_text(json.dumps({"step": step, **self._evaluated(step, bits)}))

    def _evaluated(self, step: int, bits) -> dict[str, Any]:
        of = {
            name: {"bits_per_byte": bits(number, step), "loss": 3.0, "tokens": 100}
            for number, name in enumerate(self.sources)
        }
        return {"time": self.now, "seconds": 1.0, "sources": of}

    def fault(
        self, step: int, *, lost_s: float, down: float = 5.0, message: str = "rank 1 on b killed by SIGKILL"
    ) -> None:
        self.event(
            "attempt_ended",
            step,
            kind="killed",
            code=1,
            lost_s=lost_s,
            message=f"{message}; restart in 0 s",
        )
        self.now += down


@pytest.fixture
def written(tmp_path):
    return lambda **options: WrittenRun(tmp_path / "written", **options)
