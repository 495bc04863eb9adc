"""What a run shows of itself while it runs: held-out loss, phases, collectives, data, to every reader."""

from __future__ import annotations

import json
import urllib.request

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cluster.hosts import free_port
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import UserError
from recipe.base.files import read_json_lines
from recipe.base.settings import Logging, Watch
from recipe.reading.breakdown import as_text, breakdown, read_trace
from recipe.run.job import ProfiledSteps
from recipe.run.records import read_metrics
from recipe.telemetry.metrics import tagged, tagged_evaluation
from recipe.telemetry.phases import NAMES, PhaseClock
from recipe.telemetry.prometheus import Exporter
from tests.conftest import ROOT, launch, schedule_of
from tests.recipe.run.pages import undocumented


@pytest.mark.distributed
def test_a_watched_run_shows_everything_and_learns_the_same(new_run, write_ds):
    ds = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    schedule = schedule_of(8)
    plain = new_run("plain", schedule=schedule)
    assert launch(2, "recipe/train.py", *plain.arguments(ds)).returncode == 0
    watched = new_run("watched", schedule=schedule, evaluation={"every_steps": 5}, watch={"stragglers_every_steps": 4},
                      logging={"every_steps": 1, "prometheus_port": free_port()},
                      compute={"deterministic": True})  # fmt: skip
    done = launch(2, "recipe/train.py", *watched.arguments(ds, "--profile", "steps=6..7"))
    assert done.returncode == 0, done.stderr[-3000:]
    steps = read_metrics(watched.run_dir)
    assert [m["loss"] for m in steps] == [m["loss"] for m in read_metrics(plain.run_dir)]

    evaluations = read_json_lines(watched.run_dir / "evaluations.jsonl")
    assert [e["step"] for e in evaluations] == [5, 8]
    again = launch(2, "recipe/evaluate_model.py", "held-out", "--run", watched.run_dir)
    assert again.returncode == 0, again.stderr[-3000:]
    assert evaluations[-1]["sources"] == json.loads((watched.run_dir / "evaluation.json").read_text())["sources"]

    last = steps[-1]
    (manifest,) = (watched.run_dir / "checkpoints" / "step_00000008").glob("manifest.json")
    written = {
        "metrics.jsonl": last,
        "evaluations.jsonl": evaluations[-1],
        "checkpoints": json.loads(manifest.read_text()),
    }
    assert [name for title, record in written.items() for name in undocumented(title, record)] == []
    batch = load_ds_config(ds)[0].train_batch_size  # of both ranks
    for m in steps:  # each of which is logged
        assert m["tokens_per_s"] * m["step_time_s"] == pytest.approx(batch * 32)
        assert m["tokens"] == m["step"] * batch * 32
    spent = sum(seconds for m in steps for seconds in m["phase_s"].values())
    assert spent == pytest.approx(sum(m["step_time_s"] for m in steps), rel=0.02)
    assert {"data_wait", "forward", "backward", "optimizer", "checkpoint", "other"} <= set(last["phase_s"])
    assert last["source_tokens"].keys() == {"en", "zh"}
    assert sum(last["source_tokens"].values()) == last["tokens"]
    assert last["comm_bytes"]["all_to_all"] > 0
    assert "held-out  en" in done.stdout

    board = EventAccumulator(str(watched.run_dir / "tensorboard"))
    board.Reload()
    assert {tag.split("/")[0] for tag in board.Tags()["scalars"]} == {
        "train",
        "held_out",
        "perf",
        "comm",
        "moe",
        "data",
        "eval",
    }
    assert board.Scalars("eval/zh/loss")[-1].value == pytest.approx(evaluations[-1]["sources"]["zh"]["loss"])

    trace = watched.run_dir / "profiles" / "steps_00000006_00000007.json.gz"
    profile = breakdown(read_trace(trace), 2)
    assert {"forward", "backward", "optimizer", "data_wait"} <= profile.phases.keys()
    assert sum(profile.phases.values()) == pytest.approx(profile.wall_s, rel=0.03)
    for part in ("attention", "experts", "shared experts", "router", "dense MLP", "head and loss"):
        assert profile.parts[part]["matmul"] > 0, part
    assert as_text(profile) in done.stdout
    assert not [path for path in trace.parent.iterdir() if path.name.startswith(".")]


def test_steps_beyond_the_last_one_are_not_profiled():
    steps = ProfiledSteps(10, 12)
    assert steps.problem(12) is None
    assert steps.problem(11) == "--profile goes to step 12, but the run ends with step 11"


@pytest.mark.distributed
def test_a_profile_that_cannot_be_is_refused_and_one_that_is_over_stops_nothing(new_run, write_ds):
    ds, run = write_ds(1, micro_batch=8, accumulation=1, autoep_size=1), new_run("profiled", schedule=schedule_of(6))
    for words, sentence in (("steps=5..7", "--profile goes to step 7, but the run ends with step 6"),
                            ("10..12", "is not of the form steps=10..12"), ("steps=3..2", "is not of the form")):  # fmt: skip
        done = launch(1, "recipe/train.py", *run.arguments(ds, "--profile", words))
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
    assert not run.run_dir.exists()
    assert launch(1, "recipe/train.py", *run.arguments(ds, "--time-limit", 0.001)).returncode == 0
    again = launch(1, "recipe/train.py", *run.arguments(ds, "--resume", "auto", "--profile", "steps=1..2"))
    assert again.returncode == 0, again.stderr[-3000:]
    assert not (run.run_dir / "profiles").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 3])
def test_bytes_counted_where_collectives_are_called_are_those_that_arrive(stage, write_ds, tmp_path):
    ds = write_ds(2, micro_batch=2, accumulation=1, autoep_size=2, stage=stage)
    worker, output = ROOT / "tests/recipe/engine/timed_worker.py", tmp_path / "out.json"
    done = launch(2, worker, ds, output, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in json.loads(output.read_text()):
        assert len(rank["timeouts_s"]) > 2  # the engine's groups besides that of all ranks
        assert min(rank["timeouts_s"]) > max(Watch().start_s, Watch().no_progress_s)
        kinds = set(rank["arrived"]) - {"broadcast", "reduce", "barrier"}
        assert {"all_to_all", "all_reduce"} <= kinds
        assert {kind: rank["called"][kind] for kind in kinds} == {kind: rank["arrived"][kind] for kind in kinds}
        assert 0 < sum(rank["waits_s"].values()) < rank["whole_s"]


def test_phases_add_up_to_the_time_that_passed():
    clock = PhaseClock()
    for phase in NAMES:
        clock.enter(phase)
    found = clock.take(steps=2)
    assert set(found) == set(NAMES.values())
    assert all(seconds >= 0 for seconds in found.values())
    assert set(clock.take(steps=1)) == {"other"}


VALUES = {"loss": 2.5, "phase_s": {"forward": 0.25}, "routing": {"entropy": [0.5, 0.75]}, "slowest_host": "a"}


def test_prometheus_reads_the_newest_values_with_their_labels():
    port = free_port()
    exporter = Exporter(port, "run1")
    exporter.numbers(tagged(VALUES), step=6)
    exporter.numbers(tagged({**VALUES, "loss": 2.0}), step=7)
    exporter.numbers(tagged_evaluation({"zh": {"loss": 3.0, "bits_per_byte": 1.0}}), step=7)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    exporter.close()
    for line in (
        'recipe_train_loss{of="",run="run1"} 2.0',
        'recipe_train_step{of="",run="run1"} 7.0',
        'recipe_perf_phase_s{of="forward",run="run1"} 0.25',
        'recipe_moe_entropy{of="moe_layer_01",run="run1"} 0.75',
        'recipe_eval_loss{of="zh",run="run1"} 3.0',
    ):
        assert line in text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def test_prometheus_listens_on_this_host_alone_unless_told_otherwise():
    for settings, address in ((Logging(), "127.0.0.1"), (Logging(prometheus_host="0.0.0.0"), "0.0.0.0")):
        exporter = Exporter(free_port(), "a", settings.prometheus_host)
        assert exporter.address == address
        exporter.close()
    with pytest.raises(UserError, match=r"logging.prometheus_host 203.0.113.1, port .* choose another"):
        Exporter(free_port(), "a", "203.0.113.1")  # an address of documentation (RFC 5737)
    with pytest.raises(UserError, match=r"logging.prometheus_host host.invalid: .* give an address of this host"):
        Exporter(free_port(), "a", "host.invalid")


def test_a_port_that_is_taken_is_told():
    port = free_port()
    first = Exporter(port, "a")
    with pytest.raises(UserError, match=f"logging.prometheus_port {port}: Address already in use"):
        Exporter(port, "b")
    first.close()
