"""What the design page says of the cost of a loss follows from the plans and the rules, and from a ladder where there is one."""

from __future__ import annotations

from functools import partial

import pytest

import recipe.scaling.measured
from recipe.planner.timing.timeline import EXPECTED
from recipe.scaling.cost.tables import (
    batch_price_table,
    batch_ramp_table,
    ladder_says,
    loss_price_table,
    more_tokens,
    scaled_plan,
)
from recipe.scaling.interval import predict
from tests.planted_ladder import write_ladder

pytestmark = pytest.mark.xdist_group("planner")  # as tests/test_docs.py


def rows_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ][2:]


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(recipe.scaling.measured, "predict", partial(predict, draws=10))


def test_the_cost_of_a_loss_is_that_of_a_token_times_the_tokens_that_the_batch_takes():
    base, *_, large = rows_of(batch_price_table())
    assert base[2:5] == ["1.00T", "1.00", "1.00"]
    plans = [scaled_plan(gpus, 8) for gpus in (256, 1024)]
    price = more_tokens(plans[1], plans[0], 1e12)
    of_token = plans[1].cost(EXPECTED).usd / plans[0].cost(EXPECTED).usd
    assert large[:2] == ["1,024", "33.6M"]
    assert large[3] == f"{of_token:.2f}"
    assert large[4].startswith(f"{of_token * price.value:.2f} ({of_token * price.low:.2f} to")


def test_a_ramp_makes_tokens_worth_more_and_most_where_the_batch_is_large():
    worth = [float(row[1].split("B")[0]) for row in rows_of(batch_ramp_table())]
    usual, without, large, large_without, second_ramp = worth
    assert 1000 > usual > without > large
    assert usual - without < large - large_without < second_ramp - large


def test_one_percent_less_loss_takes_more_tokens_by_every_law():
    rows = rows_of(loss_price_table())
    for at_1t, better in zip(rows[::2], rows[1::2], strict=True):
        assert at_1t[2] == "1T"
        assert float(better[1]) == pytest.approx(0.99 * float(at_1t[1]), abs=0.001)
        assert float(better[2].removesuffix("T")) > 1.2


def test_without_a_ladder_none_is_quoted(tmp_path):
    assert ladder_says(tmp_path / "ladder.json") == "No ladder has been fitted here yet."


def test_a_ladder_of_another_share_says_how_far_off_it_is_and_no_loss(tmp_path):
    text = ladder_says(write_ladder(tmp_path / "ladder.json", "tiny"))
    assert (
        "whose active share is 0.333 where the flagship's is 0.072: that ladder prices no loss of the flagship." in text
    )
    assert "bits per byte" not in text


def test_a_ladder_of_the_flagships_family_has_its_loss_and_how_far_beyond_it_that_is(tmp_path, few_draws):
    text = ladder_says(write_ladder(tmp_path / "ladder.json", "30b-a3b"))
    for source, value, least, most in rows_of(text):
        assert source in ("en", "zh")
        assert 0.5 < float(least) <= float(value) <= float(most) < 0.8
    assert "The flagship after 1T has 39 and 311 times the active parameters and tokens of the largest run" in text
