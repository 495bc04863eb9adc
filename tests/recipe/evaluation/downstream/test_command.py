"""Downstream tasks through lm-evaluation-harness: the live engine scores as the stock harness does its export."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer

from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.evaluation.downstream.harness import EngineLM, known_tasks
from recipe.run.records import read_downstream, read_record
from tests.conftest import ROOT, documents_in, ds_config, launch, run_forked, schedule_of, write_run

SCRIPT = ("recipe/evaluate_model.py", "downstream")
SHIPPED = ROOT / "recipe" / "configs" / "downstream"
pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("exported")]


@pytest.fixture(scope="module")
def tasks(prepared, tmp_path_factory):
    """A folder with small tasks in both languages: which of two endings is a document's own, and the perplexity of texts."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = documents_in(prepared.deduped)
    for lang in ("en", "zh"):
        texts = [d["text"][:160] for d in documents if d["lang"] == lang][:26]
        rows = [
            {
                "start": text[:80],
                "endings": [text[80:100], other[80:100]][:: 1 if i % 2 else -1],
                "own": 0 if i % 2 else 1,
                "text": text,
            }
            for i, (text, other) in enumerate(pairwise(texts))
        ]
        data = folder / f"{lang}.jsonl"
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        endings = {
            **common, "task": f"endings_{lang}", "output_type": "multiple_choice", "doc_to_text": "{{start}}",
            "doc_to_choice": "endings", "doc_to_target": "own", "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            "metadata": {"version": 1.0, "pair": "endings", "language": lang},
        }  # fmt: skip
        texts_task = {
            **common, "task": f"texts_{lang}", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        }  # fmt: skip
        group = {"group": f"small_{lang}", "task": [f"endings_{lang}", f"texts_{lang}"]}
        for name, task in (("endings", endings), ("texts", texts_task), ("small", group)):
            (folder / f"{name}_{lang}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    return folder


def test_an_answer_longer_than_the_context_is_refused():
    model = EngineLM(lambda tokens, targets: targets, None, torch.device("cpu"), max_length=4, batch_size=1)
    with pytest.raises(
        UserError, match="an answer of 5 tokens, and the model was trained on sequences of 4; leave that task out"
    ):
        model._loglikelihood_tokens([(None, [1], [2] * 4), (None, [1], [2] * 5)])


@pytest.fixture(scope="module")
def words(tasks, tmp_path_factory):
    """The options of the tasks, whose datasets are saved."""
    data = tmp_path_factory.mktemp("saved")
    words = ["--tasks", "small_en,small_zh", "--tasks-path", tasks]
    saved = run_forked(*SCRIPT, "--save-data", data, *words)
    assert saved.returncode == 0, saved.stderr[-3000:]
    for path in tasks.glob("*.jsonl"):
        path.rename(path.with_suffix(".away"))  # from here on the saved ones are all there is
    return [*words, "--data", data, "--batch-size", 3]


def test_the_engine_and_its_export_score_the_same(trained, exported, words, tmp_path):
    done = launch(2, *SCRIPT, "--run", trained.run_dir, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    of_run = load_json(trained.run_dir / "results.json")
    done = run_forked(*SCRIPT, "--model", exported, *words, "--output", tmp_path / "stock.json")
    assert done.returncode == 0, done.stderr[-3000:]
    of_export = load_json(tmp_path / "stock.json")["tasks"]
    assert of_run["step"] == 20
    assert of_run["tasks"].keys() == of_export.keys() == {
        "small_en", "small_zh", "endings_en", "endings_zh", "texts_en", "texts_zh",
    }  # fmt: skip
    for task, metrics in of_export.items():
        for metric, score in metrics.items():
            found = of_run["tasks"][task][metric]["value"]
            assert found == (pytest.approx(score["value"], rel=1e-6) if metric == "bits_per_byte" else score["value"])
    assert of_export["endings_en"]["acc"]["value"] > 0
    assert "endings_zh" in done.stdout
    board = EventAccumulator(str(trained.run_dir / "tensorboard"))
    board.Reload()
    assert board.Scalars("eval/texts_zh/bits_per_byte")[-1].step == 20


def test_scores_during_training_are_those_of_its_checkpoint(prepared, words, tasks, tmp_path):
    downstream = {
        "every_steps": 2, "tasks": ["small_en", "small_zh"], "data": str(words[-3]), "tasks_path": [str(tasks)], "batch_size": 3,
    }  # fmt: skip
    run = write_run(
        tmp_path,
        "run",
        prepared,
        schedule={**schedule_of(3), "warmup_tokens": 0},
        evaluation={"downstream": downstream},
    )
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2)))
    done = launch(2, "recipe/train.py", *run.arguments(ds))
    assert done.returncode == 0, done.stderr[-3000:]
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer / "tokenizer.json"))
    folders = [words[-3] / f"json__texts_{lang}" for lang in ("en", "zh")]
    lines = [line for folder in folders for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    windows = sum(-(-len(tokenizer.encode(json.loads(line)["text"]).ids) // 32) for line in lines)  # of seq_length
    assert f"downstream  every 2 steps, {2 * len(lines) + windows} requests of 4 tasks" in done.stdout
    before, at_the_end = read_downstream(run.run_dir)
    assert (before["step"], at_the_end["step"]) == (2, 3)
    assert at_the_end["seconds"] > 0
    assert before["tasks"] != at_the_end["tasks"]
    assert done.stdout.count("gap endings en-zh") == 2
    done = launch(2, *SCRIPT, "--run", run.run_dir, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    of_checkpoint = read_record(run.run_dir / "results.json")
    assert {key: at_the_end[key] for key in ("tasks", "gaps")} == {key: of_checkpoint[key] for key in ("tasks", "gaps")}
    assert of_checkpoint["gaps"]["endings en-zh"]["paired"] == 25
    board = EventAccumulator(str(run.run_dir / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("eval_gap/endings/en-zh/bits_per_byte")][:2] == [2, 3]


def test_the_shipped_groups_are_made_of_tasks_of_the_harness():
    for path in SHIPPED.glob("*.yaml"):
        group = yaml.safe_load(path.read_text(encoding="utf-8"))
        known_tasks([group["group"], *group["task"]], [SHIPPED])
        assert path.stem == group["group"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "hellaswagg"), "unknown task 'hellaswagg'; did you mean 'hellaswag'?"),
        (("--tasks", "piqa", "--data", "none"), "holds no dataset for task piqa; fetch it with --save-data"),
        (("--tasks-path", "none"), "tasks path none is no folder"),
    ],
)
def test_tasks_that_cannot_be_had_are_told(words, message, tmp_path):
    (tmp_path / "config.json").write_text("{}")  # which is read after the tasks
    done = run_forked(*SCRIPT, "--model", tmp_path, *words)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stderr
    assert "Traceback" not in done.stderr
