"""Bits per byte of gold answers and gaps between languages, of small tasks scored by a model that can be computed by hand."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lm_eval.tasks import TaskManager

from recipe.base.errors import UserError
from recipe.base.settings import Downstream
from recipe.evaluation.downstream import harness
from recipe.evaluation.downstream.gold import GENERATED, LETTERS, SEVERAL, Items, scored_text
from recipe.evaluation.downstream.harness import CountingLM, known_tasks, load_tasks
from recipe.evaluation.downstream.in_training import TasksInTraining, tasks_in_training
from recipe.evaluation.downstream.language_pairs import PAIRS, Member, gaps, shipped
from recipe.evaluation.downstream.scoring import score_tasks
from tests.conftest import ROOT

ROWS = {
    "en": [
        {"id": 1, "start": "The sea is ", "endings": ["deep", "a shoe"], "own": 0, "letter": "A", "both": [0, 1]},
        {"id": 2, "start": "Birds can", "endings": [" read", " fly away"], "own": 1, "letter": "B", "both": [0, 1]},
        {"id": 3, "start": "Ice is", "endings": [" hot", " cold"], "own": 1, "letter": "B", "both": [0, 1]},
    ],
    "zh": [
        {"id": 3, "start": "冰是", "endings": ["热的", "冷的"], "own": 1, "letter": "B", "both": [0, 1]},
        {"id": 1, "start": "海很", "endings": ["深", "鞋子"], "own": 0, "letter": "A", "both": [0, 1]},
        {"id": 4, "start": "鱼会", "endings": ["游泳", "读书"], "own": 0, "letter": "A", "both": [0, 1]},
    ],
}


class Letters:
    """A tokenizer of a token a letter."""

    eos_token_id = bos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]


class NatsByLetter(CountingLM):
    """A letter costs a hundredth of its code in nats."""

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        super()._loglikelihood_tokens(requests, **kwargs)
        return [(-nats("".join(map(chr, asked))), False) for _, _, asked in requests]


def nats(text: str) -> float:
    return sum(map(ord, text)) / 100


def write_task(folder: Path, name: str, language: str, metadata: dict[str, Any], **settings: Any) -> None:
    task = {
        "task": f"{name}_{language}", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{language}.jsonl")}},
        "output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_choice": "endings", "doc_to_target": "own",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}], "metadata": {"version": 1.0, **metadata}, **settings,
    }  # fmt: skip
    (folder / f"{name}_{language}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tasks whose gold answers are texts, letters, several or generated; groups within a group."""
    path = tmp_path_factory.mktemp("tasks")
    for language, rows in ROWS.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (path / f"{language}.jsonl").write_text(text, encoding="utf-8")
        write_task(path, "endings", language, {"pair": "endings", "language": language, "key": ["id"]})
        write_task(path, "numbered", language, {"pair": "numbered", "language": language})
        group = {"group": f"inner_{language}", "task": [f"endings_{language}", f"numbered_{language}"]}
        (path / f"inner_{language}.yaml").write_text(yaml.safe_dump(group))
    write_task(path, "letters", "en", {}, doc_to_choice=["A", "B"], doc_to_target="letter")
    write_task(path, "several", "en", {}, doc_to_target="both")
    write_task(path, "last", "en", {}, output_type="loglikelihood", doc_to_target="{{endings[own]}}")
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{start}}"}
    write_task(path, "texts", "en", {}, **rolling, metric_list=[{"metric": "bits_per_byte"}])
    write_task(path, "written", "en", {}, output_type="generate_until", metric_list=[{"metric": "exact_match"}])
    outer = {"group": "outer", "task": ["inner_en", "inner_zh", "letters_en"]}
    (path / "outer.yaml").write_text(yaml.safe_dump(outer))
    return path


@pytest.fixture(autouse=True)
def _only_tasks_of_the_test(monkeypatch, request):
    """The harness reads thousands of files to know its own."""
    if "shipped_tasks" not in request.fixturenames:
        monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))


@pytest.fixture
def shipped_tasks() -> None:
    """For a test that needs the harness's own tasks."""


def scored(folder: Path, *names: str, limit: int | None = None) -> Any:
    return score_tasks(NatsByLetter(Letters(), 200), load_tasks(known_tasks(names, [folder]), names), limit=limit)


def plain(language: str, ids: tuple[int, ...] = (1, 2, 3, 4)) -> float:
    """-sum log2 p(gold) / bytes(gold), with what the harness moves from the context's end to the answer."""
    texts = [
        (" " if row["start"].endswith(" ") else "") + row["endings"][row["own"]]
        for row in ROWS[language]
        if row["id"] in ids
    ]
    return sum(map(nats, texts)) / math.log(2) / sum(len(text.encode()) for text in texts)


def test_bits_per_byte_are_those_of_the_gold_answers(folder):
    found = scored(folder, "outer", "last_en", "texts_en")
    assert found.tasks["endings_en"]["bits_per_byte"]["value"] == pytest.approx(plain("en"))
    assert found.tasks["endings_zh"]["bits_per_byte"]["value"] == pytest.approx(plain("zh"))
    assert found.tasks["last_en"]["bits_per_byte"]["value"] == pytest.approx(plain("en"))
    assert found.tasks["endings_en"]["acc"]["value"] == pytest.approx(1 / 3)  # the shortest ending is the likeliest
    starts = "".join(row["start"] for row in ROWS["en"])
    texts = found.tasks["texts_en"]["bits_per_byte"]
    assert texts["value"] == pytest.approx(nats(starts) / math.log(2) / len(starts.encode()))
    assert texts["stderr"] > 0
    whole = (plain("en") + plain("zh")) / 2  # of the groups in the group, whose letters have none
    assert found.tasks["outer"]["bits_per_byte"]["value"] == pytest.approx(whole)
    assert found.without_gold == {"letters_en": LETTERS}
    assert found.tags()["eval/outer/bits_per_byte"] == found.tasks["outer"]["bits_per_byte"]["value"]
    assert found.tags()["eval/outer/bits_per_byte_stderr"] == found.tasks["outer"]["bits_per_byte"]["stderr"]


def test_tasks_without_a_gold_text_say_why(folder):
    assert scored(folder, "several_en").without_gold == {"several_en": SEVERAL}
    assert GENERATED.startswith("its answers are generated")


def test_a_gap_is_of_the_same_questions(folder):
    gaps = scored(folder, "outer").gaps
    by_key, by_number = gaps["endings en-zh"], gaps["numbered en-zh"]
    assert by_key["languages"] == ["en", "zh"]
    assert by_key["paired"] == 2  # of three items each, the ids 1 and 3
    both = (1, 3)
    assert by_key["metrics"]["bits_per_byte"]["value"] == pytest.approx(plain("en", both) - plain("zh", both))
    answers = [(nats(" deep") + nats(" cold")), (nats("深") + nats("冷的"))]
    assert by_key["metrics"]["bits_per_answer"]["value"] == pytest.approx((answers[0] - answers[1]) / 2 / math.log(2))
    assert by_key["metrics"]["bits_per_byte"]["stderr"] > 0
    # Numbers say nothing here: the right choices differ.
    assert by_number["paired"] == 0
    assert by_number["metrics"]["bits_per_byte"]["value"] == pytest.approx(plain("en") - plain("zh"))
    assert "bits_per_answer" not in by_number["metrics"]


def test_all_items_of_a_key_that_several_have_are_in_a_gap():
    members = {name: Member("pair", name, ("passage",)) for name in ("en", "zh")}
    items = {
        "en": Items(("one", "one", "two"), correct_N=np.array([1.0, 1.0, 0.0])),
        "zh": Items(("two", "one", "one", "one"), correct_N=np.array([1.0, 0.0, 1.0, 1.0])),
    }
    gap = gaps(members, items)["pair en-zh"]
    assert gap["paired"] == 3  # the third of `one` has no partner
    assert gap["metrics"]["acc"]["value"] == pytest.approx(2 / 3 - 2 / 3)


@pytest.mark.parametrize(
    "key", [["number"], ["id", "hint"]], ids=["a field of no document", "a field of some documents"]
)
def test_a_pair_whose_key_is_missing_is_refused_before_it_is_scored(key, tmp_path):
    for language, rows in ROWS.items():
        rows = [{**row, "hint": "yes" if number else None} for number, row in enumerate(rows)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{language}.jsonl").write_text(text, encoding="utf-8")
        write_task(tmp_path, "endings", language, {"pair": "ends", "language": language, "key": key})
    names = ("endings_en", "endings_zh")
    tasks = load_tasks(known_tasks(names, [tmp_path]), names)
    model = NatsByLetter(Letters(), 200)
    with pytest.raises(
        UserError, match=f"a document of task endings_en has no {key[-1]}, which the key of pair ends names"
    ):
        score_tasks(model, tasks, limit=None)
    assert model.requests == 0


def test_scores_can_be_had_again_and_of_the_first_items(folder):
    assert scored(folder, "endings_en").tasks == scored(folder, "endings_en").tasks
    assert scored(folder, "endings_en", limit=1).tasks["endings_en"]["bits_per_byte"]["stderr"] is None


def test_spaces_at_a_contexts_end_are_scored_with_the_answer():
    assert scored_text(("a: ", "b")) == " b"
    assert scored_text(("a:", " b")) == " b"
    assert scored_text(("", "b")) == "b"
    assert scored_text(("text",)) == "text"


def test_the_cost_is_what_a_model_would_read(folder):
    names = ("endings_en",)
    settings = Downstream(every_steps=5, tasks=names, data=folder)
    tasks = load_tasks(known_tasks(names, [folder]), names)
    cost = TasksInTraining(settings, tasks, Letters(), max_length=200).cost
    read = [row["start"] + ending for row in ROWS["en"] for ending in row["endings"]]
    assert (cost.tasks, cost.requests, cost.tokens) == (1, 6, sum(len(text) - 1 for text in read))
    assert f"{cost.tokens / 500:.2%} of the tokens that are trained on" in cost.describe(5, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("endings_e",)}, "unknown task 'endings_e'; did you mean 'endings_en'?"),
        ({"tasks": ("written_en",)}, "written_en generate text, which needs the exported model; leave them out"),
        ({"tasks": ("endings_en",), "max_length": 3}, "an answer of 9 tokens, and the model was trained on sequences of 3"),
        ({"tasks": ("endings_zh",), "data": "none"}, "data none is no folder; write it with"),
        ({"tasks": ("last_en",)}, "holds no dataset for task last_en; fetch it with --save-data"),
        ({"tasks_path": ("none",)}, "tasks path none is no folder"),
    ],
    ids=["unknown", "generates", "too long", "no folder", "no dataset", "no tasks"],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_told_before_the_start(change, message, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.huggingface.tokenizer_folder.load_tokenizer", lambda _: Letters())
    for language in ROWS:  # as --save-data leaves them
        for task in ("endings", "written"):
            (tmp_path / f"json__{task}_{language}").mkdir()
            (tmp_path / f"json__{task}_{language}" / "test.jsonl").write_bytes(
                (folder / f"{language}.jsonl").read_bytes()
            )
    given = {"every_steps": 1, "tasks": ("endings_en",), "data": tmp_path, "tasks_path": (folder,), **change}
    max_length = given.pop("max_length", 200)
    with pytest.raises(UserError, match=f"^evaluation.downstream.*{message}".replace("?", r"\?")):
        tasks_in_training(Downstream.model_validate(given), Path("tokenizer"), max_length)


def test_the_table_of_pairs_names_tasks_of_the_harness_and_ours(shipped_tasks):
    known_tasks(list(shipped()), [ROOT / "recipe/configs/downstream"])
    assert {member.language for member in shipped().values()} >= {"en", "zh"}
    assert PAIRS.is_file()
