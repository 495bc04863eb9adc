"""Training of real ranks: resumption, equality over topologies, strictness, orderly stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from recipe import train
from recipe.base.files import read_json_lines
from recipe.base.run_config.learning_rate import learning_rate
from recipe.base.run_config.schedule import Schedule
from recipe.run.checkpoint_files import complete, kept_for, read_manifest, step_of
from recipe.run.heartbeats import read_heartbeats
from recipe.run.records import read_attempts, read_metrics
from tests.conftest import (
    CPU,
    ROOT,
    Called,
    RunFiles,
    copy_of_run,
    ds_config,
    last_port,
    launch,
    launch_words,
    run_forked,
    run_python,
    schedule_of,
    shared_memory,
    start_ranks,
    write_run,
)
from tests.patience import PATIENCE_S

TRAIN = "recipe/train.py"
STEPS = 12
TOKENS = 8 * 32  # of a step
TWO_RANKS = {"micro_batch": 4, "accumulation": 1, "autoep_size": 2}
SECTIONS = {"schedule": schedule_of(STEPS), "checkpoint": {"every_steps": 6}}
pytestmark = pytest.mark.distributed
shares_the_whole_run = pytest.mark.xdist_group("training")


@pytest.fixture(scope="module")
def whole(prepared, small_model, tmp_path_factory) -> RunFiles:
    """An undisturbed run of two ranks, to compare with and to copy."""
    folder = tmp_path_factory.mktemp("whole")
    run, ds = write_run(folder, "whole", prepared, model=str(small_model), **SECTIONS), folder / "ds.json"
    ds.write_text(json.dumps(ds_config(2, **TWO_RANKS)))
    assert sorted(finish(2, run, ds)) == list(range(1, STEPS + 1))
    assert shared_memory(last_port()) == []  # a run that has finished leaves none
    return run


@pytest.fixture
def small_run(new_run, small_model) -> Callable[..., RunFiles]:
    """The whole run's config by another name, or with other sections."""
    return lambda name, **sections: new_run(name, **{"model": str(small_model), **SECTIONS, **sections})


@pytest.fixture
def ds_path(write_ds) -> Path:
    return write_ds(2, **TWO_RANKS)


def losses(run_dir: Path) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run_dir)}


def finish(ranks: int, run, ds_path, *more) -> dict[int, float]:
    done = launch(ranks, TRAIN, *run.arguments(ds_path, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(run.run_dir)


def faulty(**fault: object) -> dict[str, str]:
    return {"RECIPE_FAULTS": json.dumps([fault])}


def wait_until(happened: Callable[[], object], what: str, timeout: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))


@shares_the_whole_run
def test_killed_and_resumed_equals_undisturbed_to_the_last_digit(whole, small_run, ds_path):
    run = small_run("killed")
    leftover = run.run_dir / "checkpoints" / "step_00000006.partial"
    leftover.mkdir(parents=True)
    (leftover / "junk.pt").touch()  # as a kill during an earlier save leaves it
    killed = faulty(kind="kill_in_forward", rank=1, step=9)
    done = launch(2, TRAIN, *run.arguments(ds_path), env=killed)
    assert done.returncode == -signal.SIGKILL
    assert max(losses(run.run_dir)) == 8
    checkpoints = run.run_dir / "checkpoints"
    assert names(checkpoints) == ["step_00000006"]
    assert not (checkpoints / "step_00000006" / "junk.pt").exists()
    assert finish(2, run, ds_path, "--resume", "auto") == losses(whole.run_dir)
    assert (checkpoints / "latest").read_text() == "step_00000012"
    states = [read_manifest(r.run_dir / "checkpoints" / "step_00000012")["train_state"] for r in (run, whole)]
    assert states[0] == states[1]  # the guard's history among it goes on
    assert len(states[0]["guard"]["losses"]) == STEPS


def test_a_resumed_run_has_the_biases_and_the_remedies_of_an_undisturbed_one(small_run, write_ds):
    """Though it keeps fewer results of its layers, since a rank ran out of memory."""
    keeps = {"kept_gib": 1e-3}
    ds_path = write_ds(2, micro_batch=2, accumulation=2, autoep_size=2, recipe=keeps)
    routing = {
        "aux_loss_scope": "global_batch",
        "aux_loss_coef": 1e-3,
        "jitter": 0.01,
        "capacity": {"mode": "drop", "factor": 1.5},
        # Fires in step 2 and holds until 9: a checkpoint at 6 is in the middle of it.
        "mitigations": {"collapse": None, "overload": {"max_over_mean": 1.001, "patience": 2, "duration": 7}},
    }
    sections = {"routing": routing, "compute": {"recompute": "selective", "loss_chunk_tokens": 50}}
    whole, run = (small_run(name, **sections) for name in ("whole", "resumed"))
    finish(2, whole, ds_path)
    done = launch(2, TRAIN, *run.arguments(ds_path), env=faulty(kind="out_of_memory", rank=1, step=8))
    assert done.returncode != 0
    assert names(run.run_dir / "checkpoints") == ["step_00000006"]
    finish(2, run, ds_path, "--resume", "auto")
    first, second = (start["kept"] for start in read_attempts(run.run_dir))
    assert first["budget_gib"] == 1e-3
    assert second["budget_gib"] == pytest.approx(0.75 * first["held_gib"])
    assert 0 < second["held_gib"] < first["held_gib"]
    (lowered,) = (e for e in read_json_lines(run.run_dir / "events.jsonl") if e["event"] == "kept_lowered")
    assert (lowered["attempt"], lowered["step"], lowered["kept_gib"]) == (2, 6, second["budget_gib"])
    manifest = read_manifest(run.run_dir / "checkpoints" / "step_00000012")
    assert manifest["ds_config"]["recipe"] == keeps
    timeless = ("time", "tokens_per_s", "step_time_s", "step_time_percentiles_s", "phase_s", "memory_gib")
    expected, resumed = (
        [{k: v for k, v in m.items() if k not in timeless} for m in read_metrics(r.run_dir)] for r in (whole, run)
    )
    assert resumed == expected  # losses, loads, bias norms, drop rates: every number of every step
    assert expected[0]["routing"]["drop_rate"][0] < expected[5]["routing"]["drop_rate"][0]
    events = [e for e in read_json_lines(whole.run_dir / "events.jsonl") if "detector" in e]
    assert [(e["step"], e["event"]) for e in events][:2] == [(2, "fired"), (9, "ended")]
    assert "capacity factor 1 for 7 steps" in events[0]["message"]


@shares_the_whole_run
def test_losses_do_not_depend_on_ranks_expert_parallelism_or_accumulation(whole, small_run, write_ds):
    topologies = {
        "one": (1, {"micro_batch": 8, "accumulation": 1, "autoep_size": 1}),
        "four": (4, {"micro_batch": 1, "accumulation": 2, "autoep_size": 2}),
    }
    runs = {"two": whole}
    for name, (ranks, sizes) in topologies.items():
        runs[name] = small_run(name)
        finish(ranks, runs[name], write_ds(ranks, **sizes))
    steps = {name: read_metrics(run.run_dir) for name, run in runs.items()}
    for name in ("two", "four"):
        assert [m["loss"] for m in steps[name]] == pytest.approx([m["loss"] for m in steps["one"]], rel=1e-5)
        assert steps[name][-1]["aux_loss"] == pytest.approx(steps["one"][-1]["aux_loss"], rel=1e-4)
    for of_run in steps.values():
        # Every token of the step is counted top-k times in every MoE layer, once.
        assert [sum(counts) for counts in of_run[-1]["tokens_per_expert"]] == [TOKENS * 2]
        # And is trained on by all ranks together.
        assert [m["tokens_per_s"] * m["step_time_s"] for m in of_run] == pytest.approx([TOKENS] * STEPS, rel=1e-3)
    assert steps["one"][-1]["loss"] < steps["one"][0]["loss"] - 0.3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_trains_in_bf16_and_counts_tokens_exactly(stage, small_run, write_ds):
    ds_path = write_ds(2, micro_batch=64, accumulation=1, autoep_size=2, stage=stage, bf16={"enabled": True})
    schedule = {"total_tokens": 8 * 128 * 32, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 0}
    run = small_run("stage", schedule=schedule)
    trained = finish(2, run, ds_path)
    assert trained[8] < trained[1] - 0.5
    # bf16 counts would stand still at 256.
    assert [sum(counts) for counts in read_metrics(run.run_dir)[-1]["tokens_per_expert"]] == [128 * 32 * 2]


@shares_the_whole_run
def test_sigterm_saves_a_checkpoint_and_the_run_goes_on(whole, small_run, ds_path):
    run = small_run("stopped")
    # Rank 0 is held in step 4, so that the signal comes before the end on any machine.
    ranks = start_ranks(2, TRAIN, *run.arguments(ds_path), env=faulty(kind="stop_process", rank=0, step=4))
    beats = run.run_dir / "heartbeats"
    wait_until(lambda: len(read_heartbeats(beats, 1)) == 2, "heartbeats")
    first, second = (read_heartbeats(beats, 1)[rank].pid for rank in range(2))
    wait_until(lambda: is_stopped(first), "step 4")
    os.kill(second, signal.SIGTERM)  # one rank is enough: they stop together

    def goes_on() -> bool:
        """The step is done once more to prove its update, and held again."""
        os.kill(first, signal.SIGCONT)
        return ranks.poll() is not None

    with suppress(ProcessLookupError):
        wait_until(goes_on, "end")
    done = ranks.completed(60)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stopped by a signal after step" in done.stdout
    stopped_at = max(losses(run.run_dir))
    assert stopped_at < STEPS
    assert names(run.run_dir / "checkpoints") == [f"step_{stopped_at:08d}"]
    assert finish(2, run, ds_path, "--resume", "auto") == losses(whole.run_dir)


def test_a_signal_to_the_whole_job_also_saves_and_no_shared_memory_stays(small_run, ds_path):
    """Under the real launcher, which hands signals on and says how its ranks ended."""
    run = small_run("launcher", schedule={"total_tokens": 10**6, "peak_lr": 1e-3, "min_lr": 0, "warmup_tokens": 0})
    process = subprocess.Popen(
        launch_words(2, TRAIN, *run.arguments(ds_path)),
        cwd=ROOT, env=CPU, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    port = last_port()
    wait_until(lambda: process.poll() is not None or 3 in losses_so_far(run), "step 3")
    assert process.poll() is None, process.communicate()[0][-3000:]
    assert shared_memory(port)
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does, or ctrl-C: launcher and ranks alike
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert "stopped by a signal after step" in output, output[-3000:]
    assert len(list((run.run_dir / "checkpoints").glob("step_*/manifest.json"))) == 1
    assert shared_memory(port) == []


def losses_so_far(run: RunFiles) -> dict[int, float]:
    return losses(run.run_dir) if (run.run_dir / "metrics.jsonl").exists() else {}


@shares_the_whole_run
def test_a_damaged_checkpoint_is_named_and_not_loaded_when_it_alone_is_asked_for(whole, small_run, ds_path):
    run = copy_of_run(whole, small_run("damaged"))
    (shard,) = (run.run_dir / "checkpoints" / "step_00000012").glob("*rank_1*optim_states.pt")
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "latest"))
    assert done.returncode == 2
    assert f"{shard} does not have its checksum; resume with --resume auto to go on from" in done.stderr
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "step_00000009"))
    assert done.returncode == 2
    assert "has no checkpoint 'step_00000009'; it has step_00000006, step_00000012" in done.stderr


@shares_the_whole_run
def test_a_checkpoint_of_another_topology_is_refused(whole, small_run, write_ds):
    run, other = copy_of_run(whole, small_run("topology")), write_ds(2, micro_batch=4, accumulation=1, autoep_size=1)
    done = launch(2, TRAIN, *run.arguments(other, "--resume", "auto"))
    assert done.returncode == 2
    assert (
        "was written with 2 ranks, expert parallel size 2, ZeRO-3 and this run has 2 ranks, expert parallel"
        in done.stderr
    )
    assert "first run python launch/reshard.py --run" in done.stderr


@shares_the_whole_run
def test_a_run_folder_is_not_mixed_with_another_run(whole, small_run, ds_path):
    run = copy_of_run(whole, small_run("mixed"))
    before = sorted(p.name for p in run.run_dir.iterdir())
    done = launch(2, TRAIN, *run.arguments(ds_path))
    assert done.returncode == 2
    assert "already holds a run; add --resume auto" in done.stderr
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "auto", "--set", "seed=3"))
    assert done.returncode == 2
    assert "holds a run with other settings: seed is 3, was 0; restore them or choose another run_dir" in done.stderr
    assert sorted(p.name for p in run.run_dir.iterdir()) == before
    # A longer schedule is the same run.
    longer = f"schedule.total_tokens={(STEPS + 2) * TOKENS}"
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "auto", "--set", longer))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "changed since the last start: schedule.total_tokens is 3,584, was 3,072" in done.stdout
    assert max(losses(run.run_dir)) == STEPS + 2


def test_a_run_does_what_its_settings_say_and_its_folder_how_it_was_made(small_run, write_ds):
    tokens = TOKENS
    schedule = {
        "total_tokens": 20 * tokens, "kind": "wsd", "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 4 * tokens,
        "decay_tokens": 6 * tokens,
    }  # fmt: skip
    run = small_run(
        "settings",
        schedule=schedule,
        checkpoint={"every_steps": 3, "keep_every_steps": 6},
        routing={"bias_freeze_share": 0.5, "bias_update_rate": 0.01},
    )
    ds_path = write_ds(1, micro_batch=8, accumulation=1, autoep_size=1)
    finish(1, run, ds_path, "--set", "seed=7", "--set", "checkpoint.keep_last=1")
    steps = read_metrics(run.run_dir)
    rates = [learning_rate(Schedule(**schedule), m["step"] * tokens) for m in steps]
    assert [m["lr"] for m in steps] == rates
    assert (rates[0], rates[3], rates[13], rates[-1]) == pytest.approx((2.5e-4, 1e-3, 1e-3, 1e-4))
    norms = [m["routing"]["bias_norm"] for m in steps]
    assert norms[0] != norms[5] != norms[9]
    assert norms[10:] == [norms[10]] * 10  # frozen for the last half
    kept = {step_of(path): kept_for(path) for path in complete(run.run_dir / "checkpoints")}
    # Every sixth, the last before the decay, and the last.
    assert kept == {6: None, 12: None, 14: "the last before the decay", 18: None, 20: None}

    (record,) = map(json.loads, (run.run_dir / "attempts.jsonl").read_text().splitlines())
    assert record["run_config"]["seed"] == 7
    assert record["ds_config"] == json.loads(ds_path.read_text())
    assert record["packages"]["deepspeed"]
    assert "--set" in record["command"]
    assert list((run.run_dir / "tensorboard").iterdir())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_typo_stops_all_ranks_before_any_process_group(ranks, new_run, tmp_path, write_ds):
    run = new_run("typo")
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    text = ds_path.read_text().replace('"autoep_size"', '"autoep_sise"')
    ds_path.write_text(text)
    done = launch(ranks, TRAIN, *run.arguments(ds_path))
    assert done.returncode == 2
    assert done.stderr.count("unknown key 'expert_parallel.autoep_sise'; did you mean 'autoep_size'?") == 1
    assert "Traceback" not in done.stderr
    assert not run.run_dir.exists()


def test_a_dry_run_needs_no_launcher_and_writes_nothing(new_run, write_ds):
    run = new_run("dry")
    ds_path = write_ds(4, micro_batch=4, accumulation=2, autoep_size=4)
    done = run_python(TRAIN, *run.arguments(ds_path, "--dry-run"))
    assert done.returncode == 0, done.stderr
    for part in (
        "2,392,448 parameters",
        "4 ranks, ZeRO-3, expert parallel size 4",
        "32 sequences of 32",
        "mixture     zh",
        "routing     sequence aux loss 0.001, z-loss 0.001, bias rate 0.001, dropless; watched: collapse, logit_growth",
        "compute     recompute none, sdpa attention over the whole sequence, loss in chunks of 2,048 tokens",
    ):
        assert part in done.stdout
    assert not run.run_dir.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.seq_length=4096"], "exceeds the model's max_position_embeddings"),
        (["tokenizer=/nonexistent"], "holds no tokenizer.json"),
        (["data.tokens=/nonexistent"], "has no manifest.json"),
        (["model=/nonexistent"], "/nonexistent/config.json does not exist"),
        (["data.mixture.weights={en: 1}"], "name each source once"),
        (["data.seq_lenght=3"], "did you mean 'seq_length'?"),
        (["routing.capacity.mode=dorp"], "routing.capacity.mode"),
        (["routing.aux_loss_scop=sequence"], "did you mean 'aux_loss_scope'?"),
        (["routing.mitigations.overload={}"], "set routing.capacity.mode drop or reroute"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_a_dry_run(overrides, message, new_run, ds_path, capsys):
    words = [word for override in overrides for word in ("--set", override)]
    done = Called(train.main, capsys, *new_run("unfit").arguments(ds_path, "--dry-run", *words))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokenizer_that_is_not_the_shards_or_too_large_for_the_model_is_refused(
    new_run, prepared, ds_path, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(prepared.tokenizer, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    small = tmp_path / "small"
    small.mkdir()
    shape = json.loads((ROOT / "recipe/configs/models/tiny/config.json").read_text())
    (small / "config.json").write_text(json.dumps({**shape, "vocab_size": 1000}))
    for override, message in (
        (f"tokenizer={other}", "was tokenized with another tokenizer than"),
        (f"model={small}", "the tokenizer has 1,024 tokens but the model's vocab_size is 1,000"),
    ):
        done = Called(train.main, capsys, *new_run("tokenizer").arguments(ds_path, "--dry-run", "--set", override))
        assert done.returncode == 2
        assert message in done.stderr


def test_mistakes_in_both_configs_are_told_together(new_run, write_ds, capsys):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2, gradient_clippin=1.0)
    done = Called(train.main, capsys, *new_run("both").arguments(ds_path, "--dry-run", "--set", "sede=1"))
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    assert "did you mean 'gradient_clipping'?" in done.stderr


def test_without_the_launcher_the_command_is_told(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    done = run_forked(TRAIN, *new_run("alone").arguments(ds_path))
    assert done.returncode == 2
    assert "this needs the launcher, which starts it on each rank: deepspeed --num_gpus N " in done.stderr


def test_attention_that_needs_a_gpu_is_refused_without_one(new_run, write_ds):
    run = new_run("flash", compute={"attention": "flash_attention_2"})
    done = launch(1, TRAIN, *run.arguments(write_ds(1, micro_batch=4, accumulation=2, autoep_size=1)))
    assert done.returncode == 2
    assert "compute.attention flash_attention_2 needs a GPU; set sdpa" in done.stderr
    assert not run.run_dir.exists()


def test_a_ds_config_for_other_ranks_is_refused(new_run, write_ds):
    run = new_run("world")
    done = launch(1, TRAIN, *run.arguments(write_ds(2, micro_batch=4, accumulation=1, autoep_size=1)))
    assert done.returncode == 2
    assert "is written for 2 ranks, but 1 were launched" in done.stderr
    assert not run.run_dir.exists()


@shares_the_whole_run
def test_a_resume_with_a_larger_batch_ends_at_the_same_tokens(whole, small_run, write_ds):
    run = copy_of_run(whole, small_run("ramp"))
    larger = write_ds(2, micro_batch=4, accumulation=2, autoep_size=2)
    after = finish(2, run, larger, "--resume", "step_00000006")
    assert sorted(after) == list(range(1, 10))  # 6 steps of 8 sequences, 3 of 16
    assert read_metrics(run.run_dir)[-1]["tokens"] == STEPS * TOKENS
