"""Tasks that exist in several languages, and the gap between the languages: accuracy and bits per byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import recipe
from recipe.base.errors import UserError
from recipe.base.strict import load_yaml
from recipe.evaluation.downstream.estimates import difference, mean
from recipe.evaluation.downstream.gold import Items

PAIRS = Path(recipe.__path__[0]) / "configs" / "language_pairs.yaml"
REFERENCE = "en"  # the language that the others are taken from, where a pair has it
BITS_PER_ANSWER = "bits_per_answer"


@dataclass(frozen=True)
class Member:
    """The part of a task in a pair.

    Args:
        key: fields by which items are paired; () pairs them by number, None not at all.
    """

    pair: str
    language: str
    key: tuple[str, ...] | None


@cache
def shipped() -> Mapping[str, Member]:
    """The tasks of `PAIRS`."""
    members = {}
    for pair, facts in load_yaml(PAIRS).items():
        key = None if facts["key"] is None else tuple(facts["key"])
        members.update({task: Member(pair, language, key) for language, task in facts["tasks"].items()})
    return members


def member_of(task: Any) -> Member | None:
    """The part of a task in a pair, as its own file says it, or else the shipped table; None if it is in no pair."""
    said = (task.config.metadata or {}) if isinstance(task.config.metadata, Mapping) else {}
    if "pair" not in said or "language" not in said:
        return shipped().get(task.config.task)
    key = said.get("key", [])
    return Member(str(said["pair"]), str(said["language"]), None if key is None else tuple(key))


def check_key(task: Any, member: Member) -> None:
    """Refuse a task whose items cannot be told by the key of its pair.

    Raises:
        UserError: a document lacks a field of the key.
    """
    for document in task.eval_docs if member.key else ():
        missing = [field for field in member.key or () if document.get(field) is None]
        if missing:
            raise UserError(
                f"a document of task {task.config.task} has no {' and no '.join(missing)}, which the key of pair {member.pair} "
                "names; name fields there that all documents have, or set `key: null`, so that its items are not paired"
            )


def gaps(members: Mapping[str, Member], items: Mapping[str, Items]) -> dict[str, dict[str, Any]]:
    """The gap of each pair of which at least two languages have been scored.

    Args:
        members: of the tasks that are in a pair, by task.
        items: of all tasks.

    Returns:
        by pair and languages, such as `xnli en-zh`: the languages and tasks, `paired`: how many items of one are the same
        question as one of the other, 0 where that is not known; and by metric the value of the first language minus the
        other's with its standard error.
    """
    found = {}
    for pair in dict.fromkeys(member.pair for member in members.values()):
        tasks = {member.language: task for task, member in members.items() if member.pair == pair}
        first, *others = sorted(tasks, key=lambda language: (language != REFERENCE, language))
        for other in others:
            keys = (members[tasks[first]].key, members[tasks[other]].key)
            found[f"{pair} {first}-{other}"] = {
                "pair": pair,
                "languages": [first, other],
                "tasks": [tasks[first], tasks[other]],
                **_gap(items[tasks[first]], items[tasks[other]], None if None in keys else keys[0]),
            }
    return found


def _gap(one: Items, other: Items, key: Sequence[str] | None) -> dict[str, Any]:
    pairs = [] if key is None else _same_questions(one, other, by_number=not key)
    if pairs:
        one, other = one.taken([i for i, _ in pairs]), other.taken([j for _, j in pairs])
    of_one, of_other = one.estimates(), other.estimates()
    if pairs and one.bits_N is not None and other.bits_N is not None:
        # A text and its translation say the same, so that the bits of the whole answer have no unit that a language decides.
        of_one[BITS_PER_ANSWER], of_other[BITS_PER_ANSWER] = mean(one.bits_N), mean(other.bits_N)
    return {
        "paired": len(pairs),
        "metrics": {
            metric: difference(estimate, of_other[metric], paired=bool(pairs))
            for metric, estimate in of_one.items()
            if metric in of_other
        },
    }


def _same_questions(one: Items, other: Items, *, by_number: bool) -> list[tuple[int, int]]:
    """Numbers of the items that are the same question; none where nothing shows that they are."""
    places = {key: number for number, key in enumerate(_told_apart(other.keys))}
    pairs = [(number, places[key]) for number, key in enumerate(_told_apart(one.keys)) if key in places]
    if not by_number:
        return pairs
    known = one.gold_N is not None and other.gold_N is not None and len(one.keys) == len(other.keys) == len(pairs)
    return pairs if known and np.array_equal(one.gold_N, other.gold_N) else []  # type: ignore[arg-type]


def _told_apart(keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each key and how many items before have it too, so that all items of a key that several have are in the gap."""
    before: Counter[str] = Counter()
    for key in keys:
        yield key, before[key]
        before[key] += 1
