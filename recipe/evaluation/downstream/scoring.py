"""Tasks of the harness scored by a language model: its metrics, bits per byte of gold answers, and gaps between languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe.base.ranks import environment
from recipe.evaluation.downstream.estimates import Score, mean_of_scores
from recipe.evaluation.downstream.gold import BITS_PER_BYTE, Items, items_of
from recipe.evaluation.downstream.harness import scores
from recipe.evaluation.downstream.language_pairs import check_key, gaps, member_of

BOOTSTRAP_SAMPLES = 1000  # for the standard error of metrics that are no means, such as F1
FEWSHOT_SEED = 1234  # the harness's
Scores = dict[str, dict[str, Score]]  # task -> metric -> value and standard error


@dataclass(frozen=True)
class Scored:
    """The results of tasks; the same on every rank.

    Args:
        tasks: of tasks and groups.
        gaps: between languages, of `recipe.evaluation.downstream.language_pairs.gaps`.
        without_gold: why a task has no bits per byte of gold answers, by task.
        items: by task.
    """

    tasks: Scores
    gaps: dict[str, dict[str, Any]]
    without_gold: dict[str, str]
    items: dict[str, Items] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "gaps": self.gaps, "without_gold": self.without_gold}

    def tags(self) -> dict[str, float]:
        """As TensorBoard and the trackers show them, with the standard errors of bits per byte."""
        tags = {f"eval/{task}/{name}": score["value"] for task, of in self.tasks.items() for name, score in of.items()}
        for task, of in self.tasks.items():
            if (error := of.get(BITS_PER_BYTE, {}).get("stderr")) is not None:
                tags[f"eval/{task}/{BITS_PER_BYTE}_stderr"] = error
        for name, gap in self.gaps.items():
            for metric, score in gap["metrics"].items():
                tags[f"eval_gap/{name.replace(' ', '/')}/{metric}"] = score["value"]
        return {tag: value for tag, value in tags.items() if value is not None}


def score_tasks(lm: Any, tasks: Mapping[str, Any], *, limit: int | None) -> Scored:
    """Score the tasks that `recipe.evaluation.downstream.harness.load_tasks` has loaded.

    Raises:
        UserError: a document without the key by which its task's items are paired.
    """
    from lm_eval.evaluator import evaluate as run_tasks

    members = {name: member for name, task in tasks["tasks"].items() if (member := member_of(task)) is not None}
    for name, member in members.items():
        check_key(tasks["tasks"][name], member)
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # the same examples in each evaluation of a process
    # Of means the standard error is a formula; the resampling is for the few other metrics, here without worker processes.
    with environment({"DISABLE_MULTIPROC": "1"}):
        results = run_tasks(lm, dict(tasks), limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=True)
    assert results is not None
    items = {
        name: items_of(task, results["samples"][name], (members[name].key or ()) if name in members else ())
        for name, task in tasks["tasks"].items()
    }
    found = scores(results)
    for name, bits in _bits_per_byte(tasks["groups"], items).items():
        found.setdefault(name, {})[BITS_PER_BYTE] = bits
    without = {name: of.no_gold for name, of in items.items() if of.no_gold}
    return Scored(found, gaps(members, items), without, items)


def _bits_per_byte(groups: Mapping[str, Any], items: Mapping[str, Items]) -> dict[str, Score]:
    """Bits per byte of each task, and of each group the mean over those of its tasks and groups that have them."""
    estimates = {name: of.estimates().get(BITS_PER_BYTE) for name, of in items.items()}
    found = {name: estimate.as_json() for name, estimate in estimates.items() if estimate is not None}

    def of_group(group: Any) -> None:
        for member in group:
            if not hasattr(member, "task_name"):
                of_group(member)
        names = [getattr(member, "task_name", None) or member.name for member in group]
        if inside := [found[name] for name in names if name in found]:
            found[group.name] = mean_of_scores(inside)

    for group in groups.values():
        of_group(group)
    return found
