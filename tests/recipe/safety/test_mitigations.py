"""When detectors fire, what their remedies change, and what survives a restart."""

from __future__ import annotations

import json

import pytest
import torch

from recipe.base.run_config.routing import Routing
from recipe.engine.moe.routing_control import RoutingControl
from recipe.safety.mitigations import REVIVAL, Mitigator

ALL = {
    "aux_loss_coef": 0.01,
    "z_loss_coef": 0.001,
    "capacity": {"mode": "drop", "factor": 2.0},
    "mitigations": {
        "collapse": {"patience": 3, "duration": 5, "aux_loss_factor": 10},
        "overload": {"patience": 2, "duration": 4, "max_over_mean": 3.0, "capacity_factor": 1.0},
        "logit_growth": {"patience": 1, "duration": 2, "max_logit": 20.0, "z_loss_factor": 4},
    },
}


def control(**changes) -> RoutingControl:
    settings = Routing.model_validate({**ALL, **changes})
    biases = [torch.zeros(4), torch.zeros(4)]
    return RoutingControl(settings, biases, top_k=1, seq_length=8, accumulation=1, sources=["en"], seed=0)


def metrics(*, dead=(0, 0), entropy=(0.9, 0.9), load=(1.5, 1.5), max_logit=(5.0, 5.0)) -> dict:
    counts = [[0] * n + [100] * (4 - n) for n in dead]
    routing = {
        "dead_experts": list(dead),
        "entropy": list(entropy),
        "load_max_over_mean": list(load),
        "max_logit": list(max_logit),
    }
    return {"tokens_per_expert": counts, "routing": routing}


def test_all_well_changes_nothing():
    found = control()
    mitigator = Mitigator(found)
    assert [mitigator.update(step, metrics()) for step in range(1, 20)] == [[]] * 19
    assert (found.aux_loss_coef, found.z_loss_coef, found.capacity_factor) == (0.01, 0.001, 2.0)


@pytest.mark.parametrize(
    ("sign", "sentence"),
    [
        (
            {"dead": (0, 3)},
            "collapse: 75% of the experts dead in MoE layer 1; aux loss coefficient times 10 for 5 steps",
        ),
        ({"entropy": (0.05, 0.9)}, "collapse: router entropy 0.05 of its maximum in MoE layer 0; aux loss"),
    ],
)
def test_a_collapse_raises_the_aux_loss_for_a_while(sign, sentence):
    found = control()
    mitigator = Mitigator(found)
    events = {step: mitigator.update(step, metrics(**sign)) for step in (1, 2, 3)}
    assert events[1] == events[2] == []
    (event,) = events[3]
    assert sentence in event["message"]
    assert found.aux_loss_coef == pytest.approx(0.1)
    assert mitigator.update(7, metrics()) == []
    assert found.aux_loss_coef == pytest.approx(0.1)
    assert [e["event"] for e in mitigator.update(8, metrics())] == ["ended"]
    assert found.aux_loss_coef == 0.01


def test_a_sign_that_pauses_begins_anew():
    mitigator = Mitigator(control())
    for step, sign in ((1, True), (2, True), (3, False), (4, True), (5, True)):
        assert mitigator.update(step, metrics(dead=(3, 0) if sign else (0, 0))) == []
    assert len(mitigator.update(6, metrics(dead=(3, 0)))) == 1


def test_patience_is_in_steps_also_when_few_are_logged():
    mitigator = Mitigator(control())
    assert mitigator.update(10, metrics(dead=(3, 0))) == []
    assert len(mitigator.update(20, metrics(dead=(3, 0)))) == 1


def test_an_overload_tightens_capacity_and_growing_logits_raise_the_z_loss():
    found = control()
    mitigator = Mitigator(found)
    (growth,) = mitigator.update(1, metrics(load=(1.0, 3.5), max_logit=(25.0, 1.0)))
    assert "router logits up to 25.0 in MoE layer 0; z-loss coefficient times 4 for 2 steps" in growth["message"]
    assert found.z_loss_coef == pytest.approx(0.004)
    (overload,) = mitigator.update(2, metrics(load=(1.0, 3.5)))
    assert "load max/mean 3.5 in MoE layer 1; capacity factor 1 for 4 steps" in overload["message"]
    assert found.capacity_factor == 1.0
    mitigator.update(6, metrics())
    assert (found.z_loss_coef, found.capacity_factor) == (0.001, 2.0)


def test_dead_experts_are_revived_by_their_bias():
    mitigations = {"collapse": {"patience": 1, "duration": 5, "action": "revive"}}
    found = control(mitigations=mitigations)
    mitigator = Mitigator(found)
    (event,) = mitigator.update(1, metrics(dead=(2, 0)))
    assert "bias of 2 dead experts raised by 0.1" in event["message"]
    torch.testing.assert_close(found.bias_L[0], torch.tensor([0.5, 0.5, -0.5, -0.5]) * REVIVAL)
    assert torch.equal(found.bias_L[1], torch.zeros(4))
    assert mitigator.update(3, metrics(dead=(2, 0))) == []  # not again at once
    assert found.aux_loss_coef == 0.01


def test_a_restart_goes_on_where_the_remedy_was():
    first = Mitigator(control())
    for step in (1, 2, 3):
        first.update(step, metrics(dead=(3, 0)))
    first.update(4, metrics(dead=(0, 0), load=(4.0, 1.0)))
    resumed_control = control()
    resumed = Mitigator(resumed_control, json.loads(json.dumps(first.state)))
    assert resumed_control.aux_loss_coef == pytest.approx(0.1)
    for step in (5, 8, 9, 10, 20):
        sign = metrics(load=(4.0, 1.0))
        assert first.update(step, sign) == resumed.update(step, sign)


def test_a_detector_switched_off_does_nothing():
    mitigator = Mitigator(control(mitigations={"collapse": None, "logit_growth": None}))
    assert [mitigator.update(s, metrics(dead=(3, 3), max_logit=(99.0, 99.0))) for s in range(100)] == [[]] * 100


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mitigations": {"overload": {}}}, "set routing.capacity.mode drop or reroute"),
        ({"capacity": {"mode": "drop", "factor": 1.0}, "mitigations": {"overload": {}}}, "does not tighten"),
        ({"aux_loss_coef": 0}, "choose action revive, or set collapse null"),
        ({"z_loss_coef": 0}, "set one, or null it"),
    ],
)
def test_a_remedy_that_could_not_help_is_refused(section, message):
    (problem,) = Routing.model_validate(section).problems()
    assert message in problem
