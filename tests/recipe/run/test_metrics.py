"""What a run writes about itself."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipe.base.run_records import read_metrics
from recipe.run.metrics import MetricsWriter, load_image, load_over_mean
from recipe.run.run_folder import RunFolder

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
    for part in ("step       3/10", "loss  2.50000", "mfu 25.0%", "load max/mean  1.50"):
        assert part in line


def test_the_load_image_shows_idle_mean_and_crowded_experts():
    image = load_image(load_over_mean([[0, 2, 4], [1, 1, 1]]))
    assert image.shape == (16, 24)
    assert image[0, ::8].tolist() == [0.0, 0.5, 1.0]
    assert image[8, ::8].tolist() == [0.5, 0.5, 0.5]


def test_metrics_of_a_folder_without_a_run_do_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path)
