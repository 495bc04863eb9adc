"""Different ids are counted: exactly where they are few, closely where they are many, however parts are cut."""

from __future__ import annotations

import pytest

from data_prep.deduplication.distinct import SIZE, DistinctIds


def sketch(ids) -> DistinctIds:
    counted = DistinctIds()
    for identity in ids:
        counted.add(identity)
    return counted


@pytest.mark.parametrize("number", [0, 1, 12, SIZE - 1, 50_000])
def test_different_ids_of_parts_together(number):
    ids = [f"id {i}" for i in range(number)]
    parts = [sketch(ids[::2]), sketch(ids[1::2]), sketch(ids[: number // 3] * 2)]
    merged = DistinctIds.merged(part.dump() for part in parts)
    assert merged.count() == pytest.approx(number, rel=0.1 if number >= SIZE else 0)
    assert merged.dump() == sketch(reversed(ids)).dump()
    assert len(merged.dump()) <= 12 * SIZE
