"""What a run writes about itself, whatever the numbers are, and while a disk is full."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cluster.hosts import free_port
from recipe.base import files
from recipe.base.files import read_json_lines
from recipe.base.settings import Logging
from recipe.report import report
from recipe.run.folder import RunFolder
from recipe.run.records import last_metrics, read_events, read_metrics
from recipe.telemetry import board as board_module
from recipe.telemetry import metrics
from recipe.telemetry.metrics import LAYOUT, MetricsWriter, load_image, load_over_mean
from recipe.telemetry.sinks import Sink
from recipe.watch import view
from tests.recipe.reading.conftest import WrittenRun

VALUES = {
    "tokens": 100,
    "loss": 2.5,
    "lr": 1e-3,
    "grad_norm": 1.0,
    "tokens_per_s": 1000.0,
    "step_time_s": 0.5,
    "aux_loss": 1.0,
    "z_loss": 4.0,
    "expert_load_max_over_mean": 1.5,
    "tokens_per_expert": [[1, 3], [2, 2]],
    "routing": {"load_max_over_mean": [1.5, 1.0], "drop_rate": [0.0, 0.25]},
    "sources": {"en": {"load_max_over_mean": [2.0, 1.0]}},
}


def test_a_step_logged_twice_counts_once_and_a_cut_line_not_at_all(tmp_path):
    for loss in (1.0, 2.0):
        writer = MetricsWriter(RunFolder(tmp_path, 1), total_steps=10, first_step=1)
        writer.write(1, {**VALUES, "loss": loss})
        writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps({"step": 2})[:-3])
    (only,) = read_metrics(tmp_path)
    assert only["loss"] == 2.0


def test_tensorboard_has_the_scalars_and_the_load_of_each_layer(tmp_path, capsys):
    writer = MetricsWriter(RunFolder(tmp_path, 1), total_steps=10, first_step=1)
    writer.write(3, {**VALUES, "mfu": 0.25})
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    read = {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]}
    assert read["train/loss"] == 2.5
    assert read["perf/mfu"] == 0.25
    assert read["moe/load_max_over_mean/moe_layer_00"] == 1.5
    assert read["moe/load_max_over_mean/moe_layer_01"] == 1.0
    (image,) = board.Images("moe/tokens_per_expert")
    assert (image.width, image.height) == (16, 16)
    line = capsys.readouterr().out
    for part in ("step       3/10", "loss  2.50000", "MFU 25.0%", "expert load max/mean 1.50"):
        assert part in line


def test_training_and_held_out_loss_are_apart_in_tensorboard(tmp_path):
    writer = MetricsWriter(RunFolder(tmp_path, 1), total_steps=10, first_step=1)
    routing = {"load_max_over_mean": [1.5], "dead_experts": [0], "entropy": [0.5], "drop_rate": [0.0]}
    writer.write(3, {**ALL_VALUES, "routing": routing})
    writer.evaluation(3, {"zh": {"loss": 3.0, "bits_per_byte": 1.5}}, seconds=1.0)
    writer.downstream(3, {}, {"eval/piqa/bits_per_byte": 0.8, "eval_gap/belebele": 0.1}, seconds=1.0, summary="0.8")
    writer.close()
    tags = board_of(tmp_path).Tags()["scalars"]
    held_out = {"held_out/loss/zh", "held_out/bits_per_byte/zh"}
    assert {tag for tag in tags if tag.startswith("held_out/")} == held_out
    assert {"eval/zh/loss", "eval/zh/bits_per_byte"} <= set(tags)  # the names that older dashboards know
    shown = {
        title: [
            {tag for tag in tags if re.fullmatch(pattern, tag)}
            for _, patterns in charts.values()
            for pattern in patterns
        ]
        for title, charts in LAYOUT.items()
    }
    assert set.union(*shown["loss, training"]) == {"train/loss", "train/grad_norm"}
    assert set.union(*shown["loss, held-out"]) == held_out
    empty = {title for title, charts in shown.items() if not all(charts)}
    assert empty == set()  # a pattern that matches no tag is a chart without a curve


def test_the_load_image_shows_idle_mean_and_crowded_experts():
    image = load_image(load_over_mean([[0, 2, 4], [1, 1, 1]]))
    assert image.shape == (16, 24)
    assert image[0, ::8].tolist() == [0.0, 0.5, 1.0]
    assert image[8, ::8].tolist() == [0.5, 0.5, 0.5]


def test_metrics_of_a_folder_without_a_run_do_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path)


def test_the_terminal_is_left_without_a_progress_line_after_what_a_tracker_says_at_the_end(
    tmp_path, monkeypatch, capsys
):
    class Late(Sink):
        def __init__(self) -> None:
            self.events: list[dict[str, Any]] = []

        def take_events(self) -> list[dict[str, Any]]:
            return [self.events.pop()] if self.events else []

        def close(self) -> None:
            self.events.append({"event": "tracker", "message": "did not end in time"})

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(metrics, "opened_sinks", lambda *_: [Late()])
    MetricsWriter(RunFolder(tmp_path, 1), 10, 1).close()
    out, err = capsys.readouterr()
    assert "did not end in time" in out
    assert err.endswith("\r\x1b[K")


def board_of(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return board


def test_a_resumed_run_hides_what_tensorboard_has_of_the_steps_that_are_done_again(tmp_path):
    for first_step, steps, loss in ((1, (1, 2, 3), 5.0), (2, (2,), 4.0)):
        writer = MetricsWriter(RunFolder(tmp_path, 1), total_steps=10, first_step=first_step)
        for step in steps:
            writer.write(step, {**VALUES, "loss": loss})
        writer.close()
    assert [(e.step, e.value) for e in board_of(tmp_path).Scalars("train/loss")] == [(1, 5.0), (2, 4.0)]


# As training writes them; what a GPU and a sampled step add too.
ALL_VALUES = {
    **VALUES, "skipped_steps": 0, "skipped_sequences": 0.0, "memory_gib": 1.0, "mfu": 0.3, "hfu": 0.4,
    "step_time_percentiles_s": {"p50": 0.5, "p95": 0.6, "max": 0.7}, "phase_s": {"forward": 0.2, "data_wait": 0.1},
    "source_tokens": {"en": 60.0, "zh": 40.0}, "source_epochs": {"en": 0.1, "zh": 0.2},
    "slowest_rank": 0, "slowest_host": "a", "slowest_over_median": 1.0, "own_median_s": 0.1, "waited_median_s": 0.1,
    "waited_least_s": 0.1, "comm_waited_s": {"all_reduce": 0.1}, "comm_bytes": {"all_reduce": 10.0}, "memory_most_gib": 1.0,
    "aux_loss": 1.0, "routing": {"load_max_over_mean": [1.5, 1.0], "dead_experts": [0, 0], "aux_loss": [1.5, 0.5]},
}  # fmt: skip


def with_every_number(value: object, number: float) -> object:
    if isinstance(value, dict):
        return {name: with_every_number(inner, number) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_every_number(inner, number) for inner in value]
    return number if isinstance(value, float) else value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0])
def test_no_number_ends_a_run_or_what_reads_it(number, tmp_path, capsys):
    run = WrittenRun(tmp_path / "run")
    run.start()
    port = free_port()
    writer = MetricsWriter(RunFolder(run.path, 1), 10, 1, Logging(prometheus_port=port))
    of_none = {**ALL_VALUES, "tokens": 0, "tokens_per_expert": [[0, 0], [0, 0]]}
    held_out = {"en": {"tokens": 0, "loss": 3.0, "perplexity": 20.0, "bits_per_byte": 1.0}}
    for step, values in enumerate((ALL_VALUES, with_every_number(of_none, number), ALL_VALUES), start=1):
        writer.write(step, values)
        writer.evaluation(step, with_every_number(held_out, number), number)
        writer.event({"event": "straggler", "step": step, "message": f"{number}", "slowest_over_median": number})
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    writer.close()
    assert "recipe_train_step" in text
    assert [m["step"] for m in read_metrics(run.path)] == [1, 2, 3]
    assert len(board_of(run.path).Scalars("train/loss")) == 3
    assert capsys.readouterr().out.count(" left  ") == 3
    Console(file=io.StringIO()).print(view(run.path))
    assert "<svg" in report(run.path, None)
    # And where it is the last that is known.
    MetricsWriter(RunFolder(run.path, 1), total_steps=10, first_step=4).write(4, with_every_number(of_none, number))
    Console(file=io.StringIO()).print(view(run.path))
    assert "<svg" in report(run.path, None)


class Disk:
    """What `open` gives while it is full."""

    def __init__(self, monkeypatch) -> None:
        self.room = math.inf
        for module in (files, board_module):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def open(self, path: Path, mode: str, buffering: int = -1) -> io.IOBase:
        if "r" in mode:
            return open(path, mode)
        assert buffering == 0
        disk = self

        class Limited(io.FileIO):
            def write(self, data) -> int:
                part = bytes(data)[: int(min(disk.room, len(data)))]
                if not part:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.room -= len(part)
                return super().write(part)

        return Limited(path, mode)


def test_a_full_disk_is_told_once_and_training_reports_again_when_there_is_room(tmp_path, monkeypatch, capsys):
    run = WrittenRun(tmp_path / "run")
    run.start()
    writer = MetricsWriter(RunFolder(run.path, 1), total_steps=10, first_step=1)
    disk = Disk(monkeypatch)
    results = {"en": {"tokens": 9, "loss": 3.0, "perplexity": 20.0, "bits_per_byte": 1.0}}

    def report_step(step: int) -> None:
        writer.write(step, ALL_VALUES)
        writer.evaluation(step, results, 1.0)
        writer.event({"event": "straggler", "step": step, "message": f"slow in step {step}"})

    report_step(1)
    disk.room = 50  # half of a line
    report_step(2)
    report_step(3)
    disk.room = math.inf
    report_step(4)
    writer.close()
    message = capsys.readouterr().out
    for name in ("metrics.jsonl", "evaluations.jsonl", "events.jsonl", "tensorboard"):
        assert message.count(f"{name} cannot be written: No space left on device") == 1
        assert message.count(f"{name} is written again") == 1
    assert message.count("step       3/10") == 1
    assert [m["step"] for m in read_metrics(run.path)] == [1, 2, 3, 4]
    assert [e["step"] for e in read_json_lines(run.path / "evaluations.jsonl")] == [1, 2, 3, 4]
    assert [e["message"] for e in read_events(run.path)][1:] == [f"slow in step {step}" for step in (1, 2, 3, 4)]
    lines = (run.path / "metrics.jsonl").read_bytes().split(b"\n")
    assert [line[:9] for line in lines] == [b'{"step": '] * 5 + [b""]
    assert len(lines[1]) == 50  # what there was room for
    assert [e.step for e in board_of(run.path).Scalars("train/loss")] == [1, 2, 3, 4]
    Console(file=io.StringIO()).print(view(run.path))
    assert "<svg" in report(run.path, None)


def test_the_last_metrics_are_those_of_the_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content, step in (
        (b"", None),
        (b'{"st', None),
        (b'{"step": 1}\n{"step": 2}\n{"st', 2),
        (b'{"step": 1}\n{"s\n', 1),
    ):
        path.write_bytes(content)
        assert (last_metrics(tmp_path) or {}).get("step") == step


def test_a_writer_that_was_never_able_to_write_closes(tmp_path, monkeypatch, capsys):
    writer = MetricsWriter(RunFolder(tmp_path, 1), total_steps=10, first_step=1)
    Disk(monkeypatch).room = 0
    writer.write(1, ALL_VALUES)
    writer.close()
    writer.close()
    assert "tensorboard cannot be written" in capsys.readouterr().out
