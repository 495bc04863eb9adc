"""Collapsed routers recover by each means of balance, and by nothing else."""

from __future__ import annotations

import json
import statistics

import pytest

from recipe.base.strict import load_json
from tests.conftest import ROOT, launch

OFF = {
    "aux_loss_coef": 0.0,
    "z_loss_coef": 0.0,
    "bias_update_rate": 0.0,
    "mitigations": {"collapse": None, "logit_growth": None},
}
AUX = {**OFF, "aux_loss_coef": 0.02}
WATCHED = {"patience": 10, "duration": 20}
CASES = {
    "nothing": OFF,
    "micro-batch loss": {**AUX, "aux_loss_scope": "micro_batch"},
    "sequence loss": {**AUX, "aux_loss_scope": "sequence"},
    "global-batch loss": {**AUX, "aux_loss_scope": "global_batch"},
    # A bias moves by its rate a step, so 200 steps of the default 0.001 are too few for a gap of half a score.
    "bias": {**OFF, "bias_update_rate": 0.004},
    "quantiles": {**OFF, "bias_update": "quantile"},
    "revived": {**OFF, "mitigations": {"logit_growth": None, "collapse": {**WATCHED, "action": "revive"}}},
    "aux loss raised": {
        **OFF,
        "aux_loss_coef": 1e-6,
        "mitigations": {"logit_growth": None, "collapse": {**WATCHED, "duration": 500, "aux_loss_factor": 2e4}},
    },
}


OF_THE_DEFAULTS = ("nothing", "sequence loss", "bias", "quantiles")
OTHERS = ("nothing", *(name for name in CASES if name not in OF_THE_DEFAULTS))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "names",
    [OF_THE_DEFAULTS, pytest.param(OTHERS, marks=pytest.mark.slow)],
    ids=["the defaults' means", "the others"],
)
def test_routers_recover_from_a_collapse_by_each_means_and_not_without(names, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps({name: CASES[name] for name in names}))
    words = tmp_path / "cases.json", tmp_path / "out.json"
    done = launch(1, "tests/recipe/safety/collapse_worker.py", *words, env={"PYTHONPATH": str(ROOT)}, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_json(tmp_path / "out.json")
    first = {name: case["loads"][0] for name, case in found.items()}
    assert first.pop("quantiles", 1.0) < 2  # balanced before it is trained on
    assert set(first.values()) == {4.0}  # all tokens at two of eight experts
    assert min(found["nothing"]["loads"]) > 3
    assert found["nothing"]["events"] == []
    for name in set(names) - {"nothing", "revived"}:
        assert statistics.mean(found[name]["loads"][-5:]) < 1.5, (name, found[name])
    if "revived" in names:
        (event,) = found["aux loss raised"]["events"]
        assert (event["event"], event["step"]) == ("fired", 10)
        assert "of the experts dead in MoE layer" in event["message"]
        # Revival brings tokens to experts that nothing reached; keeping them equally loaded is for the other means.
        assert "dead experts raised" in found["revived"]["events"][0]["message"]
        assert sum(found["revived"]["dead"][-10:]) < sum(found["nothing"]["dead"][-10:])
