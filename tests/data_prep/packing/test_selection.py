"""What is taken of each source and each range of lengths."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.packing.selection import packing_tasks, shares_taken, taken, tokens_by_range
from data_prep.packing.settings import PackConfig
from recipe.base.errors import ConfigError, UserError
from recipe.base.strict import strict_model


def config(**values) -> PackConfig:
    return strict_model(PackConfig, {"seq_length": 8, **values}, "pack.yaml")


def test_tokens_are_counted_by_the_fewest_tokens_of_a_document():
    assert tokens_by_range(np.array([1, 4, 7, 8, 20]), [4, 8]) == [11, 28]


def test_a_source_is_taken_whole_or_by_share_or_amount():
    assert shares_taken("en", config(), [100]) == [1.0]
    assert shares_taken("en", config(sources={"en": {"share": 0.5}}), [100]) == [0.5]
    assert shares_taken("en", config(sources={"en": {"tokens": 25}}), [100]) == [0.25]
    assert shares_taken("zh", config(sources={"en": {}}), [100]) == [0.0]


def test_lengths_are_mixed_by_their_shares_as_far_as_the_scarcest_reaches():
    lengths = {8: 0.75, 4: 0.25}
    assert shares_taken("en", config(lengths=lengths), [1000, 300]) == [0.1, 1.0]
    assert shares_taken("en", config(lengths=lengths, sources={"en": {"tokens": 200}}), [1000, 300]) == [0.05, 0.5]
    own = config(lengths=lengths, sources={"en": {"lengths": {4: 1}}})
    assert shares_taken("en", own, [1300]) == [1.0]


@pytest.mark.parametrize(
    ("values", "there", "message"),
    [
        ({"sources": {"en": {"tokens": 101}}}, [100], "enough for 100 tokens, not for 101; lower sources.en.tokens"),
        ({"lengths": {8: 1, 4: 1}}, [100, 0], "0 in documents of 8 tokens or more: one of its lengths has none"),
    ],
    ids=["more than there is", "no document so long"],
)
def test_more_than_there_is_is_refused(values, there, message):
    with pytest.raises(UserError, match=message):
        shares_taken("en", config(**values), there)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_length": 1}, "seq_length"),
        ({"lengths": {0: 1}}, "lengths has a key below 1"),
        ({"lengths": {4: 0}}, "lengths has a share that is not a positive number"),
        ({"sources": {"en": {"tokens": 5, "share": 0.5}}}, "sources.en has both tokens and share; keep one"),
    ],
    ids=["seq_length", "key", "share", "both"],
)
def test_settings_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_a_shard_gives_its_first_documents_up_to_the_share_of_its_tokens():
    lengths = np.array([10, 3, 10, 10, 3, 10])
    assert taken(lengths, [1], [1.0]).all()
    assert taken(lengths, [5], [1.0]).tolist() == [True, False, True, True, False, True]
    assert taken(lengths, [1, 5], [0.5, 0.5]).tolist() == [True, True, True, False, False, False]


def test_small_shards_of_a_source_are_packed_together():
    shards = [{"source": name} for name in ("en", "en", "en", "zh")]
    counted = [{"tokens": [n]} for n in (40, 40, 40, 10)]
    tasks = packing_tasks(shards, counted, {"en": [1.0], "zh": [1.0]}, config(max_shard_tokens=80))
    assert [(task["source"], task["partition"], len(task["shards"])) for task in tasks] == [
        ("en", 0, 2),
        ("en", 1, 1),
        ("zh", 0, 1),
    ]
