"""Where a start goes on in the data after the run went back before a spike, within a phase and over the end of one."""

from __future__ import annotations

from recipe.checkpoints.stored import TrainState
from recipe.training.start import _skip_data

SPIKE = {"number": 1, "phase": 1, "sequences": 48}


def test_the_data_of_a_spike_in_the_checkpoints_own_phase_are_left_out_once():
    state = TrainState(step=12, sequences=32, tokens=900, guard={"losses": [2.0]}, phase=1, phase_sequences=[16])
    assert _skip_data(state, SPIKE)
    assert (state.sequences, state.rewinds, state.guard, state.left_out) == (48, 1, {}, [])
    state.advance(8, 64)
    assert not _skip_data(state, SPIKE)  # the next start: these sequences have been gone past
    assert state.sequences == 56


def test_a_checkpoint_of_the_phase_before_ends_its_own_data_and_begins_the_next_behind_the_spike():
    state = TrainState(step=3, sequences=12, tokens=96, phase=0)
    assert _skip_data(state, SPIKE)
    assert (state.sequences, state.first_sequence) == (12, 0)
    state.advance(4, 32)
    following = state.in_next_phase()
    assert (following.phase, following.sequences, following.first_sequence) == (1, 48, 48)
    assert following.phase_sequences == [16]
    assert (following.step, following.tokens) == (4, 128)  # data are left out, not steps or the schedule's tokens
    last = following.in_next_phase()
    assert (last.sequences, last.first_sequence, last.phase_sequences) == (0, 0, [16, 48])


def test_a_run_without_a_spike_leaves_nothing_out():
    state = TrainState(step=3, sequences=12, tokens=96)
    assert not _skip_data(state, None)
    assert state.in_next_phase().sequences == 0
