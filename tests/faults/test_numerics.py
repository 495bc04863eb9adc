"""Numbers that go wrong: steps are skipped on all ranks alike, a lasting spike is gone back before, once."""

from __future__ import annotations

import math

import pytest

from recipe.run.checkpoint_files import complete
from tests.conftest import schedule_of
from tests.faults.conftest import STEPS, report

pytestmark = [pytest.mark.distributed, pytest.mark.faults, pytest.mark.slow]

SPIKES = {"spikes": {"window": 8, "sigmas": 100, "sustained": 3}}


def test_a_nan_gradient_is_skipped_and_too_many_stop_the_run(supervise, undisturbed):
    faults = [
        {"kind": "nan_gradient", "rank": 1, "step": 5},
        {"kind": "nan_gradient", "rank": 1, "step": 9, "steps": 99},
    ]
    run = supervise("nan", faults, numerics={"max_nonfinite_in_a_row": 3})
    assert run.wait() == 2
    losses, skipped = run.losses(), run.events("step_skipped")
    assert [(event["step"], event["kind"]) for event in skipped] == [
        (5, "nonfinite"),
        (9, "nonfinite"),
        (10, "nonfinite"),
    ]
    assert "gradient is not finite" in skipped[0]["message"]
    assert {step: losses[step] for step in range(1, 6)} == {step: undisturbed[step] for step in range(1, 6)}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[6] != undisturbed[6]  # an update less
    assert "3 steps in a row up to 11 were not finite" in run.output
    report(
        "NaN in one rank's gradient",
        skipped[0]["message"],
        seconds=0.0,
        lost_steps=1,
        then="the update is left out on all ranks; stops with code 2 after max_nonfinite_in_a_row",
    )


def test_a_spike_is_skipped_and_a_lasting_one_gone_back_before_once(supervise):
    """Bad data in step 8 alone; then from step 13 on, until the run has gone past them; and again for ever."""
    total = {"schedule": schedule_of(24)}
    once = [
        {"kind": "bad_data", "first": 7 * 8, "last": 8 * 8, "attempt": 1},
        {"kind": "bad_data", "first": 12 * 8, "last": 15 * 8, "attempt": 1},
    ]
    run = supervise("spike", once, numerics=SPIKES, **total)
    losses = run.finished()
    skipped = [event["step"] for event in run.events("step_skipped")]
    assert skipped == [8, 13, 14]
    (rewind,) = run.events("rewind")
    assert "3 steps in a row up to 15 were spikes" in rewind["message"]
    first, second = run.events("started")
    assert second["step"] == 12
    assert f"the data up to sequence {15 * 8} are left out" in second["message"]
    assert "nothing" not in first["message"]
    assert sorted(losses) == list(range(1, 25))
    assert max(losses[step] for step in range(13, 25)) < losses[1]
    report(
        "a planted loss spike",
        run.events("step_skipped")[0]["message"],
        seconds=0.0,
        lost_steps=1,
        then="the update is left out on all ranks",
    )
    report(
        "a spike that lasts",
        rewind["message"].split(":")[0],
        seconds=None,
        lost_steps=3,
        then="back to the checkpoint before it, past its data; a second time the run stops with code 2",
    )


def test_a_spike_that_comes_back_after_the_rewind_stops_the_run(supervise):
    run = supervise("again", [
        {"kind": "bad_data", "first": 8 * 8, "last": 10**9, "attempt": 1},
        {"kind": "bad_data", "first": 18 * 8, "last": 10**9, "attempt": 2},
    ], numerics=SPIKES, schedule=schedule_of(24))  # fmt: skip
    assert run.wait() == 2
    assert "the run has gone back before a spike once already and stops here" in run.output
    assert len(run.events("rewind")) == 1
    assert all(len(list(path.glob("manifest.json"))) == 1 for path in complete(run.run_dir / "checkpoints"))


def test_one_ranks_other_bits_are_named(supervise):
    run = supervise(
        "bits", [{"kind": "corrupt_arithmetic", "rank": 1, "step": 6}], watch={"corruption_check_every_steps": 3}
    )
    assert run.wait() == 2
    assert "silent data corruption: rank 0 on" in run.output  # of two ranks none has the majority: both are named
    assert "rank 1 on" in run.output
    assert max(run.losses()) == 6
    report(
        "one rank computes other bits (probe)",
        "silent data corruption, the rank and its host",
        seconds=None,
        lost_steps=None,
        then="of two ranks, or without a spare host: stops with code 2; else its host is left out at once",
    )


def test_a_collapsed_router_is_noticed_and_revived(supervise):
    """Every router at the same two of eight experts; the bias of dead experts is raised."""
    routing = {
        "mitigations": {
            "logit_growth": None,
            "collapse": {"patience": 2, "duration": 4, "action": "revive", "dead_share": 0.5},
        }
    }
    run = supervise("collapsed", [{"kind": "collapse", "step": 5, "bias": 0.6}], routing=routing,
                    schedule=schedule_of(30))  # fmt: skip
    losses = run.finished()
    fired = next(event for event in run.events("fired") if event["step"] >= 5)
    assert fired["step"] <= 8
    assert "of the experts dead in MoE layer" in fired["message"]
    assert losses[30] < losses[4]
    report(
        "a collapsed router",
        fired["message"].split(";")[0],
        seconds=None,
        lost_steps=0,
        then="the remedy holds for its duration; no step is lost",
    )


def test_slow_ranks_are_named_and_a_clock_that_is_set_changes_nothing(supervise, undisturbed):
    faults = [
        {"kind": "sleep", "rank": 1, "step": 6, "steps": 3, "seconds": 1.0},
        {"kind": "clock", "step": 4, "seconds": -86_400},
    ]
    run = supervise("weather", faults, watch={"stragglers_every_steps": 4, "no_progress_s": 20, "heartbeat_s": 1})
    assert run.finished() == undisturbed
    slow = [event for event in run.events("straggler") if event["step"] == 8]
    assert [event["slowest_rank"] for event in slow] == [1]
    assert "rank 1 on" in slow[0]["message"]
    assert slow[0]["waited_least_s"] < 0.5
    assert not run.events("attempt_ended")
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    report("a slow rank", slow[0]["message"], seconds=None, lost_steps=0, then="named; losses equal to the last bit")
    report(
        "the clock is set back a day",
        "nothing to detect: intervals are monotonic",
        seconds=None,
        lost_steps=0,
        then="losses equal to the last bit",
    )


def test_out_of_memory_says_what_could_be_done_and_steps_down_when_asked(supervise, undisturbed):
    run = supervise(
        "memory", [{"kind": "out_of_memory", "rank": 1, "step": 5}], words=("--step-down-on-oom",), real=True
    )
    losses = run.finished()
    (end,) = run.events("attempt_ended")
    assert (end["kind"], end["rank"]) == ("out_of_memory", 1)
    assert "planned peak" in run.output
    assert run.output.count("suggestion     ") >= 2
    stepped = (run.run_dir / "ds_config.stepped_down.json").read_text()
    assert '"train_micro_batch_size_per_gpu": 2' in stepped
    assert '"gradient_accumulation_steps": 2' in stepped
    for step, loss in undisturbed.items():
        assert losses[step] == pytest.approx(loss, rel=1e-4)
    report(
        "out of memory on one rank",
        "the rank, the plan, the peak, three suggestions",
        seconds=None,
        lost_steps=end["lost_steps"],
        then="with --step-down-on-oom half the micro-batch, twice the accumulation",
    )
