"""What a task's items say one by one: whether the answer was right, and the bits that the gold answer costs the model.

The log-likelihoods are those from which the harness computes its own metrics; nothing is scored twice. Letters in shapes: N items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.evaluation.downstream.estimates import Estimate, mean, ratio_of_sums

GENERATED = "its answers are generated, and no likelihood is computed"
LETTERS = "its answers are letters of options, not texts"
SEVERAL = "its items have several right answers"
UNKNOWN = "its class does not tell which answer is right"
BITS_PER_BYTE, ACCURACY = "bits_per_byte", "acc"
SCORED_WHOLE = ("loglikelihood", "loglikelihood_rolling")  # output types whose only request is the gold text


@dataclass(frozen=True)
class Items:
    """The items of a task, in its order.

    Args:
        keys: what tells an item from the others of its task.
        gold_N: number of the right choice; 0 where there is only one text.
        bits_N: -log2 p(gold | context); None for a task without gold texts.
        bytes_N: UTF-8 bytes of the gold texts, of just what was scored.
        correct_N: 1 right, 0 wrong; None for a task without accuracy.
        no_gold: why there are no gold texts.
    """

    keys: tuple[str, ...]
    gold_N: np.ndarray | None = None
    bits_N: np.ndarray | None = None
    bytes_N: np.ndarray | None = None
    correct_N: np.ndarray | None = None
    no_gold: str = ""

    def estimates(self) -> dict[str, Estimate]:
        """Accuracy and bits per byte, as far as the task has them."""
        found = {}
        if self.correct_N is not None:
            found[ACCURACY] = mean(self.correct_N)
        if self.bits_N is not None and self.bytes_N is not None:
            found[BITS_PER_BYTE] = ratio_of_sums(self.bits_N, self.bytes_N)
        return found

    def taken(self, numbers: Sequence[int]) -> Items:
        """These items, in this order."""
        rows = list(numbers)
        arrays = {name: getattr(self, name) for name in ("gold_N", "bits_N", "bytes_N", "correct_N")}
        kept = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return Items(tuple(self.keys[number] for number in rows), **kept, no_gold=self.no_gold)


def items_of(task: Any, samples: Sequence[Mapping[str, Any]], key: Sequence[str] = ()) -> Items:
    """The items of a task of the harness that has been scored.

    Args:
        samples: of the task, as the harness logs them.
        key: fields of a document that tell items apart, which all documents have; none: their number in the task.
    """
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    keys = tuple(_key_of(sample, key) for sample in first)
    correct = [float(sample[ACCURACY]) for sample in first if isinstance(sample.get(ACCURACY), int | float)]
    correct_N = np.array(correct) if len(correct) == len(first) else None
    if (why := no_gold_text(task, first)) is not None:
        return Items(keys, correct_N=correct_N, no_gold=why)
    gold = [gold_index(task, sample["doc"]) for sample in first]
    texts = [scored_text(sample["arguments"][index]) for sample, index in zip(first, gold, strict=True)]
    nats = [_loglikelihood(sample["filtered_resps"][index]) for sample, index in zip(first, gold, strict=True)]
    return Items(
        keys,
        gold_N=np.array(gold),
        bits_N=-np.array(nats) / math.log(2),
        bytes_N=np.array([float(len(text.encode())) for text in texts]),
        correct_N=correct_N,
    )


def no_gold_text(task: Any, samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a task has no gold text whose likelihood is known; None if it has."""
    if task.OUTPUT_TYPE in SCORED_WHOLE and hasattr(task, "multiple_input"):
        return None
    if task.OUTPUT_TYPE == "generate_until":
        return GENERATED
    if task.OUTPUT_TYPE != "multiple_choice":
        return UNKNOWN
    if task.multiple_target:
        return SEVERAL
    if not task.multiple_input and all(_is_letter(text) for sample in samples for _, text, *_ in sample["arguments"]):
        return LETTERS
    return None if all(gold_index(task, sample["doc"]) is not None for sample in samples) else UNKNOWN


def gold_index(task: Any, doc: Any) -> Any:
    """Which of an item's requests is the gold answer's; None if no choice of the item is."""
    if task.OUTPUT_TYPE in SCORED_WHOLE:
        return 0
    # The harness keeps the number of the right one in the place of what the choices do not share.
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else None
    return gold if 0 <= gold < len(choices) else None


def scored_text(arguments: Sequence[str]) -> str:
    """The text whose likelihood a request asks for: the harness scores spaces at a context's end with what follows them."""
    if len(arguments) == 1:
        return arguments[0]
    context, continuation, *_ = arguments
    return context[len(context.rstrip()) :] + continuation


def _loglikelihood(response: Any) -> float:
    return float(response[0] if isinstance(response, Sequence) else response)


def _key_of(sample: Mapping[str, Any], fields: Sequence[str]) -> str:
    return " ".join(str(sample["doc"][field]) for field in fields) if fields else str(sample["doc_id"])


def _is_letter(text: str) -> bool:
    letter = text.strip()
    return len(letter) == 1 and letter.isascii()
