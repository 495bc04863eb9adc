"""Training under the real launcher: resumption, equality over topologies, strictness, orderly stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from recipe.base.files import read_json_lines
from recipe.base.settings import Schedule
from recipe.run.checkpoint_files import complete, kept_for, step_of
from recipe.run.records import read_metrics
from recipe.training.schedule import learning_rate
from tests.conftest import CPU, ROOT, launch, launch_words, run_command, run_python, shared_memory

TRAIN = "recipe/train.py"
pytestmark = pytest.mark.distributed


def losses(run_dir: Path) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run_dir)}


def finish(ranks: int, run, ds_path, *more) -> dict[int, float]:
    done = launch(ranks, TRAIN, *run.arguments(ds_path, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(run.run_dir)


def start(ranks: int, run, ds_path, *more) -> subprocess.Popen:
    words = launch_words(ranks, TRAIN, *run.arguments(ds_path, *more))
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=CPU,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run, step: int, process: subprocess.Popen, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (run.run_dir / "metrics.jsonl").exists() and max(losses(run.run_dir), default=0) >= step:
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.communicate()[0][-3000:]}")


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the training ranks below a launcher."""
    found = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
    mine = [line.split(None, 2) for line in found.splitlines()[1:]]
    return [int(pid) for pid, sid, args in mine if int(sid) == process.pid and "local_rank=" in args]


def test_killed_and_resumed_equals_undisturbed_to_the_last_digit(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    whole = finish(2, new_run("whole"), ds_path)
    assert sorted(whole) == list(range(1, 21))

    run = new_run("killed")
    leftover = run.run_dir / "checkpoints" / "step_00000010.partial"
    leftover.mkdir(parents=True)
    (leftover / "junk.pt").touch()  # as a kill during an earlier save leaves it
    process = start(2, run, ds_path)
    wait_for_step(run, 13, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert [p.name for p in (run.run_dir / "checkpoints").glob("step_*")] == ["step_00000010"]
    assert not (run.run_dir / "checkpoints" / "step_00000010" / "junk.pt").exists()
    assert finish(2, run, ds_path, "--resume", "auto") == whole
    assert (run.run_dir / "checkpoints" / "latest").read_text() == "step_00000020"


def test_a_resumed_run_has_the_biases_and_the_remedies_of_an_undisturbed_one(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=2, accumulation=2, autoep_size=2)
    routing = {
        "aux_loss_scope": "global_batch",
        "aux_loss_coef": 1e-3,
        "jitter": 0.01,
        "capacity": {"mode": "drop", "factor": 1.5},
        # Fires in step 2 and holds until 15: a checkpoint at 10 is in the middle of it.
        "mitigations": {"collapse": None, "overload": {"max_over_mean": 1.001, "patience": 2, "duration": 13}},
    }
    sections = {"routing": routing, "compute": {"recompute": "non_reentrant", "loss_chunk_tokens": 50}}
    whole = new_run("whole", **sections)
    finish(2, whole, ds_path)
    run = new_run("resumed", **sections)
    process = start(2, run, ds_path)
    wait_for_step(run, 12, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    finish(2, run, ds_path, "--resume", "auto")
    timeless = ("time", "tokens_per_s", "step_time_s", "step_time_percentiles_s", "phase_s", "memory_gib")
    expected, found = (
        [{k: v for k, v in m.items() if k not in timeless} for m in read_metrics(r.run_dir)] for r in (whole, run)
    )
    assert found == expected  # losses, loads, bias norms, drop rates: every number of every step
    assert expected[0]["routing"]["drop_rate"][0] < expected[5]["routing"]["drop_rate"][0]
    events = [e for e in read_json_lines(whole.run_dir / "events.jsonl") if "detector" in e]
    assert [(e["step"], e["event"]) for e in events][:2] == [(2, "fired"), (15, "ended")]
    assert "capacity factor 1 for 13 steps" in events[0]["message"]


def test_losses_do_not_depend_on_ranks_expert_parallelism_or_accumulation(new_run, write_ds):
    topologies = {
        "one": (1, {"micro_batch": 8, "accumulation": 1, "autoep_size": 1}),
        "two": (2, {"micro_batch": 4, "accumulation": 1, "autoep_size": 2}),
        "four": (4, {"micro_batch": 1, "accumulation": 2, "autoep_size": 2}),
    }
    found = {}
    for name, (ranks, sizes) in topologies.items():
        run = new_run(name)
        found[name] = finish(ranks, run, write_ds(ranks, **sizes))
        last = read_metrics(run.run_dir)[-1]
        found[f"{name} aux"] = {0: last["aux_loss"]}
        # Every token of the step is counted top-k times in every MoE layer, once.
        assert [sum(counts) for counts in last["tokens_per_expert"]] == [8 * 32 * 2] * 3
    for step, loss in found["one"].items():
        assert found["two"][step] == pytest.approx(loss, rel=1e-5)
        assert found["four"][step] == pytest.approx(loss, rel=1e-5)
    assert found["two aux"][0] == pytest.approx(found["one aux"][0], rel=1e-4)
    assert found["four aux"][0] == pytest.approx(found["one aux"][0], rel=1e-4)
    assert found["one"][20] < found["one"][1] - 0.5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_trains_in_bf16_and_counts_tokens_exactly(stage, new_run, write_ds):
    ds_path = write_ds(2, micro_batch=64, accumulation=1, autoep_size=2, stage=stage, bf16={"enabled": True})
    run = new_run("stage", schedule={"total_tokens": 8 * 128 * 32, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 0})
    found = finish(2, run, ds_path)
    assert found[8] < found[1] - 0.5
    # bf16 counts would stand still at 256.
    assert [sum(counts) for counts in read_metrics(run.run_dir)[-1]["tokens_per_expert"]] == [128 * 32 * 2] * 3


def test_sigterm_saves_a_checkpoint_and_the_run_goes_on(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    run = new_run("stopped")
    process = start(2, run, ds_path)
    wait_for_step(run, 3, process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)  # one rank is enough: they stop together
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output[-3000:]
    assert "stopped by a signal after step" in output
    stopped_at = max(losses(run.run_dir))
    assert stopped_at < 20
    assert [p.name for p in (run.run_dir / "checkpoints").glob("step_*")] == [f"step_{stopped_at:08d}"]
    resumed = finish(2, run, ds_path, "--resume", "auto")
    assert resumed == finish(2, new_run("whole"), ds_path)


def test_a_signal_to_the_whole_job_also_saves(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    run = new_run("launcher", schedule={"total_tokens": 10**6, "peak_lr": 1e-3, "min_lr": 0, "warmup_tokens": 0})
    process = start(2, run, ds_path)
    wait_for_step(run, 3, process)
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does, or ctrl-C: launcher and ranks alike
    output = process.communicate(timeout=90)[0]
    assert "stopped by a signal after step" in output, output[-3000:]
    assert len(list((run.run_dir / "checkpoints").glob("step_*/manifest.json"))) == 1


def test_a_damaged_checkpoint_is_named_and_not_loaded_when_it_alone_is_asked_for(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    run = new_run("damaged")
    finish(2, run, ds_path)
    (shard,) = (run.run_dir / "checkpoints" / "step_00000020").glob("*rank_1*optim_states.pt")
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "latest"))
    assert done.returncode == 2
    assert f"{shard} does not have its checksum; resume with --resume auto to go on from" in done.stderr
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "step_00000015"))
    assert done.returncode == 2
    assert "has no checkpoint 'step_00000015'; it has step_00000010, step_00000020" in done.stderr


def test_a_checkpoint_of_another_topology_is_refused(new_run, write_ds):
    run = new_run("topology")
    finish(2, run, write_ds(2, micro_batch=4, accumulation=1, autoep_size=2))
    done = launch(
        2, TRAIN, *run.arguments(write_ds(2, micro_batch=4, accumulation=1, autoep_size=1), "--resume", "auto")
    )
    assert done.returncode == 2
    assert (
        "was written with 2 ranks, expert parallel size 2, ZeRO-3 and this run has 2 ranks, expert parallel"
        in done.stderr
    )
    assert "first run python launch/reshard.py --run" in done.stderr


def test_a_run_folder_is_not_mixed_with_another_run(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    run = new_run("mixed")
    finish(2, run, ds_path)
    before = sorted(p.name for p in run.run_dir.iterdir())
    done = launch(2, TRAIN, *run.arguments(ds_path))
    assert done.returncode == 2
    assert "already holds a run; add --resume auto" in done.stderr
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "auto", "--set", "seed=3"))
    assert done.returncode == 2
    assert "holds a run with other settings: seed is 3, was 0; restore them or choose another run_dir" in done.stderr
    assert sorted(p.name for p in run.run_dir.iterdir()) == before
    # A longer schedule is the same run.
    done = launch(2, TRAIN, *run.arguments(ds_path, "--resume", "auto", "--set", "schedule.total_tokens=5632"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "changed since the last start: schedule.total_tokens is 5,632, was 5,120" in done.stdout
    assert max(losses(run.run_dir)) == 22


def test_a_finished_run_leaves_no_shared_memory(new_run, write_ds):
    words = launch_words(
        2, TRAIN, *new_run("clean").arguments(write_ds(2, micro_batch=4, accumulation=1, autoep_size=2))
    )
    port = int(words[words.index("--master_port") + 1])
    assert run_command(*words).returncode == 0
    assert shared_memory(port) == []


def test_a_run_folder_says_how_it_was_made(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    run = new_run("recorded")
    finish(2, run, ds_path, "--set", "seed=7", "--set", "checkpoint.keep_last=1")
    assert [p.name for p in (run.run_dir / "checkpoints").iterdir() if p.is_dir()] == ["step_00000020"]
    (record,) = map(json.loads, (run.run_dir / "attempts.jsonl").read_text().splitlines())
    assert record["run_config"]["seed"] == 7
    assert record["ds_config"] == json.loads(ds_path.read_text())
    assert record["packages"]["deepspeed"]
    assert "--set" in record["command"]
    assert list((run.run_dir / "tensorboard").iterdir())


def test_a_run_does_what_its_settings_say(new_run, write_ds):
    tokens = 8 * 32  # of a step
    schedule = {
        "total_tokens": 20 * tokens, "kind": "wsd", "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 4 * tokens,
        "decay_tokens": 6 * tokens,
    }  # fmt: skip
    run = new_run(
        "settings",
        schedule=schedule,
        checkpoint={"every_steps": 3, "keep_last": 1, "keep_every_steps": 6},
        routing={"bias_freeze_share": 0.5, "bias_update_rate": 0.01},
    )
    finish(1, run, write_ds(1, micro_batch=8, accumulation=1, autoep_size=1))
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
def test_inputs_that_do_not_fit_are_refused_in_a_dry_run(overrides, message, new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    words = [word for override in overrides for word in ("--set", override)]
    done = run_python(TRAIN, *new_run("unfit").arguments(ds_path, "--dry-run", *words))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokenizer_that_is_not_the_shards_or_too_large_for_the_model_is_refused(
    new_run, prepared, write_ds, tmp_path
):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
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
        done = run_python(TRAIN, *new_run("tokenizer").arguments(ds_path, "--dry-run", "--set", override))
        assert done.returncode == 2
        assert message in done.stderr


def test_mistakes_in_both_configs_are_told_together(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2, gradient_clippin=1.0)
    done = run_python(TRAIN, *new_run("both").arguments(ds_path, "--dry-run", "--set", "sede=1"))
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    assert "did you mean 'gradient_clipping'?" in done.stderr


def test_without_the_launcher_the_command_is_told(new_run, write_ds):
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    done = run_python(TRAIN, *new_run("alone").arguments(ds_path))
    assert done.returncode == 2
    assert "this needs the launcher: deepspeed" in done.stderr


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


def test_a_resume_with_a_larger_batch_ends_at_the_same_tokens(new_run, write_ds):
    run = new_run("ramp")
    small, large = (write_ds(2, micro_batch=4, accumulation=n, autoep_size=2) for n in (1, 2))
    finish(2, run, small, "--set", f"schedule.total_tokens={10 * 8 * 32}")
    after = finish(2, run, large, "--resume", "auto")
    assert sorted(after) == list(range(1, 16))  # 10 steps of 8 sequences, 5 of 16
    assert read_metrics(run.run_dir)[-1]["tokens"] == 20 * 8 * 32
