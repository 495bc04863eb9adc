"""Downstream tasks during training: loaded, checked and counted before the start, then scored on the live engine.

What brings torch or the harness is imported late: a run without downstream tasks needs neither here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.base.errors import UserError, how_to_install
from recipe.base.settings import Compute, Downstream
from recipe.base.tables import ratio

if TYPE_CHECKING:
    import deepspeed

    from recipe.evaluation.downstream.scoring import Scored

SECTION = "evaluation.downstream"


@dataclass(frozen=True)
class Cost:
    """What one evaluation reads, counted.

    Args:
        tokens: that go through the model, forward only, without padding.
    """

    tasks: int
    requests: int
    tokens: int

    def describe(self, every_steps: int, tokens_per_step: int) -> str:
        share = ratio(self.tokens, every_steps * tokens_per_step)
        return (
            f"every {every_steps:,} steps, {self.requests:,} requests of {self.tasks} tasks: {self.tokens:,} tokens, forward "
            f"only, {share:.2%} of the tokens that are trained on meanwhile and about {share / 3:.2%} of their FLOPs"
        )


class TasksInTraining:
    """The tasks of a run, which can be scored again and again.

    Args:
        tasks: of the harness, with their datasets.
        max_length: tokens that the model sees at a time.
    """

    def __init__(self, settings: Downstream, tasks: Mapping[str, Any], tokenizer: Any, max_length: int):
        self._settings, self._tasks, self._tokenizer, self._max_length = settings, tasks, tokenizer, max_length
        self._progress: Callable[[], None] = lambda: None
        for task in tasks["tasks"].values():
            task.build_all_requests = partial(self._build, task.build_all_requests)
        self.cost = self._counted()

    def _build(self, build: Callable[..., None], **arguments: Any) -> None:
        self._progress()
        build(**arguments)

    def _counted(self) -> Cost:
        """Go through a whole evaluation with a model that is not there."""
        from recipe.evaluation.downstream.harness import CountingLM
        from recipe.evaluation.downstream.scoring import score_tasks

        counting = CountingLM(self._tokenizer, self._max_length)
        score_tasks(counting, self._tasks, limit=self._settings.limit)
        return Cost(len(self._tasks["tasks"]), counting.requests, counting.tokens)

    def evaluate(
        self, engine: deepspeed.DeepSpeedEngine, compute: Compute, progress: Callable[[], None] = lambda: None
    ) -> Scored:
        """Score all tasks, by all ranks together; the engine is left in the mode it was in.

        `progress` is called before each task is prepared and before each forward pass, for a watchdog.
        """
        from recipe.evaluation.downstream.harness import EngineLM, scores_of_engine
        from recipe.evaluation.downstream.scoring import score_tasks
        from recipe.model.fusion import fused

        self._progress = progress
        of_engine = scores_of_engine(engine, compute)

        def scores_of(tokens_BS: Any, targets_BS: Any) -> Any:
            progress()
            return of_engine(tokens_BS, targets_BS)

        lm = EngineLM(
            scores_of,
            self._tokenizer,
            engine.device,
            max_length=self._max_length,
            batch_size=self._settings.batch_size,
        )
        training = engine.module.training
        engine.eval()
        with fused(False):  # what is compiled is compiled for the batches of training
            scored = score_tasks(lm, self._tasks, limit=self._settings.limit)
        engine.train(training)
        return scored

    def summary(self, scored: Scored) -> str:
        """Of the tasks and groups that the run config names, and of the gaps between languages, in bits per byte."""
        from recipe.evaluation.downstream.gold import BITS_PER_BYTE

        named = {name: scored.tasks.get(name, {}).get(BITS_PER_BYTE) for name in self._settings.tasks}
        gaps = {f"gap {name}": gap["metrics"].get(BITS_PER_BYTE) for name, gap in scored.gaps.items()}
        return "  ".join(
            f"{name} {score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")
            for name, score in {**named, **gaps}.items()
            if score is not None
        )


@cache
def tasks_in_training(settings: Downstream, tokenizer: Path, max_length: int) -> TasksInTraining:
    """Load the tasks of a run and go through them once without a model; what has been loaded is kept.

    Raises:
        UserError: no harness, task or dataset, a task that generates text, or an answer longer than `max_length`.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"{SECTION}: {how_to_install('lm_eval')}")
    if not settings.data.is_dir():
        raise UserError(
            f"{SECTION}.data {settings.data} is no folder; write it with `recipe/evaluate_model.py downstream --save-data "
            f"{settings.data} --tasks {','.join(settings.tasks)}` where there is a network"
        )
    from recipe.evaluation.downstream.command import TASKS, silence_bars

    os.environ["HF_HUB_OFFLINE"] = "1"
    silence_bars()
    from recipe.evaluation.downstream.harness import Datasets, known_tasks, load_tasks
    from recipe.huggingface.tokenizer_folder import load_tokenizer

    try:
        manager = known_tasks(settings.tasks, [TASKS, *settings.tasks_path])
        with Datasets(settings.data).used():
            tasks = load_tasks(manager, settings.tasks)
        generating = [name for name, task in tasks["tasks"].items() if task.OUTPUT_TYPE == "generate_until"]
        if generating:
            raise UserError(f"{', '.join(generating)} generate text, which needs the exported model; leave them out")
        return TasksInTraining(settings, tasks, load_tokenizer(tokenizer), max_length)
    except UserError as error:
        raise UserError(f"{SECTION}: {error}") from None
