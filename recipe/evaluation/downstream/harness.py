"""A live engine under lm-evaluation-harness, and its tasks' datasets from a local folder.

Every rank sees all requests, as an expert-parallel model needs: batches are dealt to the ranks in turn, and a rank that has none
left in the last round computes along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from recipe.base.errors import UserError, nearest
from recipe.base.model_shape import IGNORED
from recipe.base.settings import Compute

Request = tuple[Any, list[int], list[int]]  # what was asked, its context's tokens, its continuation's


class Quiet:
    """Without the progress bars of the harness, which has one per kind of request and step."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[misc]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        return super().generate_until(requests, disable_tqdm=True)  # type: ignore[misc]

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._loglikelihood_tokens(requests, *args, **{**kwargs, "disable_tqdm": True})  # type: ignore[misc]


class RequestsDone(CacheHook):
    """In for the harness's cache, which it tells of each request that is done."""

    def __init__(self, advance: Callable[[], None]):
        super().__init__(None)
        self._advance = advance

    def add_partial(self, *_: Any) -> None:
        self._advance()


def export_lm(folder: Path, batch_size: int, advance: Callable[[], None]) -> Any:
    """An exported folder in the harness.

    Args:
        advance: called for each request that is done.
    """
    from lm_eval.models.huggingface import HFLM  # late: it brings accelerate

    class ExportLM(Quiet, HFLM):
        pass

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = ExportLM(pretrained=str(folder), batch_size=batch_size, device=device)
    lm.set_cache_hook(RequestsDone(advance))
    return lm


class EngineLM(TemplateLM):
    """Scores continuations with a model that all ranks compute together.

    Args:
        scores_of: tokens and targets [B, S] -> `recipe.model.loss.token_scores` [B, S, 2]; called equally often on every
            rank.
        tokenizer: of transformers.
        max_length: tokens that the model sees at a time.
        batch_size: requests of a batch, per rank.
        advance: called for each request that is done.
    """

    def __init__(
        self,
        scores_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        tokenizer: Any,
        device: torch.device,
        *,
        max_length: int,
        batch_size: int,
        advance: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self.scores_of, self.tokenizer, self._device = scores_of, tokenizer, device
        self.max_length, self.batch_size, self._advance = max_length, batch_size, advance

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **more)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Request], *, done: Callable[[int], None] | None = None, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score requests; `done` is called with the index of each, where it is not a request to count by itself."""
        self.check_answers(requests)
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        batches = [longest_first[i : i + self.batch_size] for i in range(0, len(requests), self.batch_size)]
        rank, ranks = dist.get_rank(), dist.get_world_size()
        scores_N2 = torch.zeros(len(requests), 2, dtype=torch.float64, device=self._device)
        for first in range(0, len(batches), ranks):
            own = batches[first + rank] if first + rank < len(batches) else None
            scored = self._score([requests[i] for i in own or batches[first]])
            if own is not None:
                scores_N2[own] = scored
            for index in chain.from_iterable(batches[first : first + ranks]):
                self._advance() if done is None else done(index)
        dist.all_reduce(scores_N2)
        return [(nats, greedy > 0.5) for nats, greedy in scores_N2.tolist()]

    def check_answers(self, requests: Sequence[Request]) -> None:
        """Refuse a continuation that the model cannot see whole.

        Raises:
            UserError: there is one.
        """
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UserError(
                f"a task has an answer of {longest:,} tokens, and the model was trained on sequences of {self.max_length:,}; "
                "leave that task out"
            )

    @torch.no_grad()
    def _score(self, requests: Sequence[Request]) -> torch.Tensor:
        """Log-likelihood of each continuation, and whether it is the model's first choice, float64 [B, 2]."""
        rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        tokens_BS = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.long)
        targets_BS = torch.full_like(tokens_BS, IGNORED)
        for number, (row, (_, _, continuation)) in enumerate(zip(rows, requests, strict=True)):
            tokens_BS[number, : len(row) - 1] = torch.tensor(row[:-1])
            targets_BS[number, len(row) - 1 - len(continuation) : len(row) - 1] = torch.tensor(continuation)
        scores_BS2 = self.scores_of(tokens_BS.to(self._device), targets_BS.to(self._device)).double()
        greedy_BS = (scores_BS2[..., 1] > 0) | (targets_BS == IGNORED).to(self._device)
        return torch.stack((scores_BS2[..., 0].sum(dim=1), greedy_BS.all(dim=1).double()), dim=1)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[Request] = []
        owners = []
        for number, (text,) in enumerate(request.args for request in requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, cut):
                windows.append((None, context, continuation))
                owners.append(number)
        left = Counter(owners)

        def done(window: int) -> None:
            left[owners[window]] -= 1
            if not left[owners[window]]:
                self._advance()

        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, done=done), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise UserError("tasks that generate text need the exported model; export it and give --model")


class CountingLM(EngineLM):
    """Scores nothing: it counts what a model would be asked for, and refuses what it could not be."""

    def __init__(self, tokenizer: Any, max_length: int):
        super().__init__(_no_scores, tokenizer, torch.device("cpu"), max_length=max_length, batch_size=1)
        self.requests = self.tokens = 0

    def _loglikelihood_tokens(
        self, requests: list[Request], *, done: Callable[[int], None] | None = None, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        self.check_answers(requests)
        self.requests += len(requests)
        self.tokens += sum(min(len(context) + len(asked) - 1, self.max_length) for _, context, asked in requests)
        return [(-1.0, False)] * len(requests)


def _no_scores(tokens_BS: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a CountingLM has no model")


def scores_of_engine(engine: Any, compute: Compute) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The `scores_of` of `EngineLM` by a run's engine."""

    def scores_of(tokens_BS: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        result = engine(
            input_ids=tokens_BS, targets=targets_BS, loss_chunk_tokens=compute.loss_chunk_tokens, per_token=True
        )
        return result.loss

    return scores_of


class Datasets:
    """The datasets of tasks as files of a folder: `<dataset>/<split>.jsonl`.

    Args:
        folder: where they are, or go.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Tasks that are loaded meanwhile leave their datasets here."""
        original = ConfigurableTask.download

        def download(task: Any, *args: Any, **kwargs: Any) -> None:
            original(task, *args, **kwargs)
            target = self._folder_of(task)
            for split, rows in task.dataset.items():
                target.mkdir(parents=True, exist_ok=True)
                rows.to_json(target / f"{split}.jsonl", force_ascii=False)
            print(f"saved the dataset of {task.config.task} to {target}", flush=True)

        with _download_replaced(download):
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Tasks that are loaded meanwhile read their datasets from here, and from nowhere else."""

        def download(task: Any, *args: Any, **kwargs: Any) -> None:
            source = self._folder_of(task)
            files = {path.stem: str(path) for path in sorted(source.glob("*.jsonl"))}
            if not files:
                raise UserError(
                    f"{source} holds no dataset for task {task.config.task}; fetch it with --save-data where there is a network"
                )
            task.dataset = datasets.load_dataset("json", data_files=files)

        with _download_replaced(download):
            yield

    def _folder_of(self, task: Any) -> Path:
        parts = [task.DATASET_PATH, task.DATASET_NAME, *_named_files(task)]
        return self.folder / "__".join(str(part).strip("./").replace("/", "_") for part in parts if part)


def _named_files(task: Any) -> list[str]:
    """What tells tasks apart that read files of one format."""
    files = (task.config.dataset_kwargs or {}).get("data_files")
    return [] if files is None else [task.config.task]


@contextmanager
def _download_replaced(function: Callable[..., None]) -> Iterator[None]:
    original = ConfigurableTask.download
    ConfigurableTask.download = function
    try:
        yield
    finally:
        ConfigurableTask.download = original


def known_tasks(names: Sequence[str], folders: Sequence[Path]) -> TaskManager:
    """The harness's tasks and those of the folders' YAML files.

    Raises:
        UserError: a folder that is not there, or names that are no tasks.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"tasks path {', '.join(missing)} is no folder; give one with task files (YAML)")
    manager = TaskManager(include_path=[str(folder) for folder in folders])
    unknown = [f"'{name}'{nearest(name, manager.all_tasks)}" for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"unknown task {'; '.join(unknown)}")
    return manager


def load_tasks(manager: TaskManager, names: Sequence[str]) -> dict[str, Any]:
    """Tasks with their datasets: `tasks` and `groups`, each by name.

    Raises:
        UserError: a dataset that cannot be had.
    """
    try:
        return manager.load(list(names))
    except (OSError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        message = " ".join(str(error).split())[:300]
        raise UserError(
            f"a dataset cannot be had ({message}); fetch all with --save-data where there is a network, and give --data here"
        ) from None


def scores(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The harness's results as task -> metric -> value and standard error."""
    by_task: dict[str, dict[str, dict[str, float | None]]] = {}
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, variant = key.partition(",")
            if not isinstance(value, int | float) or not variant or metric.endswith("_stderr"):
                continue
            name = metric if variant == "none" else f"{metric} ({variant})"
            error = values.get(f"{metric}_stderr,{variant}")
            by_task.setdefault(task, {})[name] = {"value": value, "stderr": error if isinstance(error, float) else None}
    return by_task
