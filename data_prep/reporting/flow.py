"""What flows through the stages of the data report: a column of text by language before and after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.core.tally import by, merged
from data_prep.reporting.quantities import counted, size
from data_prep.reporting.stages import (
    TOKEN_STAGES,
    FinishedStage,
    Reason,
    read_by_language,
    text_of_tokens,
    tokens_by_language,
    unit_of,
)


@dataclass(frozen=True)
class Lost:
    """What a stage drops of the column before it."""

    documents: int
    bytes: int  # with the lines and notices that go from documents that stay
    main: Reason | None  # the most frequent


@dataclass(frozen=True)
class Column:
    """The text after a stage, or what came in.

    Args:
        amounts: by language, bytes of text (tokens, where shards were imported).
        held_out: of these, what is held out.
        lines: what its label says below its name.
        tokens: by language and split.
        passed: the stage reads the text and leaves it as it is.
        unit: of the amounts: text_bytes or tokens.
    """

    name: str
    documents: int
    amounts: dict[str, int]
    lines: list[str]
    held_out: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    lost: Lost | None = None
    passed: bool = False
    unit: str = "text_bytes"


def flows(stages: Sequence[FinishedStage], languages: Sequence[str]) -> list[list[Column]]:
    """The columns of each flow: stages that follow one another, those of one name that lie beside each other as one."""
    drawings: list[list[Column]] = []
    groups: list[list[FinishedStage]] = []  # of the last flow
    for group in _beside(stages):
        if not drawings or not _follows(group, drawings[-1][-1], groups):
            drawings.append([_first(group, languages)])
            groups = []
        drawings[-1].append(_after(group, drawings[-1][-1], languages))
        groups.append(group)
    return drawings


def _follows(group: Sequence[FinishedStage], before: Column, groups: Sequence[Sequence[FinishedStage]]) -> bool:
    """Whether stages have read all of a column of the flow so far: by their parents, or a raw folder with as much as the last."""
    parents = {stage.parent for stage in group}
    for above in groups:
        checksums = {stage.checksum for stage in above}
        if parents & checksums:
            return checksums <= parents
    return group[0].name != "import_shards" and sum(stage.counts["in"] for stage in group) == before.documents


def _beside(stages: Sequence[FinishedStage]) -> list[list[FinishedStage]]:
    groups: list[list[FinishedStage]] = []
    for stage in stages:
        beside = groups and groups[-1][0].name == stage.name
        if beside and stage.parent not in {other.checksum for other in groups[-1]}:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _bytes(group: Sequence[FinishedStage], side: str) -> dict[str, int]:
    languages = [by(stage.groups, "language") for stage in group]
    return merged([{lang: n[f"bytes_{side}"] for lang, n in of.items() if n[f"bytes_{side}"]} for of in languages])


def _first(group: Sequence[FinishedStage], languages: Sequence[str]) -> Column:
    """What came in to the first stage of a flow."""
    if any(stage.groups for stage in group):
        amounts = _bytes(group, "in")
    elif group[0].name in TOKEN_STAGES:
        amounts = merged([text_of_tokens(stage, languages) for stage in group])
    else:
        amounts = merged([read_by_language(stage) for stage in group])
    return _column("in", amounts, sum(stage.counts["in"] for stage in group), unit_of(group[0]))


def _column(name: str, amounts: dict[str, int], documents: int, unit: str, lost: Lost | None = None) -> Column:
    total = sum(amounts.values())
    amount = f"{total:,} tokens" if unit == "tokens" else size(total)
    return Column(name, documents, amounts, [counted(documents, "document"), amount], lost=lost, unit=unit)


def _after(group: Sequence[FinishedStage], before: Column, languages: Sequence[str]) -> Column:
    name, documents = group[0].name, sum(stage.counts["out"] for stage in group)
    if name in TOKEN_STAGES:
        return _tokens(group, documents, languages)
    if any(stage.groups for stage in group):
        amounts = _bytes(group, "out")
        return _column(name, amounts, documents, "text_bytes", lost=_lost(group, documents, before, amounts))
    lines = [counted(documents, "document")]
    vocabulary = group[0].results.get("vocab_size")
    lines += [f"vocabulary {vocabulary:,}"] if vocabulary else ["drops nothing"]
    return Column(name, documents, dict(before.amounts), lines, passed=True)


def _lost(group: Sequence[FinishedStage], documents: int, before: Column, after: dict[str, int]) -> Lost | None:
    gone = sum(stage.counts["in"] for stage in group) - documents
    lost = max(0, sum(before.amounts.values()) - sum(after.values()))
    return Lost(gone, lost, _main_reason(group)) if gone or lost else None


def _main_reason(group: Sequence[FinishedStage]) -> Reason | None:
    return max(
        (reason for stage in group for reason in stage.reasons), key=lambda reason: reason.documents, default=None
    )


def _tokens(group: Sequence[FinishedStage], documents: int, languages: Sequence[str]) -> Column:
    """The tokens of the stages that write them, by language, and what is held out."""
    name = group[0].name
    unit = unit_of(group[0])
    amounts = merged([text_of_tokens(stage, languages) for stage in group])
    held_out: dict[str, int] = {}
    tokens: dict[str, dict[str, int]] = {}
    for stage in group:
        for lang, splits in tokens_by_language(stage, languages).items():
            held_out[lang] = held_out.get(lang, 0) + splits.get("held_out", {}).get(unit, 0)
            tokens[lang] = merged([tokens.get(lang, {}), {split: n["tokens"] for split, n in splits.items()}])
    text = [] if unit == "tokens" else [f"{size(sum(amounts.values()))} →"]
    lost = sum(stage.counts["in"] for stage in group) - documents
    return Column(
        name,
        documents,
        amounts,
        [counted(documents, "document"), *text, f"{sum(sum(n.values()) for n in tokens.values()):,} tokens"],
        {lang: amount for lang, amount in held_out.items() if amount},
        tokens,
        Lost(lost, 0, _main_reason(group)) if lost else None,
        unit=unit,
    )
