"""Counts of documents and text bytes through a stage: in, out and dropped by reason, for each language and source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


class Tally:
    """Counts of one task; `merged` adds those of all."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, dict[str, Any]]] = {}

    def add(
        self, lang: str, source: str, bytes_in: int, reason: str | None, bytes_out: int, documents: int = 1
    ) -> None:
        """Count documents of so many bytes together; `reason` is why they go, None when they stay."""
        group = self._groups.setdefault(lang, {}).setdefault(
            source, {"in": 0, "out": 0, "bytes_in": 0, "bytes_out": 0, "dropped": Counter(), "bytes_dropped": Counter()}
        )
        group["in"] += documents
        group["bytes_in"] += bytes_in
        if reason is None:
            group["out"] += documents
            group["bytes_out"] += bytes_out
        else:
            group["dropped"][reason] += documents
            group["bytes_dropped"][reason] += bytes_in

    def groups(self) -> dict[str, Any]:
        """language -> source -> in, out, bytes_in, bytes_out, dropped and bytes_dropped by reason."""
        return self._groups


def with_totals(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The totals of all groups, with the groups: what a manifest holds as its counts."""
    total = merged([group for sources in groups.values() for group in sources.values()])
    empty: dict[str, Any] = {"in": 0, "out": 0, "bytes_in": 0, "bytes_out": 0, "dropped": {}, "bytes_dropped": {}}
    return {**empty, **total, "groups": dict(groups)}


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum of nested counters; keys sorted, so that the result does not depend on the order of the parts."""
    total: dict[str, Any] = {}
    for part in parts:
        _add(total, part)
    return _sorted(total)


def by(groups: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, Any]:
    """The groups summed by `language` or by `source`."""
    summed: dict[str, list[Any]] = {}
    for lang, sources in groups.items():
        for source, group in sources.items():
            summed.setdefault(lang if what == "language" else source, []).append(group)
    return {name: merged(parts) for name, parts in sorted(summed.items())}


def _add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def _sorted(value: Any) -> Any:
    return {key: _sorted(inner) for key, inner in sorted(value.items())} if isinstance(value, dict) else value
