"""What an evaluation shows while it runs and at its end."""

from __future__ import annotations

import errno
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipe.base.strict import load_json
from recipe.base.tables import ProgressLine
from recipe.evaluation import held_out_command
from recipe.evaluation.display import aligned_table, progress_line
from recipe.evaluation.downstream import command as downstream_command
from recipe.evaluation.downstream import harness as downstream
from recipe.evaluation.downstream.harness import EngineLM, RequestsDone
from recipe.evaluation.downstream.request_progress import Requests
from recipe.evaluation.downstream.scoring import Scored, score_tasks
from tests.conftest import ROOT


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_half_minute_with_the_time_that_is_left(capsys):
    clock = Clock()
    with progress_line("requests", 100, clock) as progress:
        for _ in range(50):
            clock.now += 2
            progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        "requests 15/100  15%, 2m 50s left", "requests 30/100  30%, 2m 20s left", "requests 45/100  45%, 1m 50s left"
    ]  # fmt: skip


@pytest.mark.parametrize("on_terminal", [True, False])
def test_other_ranks_show_nothing(on_terminal, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    clock = Clock()
    with progress_line("requests", 2, clock) as progress:
        clock.now = 100.0
        progress.advance()
        progress.show()
    assert capsys.readouterr() == ("", "")


def test_columns_stand_below_each_other():
    assert aligned_table(("task", "value"), [("a", "0.5"), ("longer", "12.25")]).splitlines() == [
        "task    value", "a         0.5", "longer  12.25"
    ]  # fmt: skip


def test_the_libraries_bars_are_off_before_they_are_imported():
    """Nothing that the script imports first brings tqdm, which reads its switch once."""
    code = (
        "import sys, recipe.evaluate_model as script; assert 'tqdm' not in sys.modules\n"
        "script.COMMANDS['downstream'].silence_bars()\n"
        "from tqdm import tqdm; list(tqdm(range(3)))\n"
        "from datasets.utils import are_progress_bars_disabled as off; assert off()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Task:
    """Of the harness: its requests are made when they are asked for."""

    def __init__(self, requests: int):
        self.count, self.instances = requests, []

    def build_all_requests(self, **arguments: Any) -> None:
        self.instances = [SimpleNamespace(repeats=1)] * self.count


def test_requests_are_counted_over_all_tasks(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(ProgressLine, "SHOWN_EVERY_S", 0.0)
    tasks = [Task(3), Task(4)]
    with Requests(tasks) as requests:
        for task in reversed(tasks):  # the harness has an order of its own
            task.build_all_requests(limit=None)
        hook = RequestsDone(requests.advance)
        for _ in range(7):
            hook.add_partial("loglikelihood", ("a", "b"), (0.0, True))
    out, err = capsys.readouterr()
    assert out == "scores 7 requests of 2 tasks\n"
    assert "tasks whose requests are built 2/2 100%" in err
    assert "requests 7/7 100%" in err
    assert err.endswith("\r\x1b[K")


class Tokenizer:
    eos_token_id = bos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) % 7 for letter in text]


def request(kind: str, *arguments: str) -> Instance:
    return Instance(kind, {}, arguments, 0)


def test_an_engine_counts_each_request_once_and_shows_no_bar_of_the_harness(monkeypatch, capsys):
    monkeypatch.setattr(downstream.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(downstream.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(downstream.dist, "all_reduce", lambda tensor: None)
    done: list[int] = []
    model = EngineLM(
        lambda tokens, targets: torch.zeros(*tokens.shape, 2),
        Tokenizer(),
        torch.device("cpu"),
        max_length=4,
        batch_size=2,
        advance=lambda: done.append(1),
    )
    assert len(model.loglikelihood([request("loglikelihood", "ab", letter) for letter in "abc"])) == 3
    assert len(done) == 3
    # Texts of 3 and of 1 window.
    assert len(model.loglikelihood_rolling([request("loglikelihood_rolling", text) for text in ("a" * 12, "b")])) == 2
    assert len(done) == 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("output", [True, False])
def test_downstream_results_are_a_table_with_errors_and_say_where_they_are(output, tmp_path, capsys):
    path = tmp_path / "scores.json" if output else None
    scores = {"piqa": {"acc": {"value": 0.5, "stderr": 0.0125}, "bits_per_byte": {"value": 1.5, "stderr": None}}}
    gap = {"paired": 7, "metrics": {"acc": {"value": 0.25, "stderr": 0.125}}}
    scored = Scored(
        scores, {"xnli en-zh": gap}, {"mmlu": "its answers are letters", "ceval": "its answers are letters"}, {}
    )
    downstream_command.report(scored, path, {"model": "a"})
    head, first, second, _, _, gap_row, _, without, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "metric", "value", "stderr"]
    assert first.split() == ["piqa", "acc", "0.5000", "0.0125"]
    assert second.split() == ["piqa", "bits_per_byte", "1.5000"]
    assert gap_row.split() == ["xnli", "en-zh", "acc", "+0.2500", "0.1250", "7"]
    assert without == "no bits per byte of mmlu, ceval: its answers are letters"
    assert last == (f"written to {path}" if path else "not written to a file; give --output FILE to keep the results")
    assert path is None or load_json(path)["tasks"] == scores


def test_held_out_results_are_a_table_and_say_where_they_are(tmp_path, capsys):
    result = {"tokens": 12345, "loss": 2.0, "perplexity": 7.389, "bits_per_byte": 0.9}
    held_out_command.report({"en": result}, tmp_path / "e.json", {"step": 3}, tmp_path / "tensorboard")
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["source", "tokens", "loss,", "nats/token", "perplexity", "bits/byte"]
    assert row.split() == ["en", "12,345", "2.00000", "7.389", "0.9000"]
    assert (
        last
        == f"written to {tmp_path / 'e.json'}, and for TensorBoard to {tmp_path / 'tensorboard'} (tags held_out/...)"
    )
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("held_out/loss/en")] == [(3, 2.0)]


@pytest.mark.parametrize("command", [held_out_command, downstream_command])
def test_results_are_printed_before_a_full_disk_refuses_them(command, tmp_path, capsys, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    monkeypatch.setattr(command, "write_record", lambda *_: None)
    results = {"en": {"tokens": 9, "loss": 2.0, "perplexity": 7.4, "bits_per_byte": 0.9}}
    scores = Scored({"piqa": {"acc": {"value": 0.5, "stderr": None}}}, {}, {}, {})
    with pytest.raises(OSError, match="No space left"):
        command.report(results if command is held_out_command else scores, tmp_path / "e.json", {"step": 3}, tmp_path)
    assert ("0.9000" if command is held_out_command else "0.5000") in capsys.readouterr().out


def test_a_mean_has_a_standard_error_without_worker_processes(monkeypatch):
    """The harness gives none where it may not resample at all."""
    from lm_eval.api.metrics import mean, perplexity, stderr_for_metric

    asked = {}
    monkeypatch.setattr("lm_eval.evaluator.evaluate", lambda lm, tasks, **given: asked.update(given) or {"results": {}})
    score_tasks(None, {"tasks": {}, "groups": {}}, limit=None)
    samples = asked["bootstrap_iters"]
    assert stderr_for_metric(mean, samples)([0.0, 1.0, 1.0, 0.0]) == pytest.approx(0.2887, abs=1e-4)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    assert stderr_for_metric(perplexity, samples)([-1.0, -2.0]) > 0


def test_the_shipped_tasks_say_what_format_they_have_and_how_to_add_one():
    files = list((ROOT / "recipe/configs/downstream").glob("*.yaml"))
    assert files
    for path in files:
        first, link, *rest = path.read_text(encoding="utf-8").splitlines()
        assert "lm-evaluation-harness" in first
        assert link == "# https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md"
        assert any("To add a task" in line for line in rest)
