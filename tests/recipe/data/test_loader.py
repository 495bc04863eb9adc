"""The order of training sequences: a function of one integer, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.data.indexed import DamagedShard, Shard, ShardWriter, token_dtype
from recipe.data.loader import BatchOrder
from recipe.data.mixture import CYCLE, Stretch
from recipe.data.token_folder import Source

S = 8


@pytest.fixture
def sources(tmp_path) -> list[Source]:
    """en: 40 + 20 sequences in two shards, zh: 15; token values tell where they come from."""

    def source(name: str, first: int, sizes: list[int]) -> Source:
        shards = []
        for number, size in enumerate(sizes):
            writer = ShardWriter(tmp_path / f"{name}{number}", token_dtype(60_000))
            tokens = np.arange(first, first + size * S + 1)
            writer.add_document(tokens[: len(tokens) // 3])
            writer.add_document(tokens[len(tokens) // 3 :])
            writer.close()
            shards.append(Shard(writer.prefix))
            first += 1000
        return Source(name, tuple(shards), sum(s.num_tokens for s in shards), 1)

    return [source("en", 0, [40, 20]), source("zh", 10_000, [15])]


def order(sources, weights=None, seed=0) -> BatchOrder:
    return BatchOrder(sources, [Stretch(0, weights or {"en": 0.75, "zh": 0.25})], S, seed)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_global_batch_is_the_same_for_any_number_of_ranks(sources, world_size):
    batches = order(sources)
    micro, batch = 2, 16
    accumulation = batch // (micro * world_size)
    for consumed in (0, 16, 4096 - 8):
        read = [
            batches.micro_batch(consumed, step, rank, world_size, micro)
            for step in range(accumulation)
            for rank in range(world_size)
        ]
        expected = np.stack([batches.sequence(i) for i in range(consumed, consumed + batch)])
        assert np.array_equal(np.concatenate([tokens for tokens, _, _ in read]), expected)
        found = [batches.names[number] for _, numbers, _ in read for number in numbers]
        assert found == [batches.locate(i)[0] for i in range(consumed, consumed + batch)]


def test_an_epoch_reads_every_sequence_of_a_source_once(sources):
    batches = order(sources, {"en": 1.0, "zh": 0.0})
    starts = [int(batches.sequence(i)[0]) for i in range(60)]
    assert sorted(starts) == sorted([i * S for i in range(40)] + [1000 + i * S for i in range(20)])
    assert sorted(int(batches.sequence(i)[0]) for i in range(60, 120)) == sorted(starts)
    assert [int(batches.sequence(i)[0]) for i in range(60, 120)] != starts


def test_a_sequence_is_consecutive_tokens_with_its_last_target(sources):
    for index in range(50):
        sequence = order(sources).sequence(index)
        assert sequence.tolist() == list(range(sequence[0], sequence[0] + S + 1))


def test_each_cycle_holds_the_mixture_exactly(sources):
    batches = order(sources)
    for cycle in range(2):
        names = Counter(batches.locate(cycle * CYCLE + i)[0] for i in range(CYCLE))
        assert names == {"en": CYCLE * 3 // 4, "zh": CYCLE // 4}
    numbers = [number for name, number in map(batches.locate, range(2 * CYCLE)) if name == "zh"]
    assert numbers == list(range(CYCLE // 2))


def test_a_phase_changes_the_shares_and_goes_on_where_the_last_one_stopped(sources):
    batches = BatchOrder(sources, [Stretch(0, {"en": 0.75, "zh": 0.25}), Stretch(2, {"en": 0.25, "zh": 0.75})], S, 0)
    for cycle, chinese in ((0, CYCLE // 4), (1, CYCLE // 4), (2, CYCLE * 3 // 4), (5, CYCLE * 3 // 4)):
        names = Counter(batches.locate(cycle * CYCLE + i)[0] for i in range(CYCLE))
        assert names["zh"] == chinese
    numbers = [number for name, number in map(batches.locate, range(4 * CYCLE)) if name == "zh"]
    assert numbers == list(range(CYCLE // 2 + CYCLE * 3 // 2))
    assert batches.read(3 * CYCLE) == {"en": CYCLE * 1.75, "zh": CYCLE * 1.25}


def test_the_seed_changes_the_order_and_nothing_else_does(sources):
    first, again, other = order(sources), order(sources), order(sources, seed=1)
    read = lambda o: [o.sequence(i).tolist() for i in range(64)]  # noqa: E731
    assert read(first) == read(again)
    assert read(first) != read(other)


def test_a_source_shorter_than_a_sequence_is_refused(sources):
    with pytest.raises(UserError, match="source 'zh' has 121 tokens, too few"):
        BatchOrder(sources, [Stretch(0, {"en": 0.5, "zh": 0.5})], 200, 0)


def test_each_cycle_has_a_pattern_of_its_own(sources):
    batches = order(sources)
    patterns = [[batches.locate(cycle * CYCLE + i)[0] for i in range(CYCLE)] for cycle in range(3)]
    same = [sum(a == b for a, b in zip(patterns[0], other, strict=True)) / CYCLE for other in patterns[1:]]
    assert max(same) < 0.75  # 0.75**2 + 0.25**2 = 0.625 of the places by chance
    again = order(sources)
    assert patterns[0] == [again.locate(i)[0] for i in range(CYCLE)]


@pytest.mark.parametrize("phases", [[{"en": 1.0, "zh": 0.0}], [{"en": 1.0, "zh": 0.0}, {"en": 0.5, "zh": 0.0}]])
def test_a_source_without_a_share_needs_no_data(sources, phases):
    batches = BatchOrder(sources, [Stretch(cycle, weights) for cycle, weights in enumerate(phases)], 200, 0)
    assert batches.names == ["en", "zh"]
    assert {batches.locate(i)[0] for i in range(3 * CYCLE)} == {"en"}
    assert batches.read(2 * CYCLE) == {"en": 2 * CYCLE, "zh": 0}
    assert batches.epochs(2) == {"en": 2.0, "zh": 0.0}  # shards of 320 and 160 tokens hold one sequence of 200
    tokens, numbers, missing = batches.micro_batch(0, 0, 0, 1, 4)
    assert tokens.shape == (4, 201)
    assert set(numbers) == {0}
    assert not missing.any()


def test_a_source_that_gets_a_share_later_needs_data_now(sources):
    with pytest.raises(UserError, match="source 'zh' has 121 tokens, too few"):
        BatchOrder(sources, [Stretch(0, {"en": 1.0, "zh": 0.0}), Stretch(1, {"en": 0.5, "zh": 0.5})], 200, 0)


def test_a_damaged_sequence_is_missing_and_no_other_is(sources):
    """One flipped bit in the Chinese shard."""
    batches = BatchOrder(sources, [Stretch(0, {"en": 0.5, "zh": 0.5})], S, 0, skip_damage=True)
    whole, numbers, missing = batches.micro_batch(0, 0, 0, 1, 16)
    assert not missing.any()
    chinese = batches.names.index("zh")
    assert 0 < (numbers == chinese).sum() < 16
    (shard,) = sources[1].shards
    with open(f"{shard.prefix}.bin", "r+b") as handle:
        first = handle.read(1)
        handle.seek(0)
        handle.write(bytes([first[0] ^ 1]))
    damaged = [sources[0], Source("zh", (Shard(shard.prefix),), shard.num_tokens, 1)]
    batches = BatchOrder(damaged, [Stretch(0, {"en": 0.5, "zh": 0.5})], S, 0, skip_damage=True)
    tokens, numbers, missing = batches.micro_batch(0, 0, 0, 1, 16)
    assert missing.tolist() == (numbers == chinese).tolist()
    assert not tokens[missing].any()
    assert np.array_equal(tokens[~missing], whole[~missing])
    strict = BatchOrder(damaged, [Stretch(0, {"en": 0.5, "zh": 0.5})], S, 0)
    with pytest.raises(DamagedShard):
        strict.micro_batch(0, 0, 0, 1, 16)
