"""The order of a run in phases: nothing is lost and nothing read twice, whatever the phases change."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.base.run_config.data import Mixture
from recipe.data.cycles import cycle_places
from recipe.data.mixture import CYCLE
from recipe.data.order import PhaseData, RunOrder
from recipe.data.token_folder import Source

S = 8


class InMemory:
    """A shard whose tokens are its places in the source."""

    def __init__(self, first: int, num_tokens: int):
        self.first, self.num_tokens = first, num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self.num_tokens
        return np.arange(self.first + start, self.first + stop)


def source(name: str, *shards: int) -> Source:
    firsts = [sum(shards[:number]) for number in range(len(shards))]
    return Source(name, tuple(InMemory(*sizes) for sizes in zip(firsts, shards, strict=True)), sum(shards), 1)


def phase(
    tokens: int, sources: Sequence[Source], seq_length: int = S, folder: str = "one", name="", **mixture
) -> PhaseData:
    sizes = {source.name: float(source.num_tokens) for source in sources}
    return PhaseData(Mixture(**mixture), seq_length, tokens, folder, sizes, name)


def reading(order: RunOrder, sources: Sequence[Source], reached: Sequence[int]) -> list[list[tuple[str, int]]]:
    """Source and first token of each sequence that each phase reads, when phases end after so many."""
    result = []
    for number, sequences in enumerate(reached):
        batches = order.of_phase(number, reached[:number], sources, skip_damage=False)
        result.append([(batches.locate(i)[0], int(batches.sequence(i)[0])) for i in range(sequences)])
    return result


# What the code before phases read; a run that began with it goes on with this one.
@pytest.mark.parametrize(
    ("mixture", "tokens", "places", "sha256"),
    [
        ({}, 3 * CYCLE * S, [(0, 2729, 1367)], "7085998369091d1b"),
        ({"alpha": 0.0, "max_epochs": 400.0}, 4 * CYCLE * S + 5 * S, [(0, 2584, 1512)], "230414cda0b25c39"),
        (
            {"tiers": {"en": 2, "zh": 1}, "anneal": {"share": 0.4, "tier_weights": {1: 4.0, 2: 0.5}}},
            5 * CYCLE * S,
            [(0, 2729, 1367), (3, 818, 3278)],
            "14cfc1abc6cda862",
        ),
        ({}, 100 * S, [(0, 2729, 1367)], "7085998369091d1b"),
    ],
    ids=["plain", "capped", "annealed", "shorter than a cycle"],
)
def test_a_run_of_one_phase_reads_what_it_always_has(mixture, tokens, places, sha256):
    sources = [source("en", 40 * S + 1, 20 * S + 1), source("zh", 15 * S + 1)]
    batches = RunOrder([phase(tokens, sources, **mixture)], 7).of_phase(0, [], sources, False)
    assert batches.stretches == [(first, {"en": en, "zh": zh}) for first, en, zh in places]
    indices = [*range(64), *range(2 * CYCLE - 8, 2 * CYCLE + 8), *range(4 * CYCLE, 4 * CYCLE + 32)]
    # the values that the tokens had where the sum was taken: shards from 0 and 1,000, zh from 10,000
    values = {
        "en": lambda token: token if token <= 40 * S else 1000 + token - 40 * S - 1,
        "zh": lambda token: 10_000 + token,
    }
    first = [values[batches.locate(i)[0]](int(batches.sequence(i)[0])) for i in indices]
    assert hashlib.sha256(np.array(first, dtype="<i8").tobytes()).hexdigest()[:16] == sha256


def random_plan(draw: random.Random, *, fits: bool) -> tuple[list[Source], list[PhaseData], list[int]]:
    """Sources, phases, and the sequences that each phase reads, some beyond its plan as a last batch does."""
    per_shard = (6000, 40_000) if fits else (900, 2500)
    sources = [
        source(name, *(draw.randint(*per_shard) for _ in range(draw.randint(1, 3)))) for name in ("code", "en", "zh")
    ]
    phases, reached = [], []
    for _ in range(draw.randint(2, 5)):
        weights = {s.name: draw.choice([0, 0, 1, 2, 5]) for s in sources}
        weights[draw.choice(sources).name] = 3
        seq_length, sequences = draw.choice([4, 8, 32]), draw.randint(1, 60)
        phases.append(phase(sequences * seq_length - draw.randint(0, 3), sources, seq_length, weights=weights))
        reached.append(max(0, sequences + draw.randint(-8, 8)))
    return sources, phases, reached


@pytest.mark.parametrize("seed", range(30))
def test_no_token_is_read_twice_while_a_plan_fits_into_an_epoch(seed):
    draw = random.Random(seed)
    sources, phases, reached = random_plan(draw, fits=True)
    read = {s.name: np.zeros(s.num_tokens, dtype=int) for s in sources}
    for data, sequences in zip(phases, reading(RunOrder(phases, seed), sources, reached), strict=True):
        for name, first in sequences:
            read[name][first : first + data.seq_length] += 1
    assert max(int(times.max()) for times in read.values()) == 1
    total = sum(data.seq_length * count for data, count in zip(phases, reached, strict=True))
    assert sum(int(times.sum()) for times in read.values()) == total


@pytest.mark.parametrize("seed", range(30))
def test_beyond_an_epoch_a_region_is_read_whole_before_a_sequence_comes_again(seed):
    draw = random.Random(seed)
    sources, phases, _ = random_plan(draw, fits=False)
    reached = [draw.randint(0, 400) for _ in phases]
    order = RunOrder(phases, seed)
    times: dict[tuple[str, int], Counter] = {}
    for data, sequences in zip(phases, reading(order, sources, reached), strict=True):
        for name, first in sequences:
            counter = times.setdefault((name, data.seq_length), Counter())
            counter[first] += 1
    for (name, seq_length), counter in times.items():
        number = next(n for n, data in enumerate(phases) if data.seq_length == seq_length and name in order.names(n))
        first, end = order.facts(number)["regions"][name]
        assert min(counter) >= first
        assert max(counter) + seq_length < end
        assert max(counter.values()) - min(counter.values()) <= 1
        (whole,) = [s for s in sources if s.name == name]
        if max(counter.values()) > 1:  # the region's last shard parts may each lose less than a sequence
            assert len(counter) >= (end - first) // seq_length - len(whole.shards)


@pytest.mark.parametrize("seed", range(5))
def test_a_changed_mixture_goes_on_in_each_source_where_it_stopped(seed):
    """The sequences of each source are those of a run that never changes its mixture, in the same order."""
    draw = random.Random(seed)
    sources = [source("en", 2000, 500), source("zh", 900)]
    weights = [{"en": draw.randint(0, 4), "zh": draw.randint(1, 4)} for _ in range(4)]
    reached = [draw.randint(0, 100) for _ in weights]
    phases = [phase(50 * S, sources, weights=shares) for shares in weights]
    parts = [part for sequences in reading(RunOrder(phases, seed), sources, reached) for part in sequences]
    for name in ("en", "zh"):
        changed = [first for source, first in parts if source == name]
        alone = RunOrder([phase(50 * S, sources, weights={"en": 0, "zh": 0, name: 1})], seed)
        (unchanged,) = reading(alone, sources, [len(changed)])
        assert changed == [first for _, first in unchanged]


@pytest.mark.parametrize("seed", range(5))
def test_any_ranks_and_micro_batches_read_the_same(seed):
    draw = random.Random(seed)
    sources, phases, reached = random_plan(draw, fits=True)
    number = len(phases) - 1
    batches = RunOrder(phases, seed).of_phase(number, reached[:number], sources, False)
    expected = [batches.sequence(i).tolist() for i in range(96)]
    for _ in range(3):
        read, consumed = [], 0
        while consumed < 96:  # the batch may change at any step
            ranks, micro = draw.choice([(1, 4), (2, 4), (4, 2), (8, 1), (3, 8), (6, 4)])
            if consumed + ranks * micro <= 96:
                for rank in range(ranks):
                    read += batches.micro_batch(consumed, 0, rank, ranks, micro)[0].tolist()
                consumed += ranks * micro
        assert read == expected


@pytest.mark.parametrize("seed", range(5))
def test_tokens_are_counted_as_they_are_read(seed):
    draw = random.Random(seed)
    sources, phases, reached = random_plan(draw, fits=False)
    order, counted = RunOrder(phases, seed), Counter()
    for number, (data, sequences) in enumerate(zip(phases, reading(order, sources, reached), strict=True)):
        for name, _ in sequences:
            counted[name] += data.seq_length
        tokens = order.tokens_read(number, reached[:number], reached[number])
        assert tokens == {name: counted[name] for name in tokens}
        epochs = order.epochs(number, reached[:number], reached[number])
        assert epochs == pytest.approx({name: counted[name] / data.sizes[name] for name in tokens})


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_met_in_every_cycle_of_every_phase(seed):
    draw = random.Random(seed)
    sources = [source("en", 2000), source("zh", 900)]
    phases = [phase(50 * S, sources, weights={"en": draw.random(), "zh": draw.random()}) for _ in range(3)]
    order = RunOrder(phases, seed)
    for number, data in enumerate(phases):
        batches = order.of_phase(number, [77] * number, sources, False)
        assert batches.read(2 * CYCLE) == {name: 2 * n for name, n in cycle_places(data.mixture.weights).items()}


def test_facts_stay_when_later_phases_of_the_first_length_are_prolonged():
    sources = [source("en", 40_000, 20_000), source("zh", 30_000)]
    tokens = [1000, 2000, 4000, 1600]

    def facts(*prolonged: int, **changed) -> list[dict]:
        lengths = [S, S, 32, S]
        phases = [
            phase(tokens[n] * (2 if n in prolonged else 1), sources, lengths[n], weights={"en": n + 1, "zh": 1})
            for n in range(4)
        ]
        phases[1] = replace(phases[1], **changed)
        order = RunOrder(phases, 3)
        found = [order.facts(number) for number in range(4)]
        assert json.loads(json.dumps(found)) == found
        return found

    assert facts() == facts(0) == facts(1) == facts(3) == facts(0, 1, 3)
    longer = facts(2)
    assert [longer[n]["regions"] == facts()[n]["regions"] for n in range(4)] == [False] * 4
    mixed = facts(mixture=Mixture(weights={"en": 1, "zh": 9}))
    assert [mixed[n] == facts()[n] for n in range(4)] == [True, False, True, False]  # the last goes on after it


def test_phases_of_several_folders_have_orders_of_their_own():
    short, long = [source("en", 4000)], [source("en", 3000)]
    phases = [phase(100 * S, short), phase(20 * 32, long, 32, folder="two"), phase(100 * S, short)]
    order = RunOrder(phases, 0)
    assert [order.facts(n)["regions"] for n in range(3)] == [{"en": [0, 4000]}, {"en": [0, 3000]}, {"en": [0, 4000]}]
    parts = []
    for number, sources in enumerate((short, long, short)):
        batches = order.of_phase(number, [100, 20], sources, False)
        parts.append([int(batches.sequence(i)[0]) for i in range((100, 20, 100)[number])])
    assert len(set(parts[0] + parts[2])) == 200
    assert order.tokens_read(2, [100, 20], 100) == {"en": 200 * S + 20 * 32}
    assert order.epochs(2, [100, 20], 100) == {"en": pytest.approx(200 * S / 4000 + 20 * 32 / 3000)}


def test_a_source_too_small_for_a_phase_is_refused_with_its_name():
    sources = [source("en", 40_000), source("zh", 200)]
    phases = [phase(1000, sources, name="base"), phase(1000, sources, 256, name="long")]
    with pytest.raises(
        UserError, match=r"phases.1 \(long\): source 'zh' has 200 tokens for sequences of 8 and 256, too few"
    ):
        RunOrder(phases, 0)
    phases[1] = phase(1000, sources, 256, name="long", weights={"en": 1, "zh": 0})
    assert RunOrder(phases, 0).names(1) == ["en"]
    shards = [source("en", 40_000), source("zh", *[200] * 20)]  # enough together, and each shard too small
    phases = [phase(1000, shards, name="base"), phase(1000, shards, 256, name="long")]
    with pytest.raises(UserError, match=r"phases.1 \(long\): source 'zh' has \d+ of its 4000 tokens, too few"):
        RunOrder(phases, 0).of_phase(1, [10], shards, False)


def test_a_phase_without_a_source_leaves_it_to_the_others():
    sources = [source("books", 4000), source("en", 40_000)]
    weights = [{"books": 0, "en": 1}, {"books": 1, "en": 1}]
    phases = [phase(100 * S, sources, weights=weights[0]), phase(20 * 32, sources, 32, weights=weights[1])]
    order = RunOrder(phases, 0)
    assert order.facts(1)["regions"]["books"] == [0, 4000]
    assert order.tokens_read(0, [], 10) == {"books": 0, "en": 10 * S}
