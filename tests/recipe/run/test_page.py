"""docs/run_folder.md lists every file, event and field that the code writes, and none that it does not."""

from __future__ import annotations

import ast
import json
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recipe.base.settings import RunConfig
from recipe.run import records
from recipe.run.folder import RunFolder, record_start
from recipe.run.heartbeats import Heartbeat
from recipe.run.records import read_metrics
from recipe.safety.stragglers import StepTime, judged
from tests.conftest import ROOT
from tests.recipe.run.pages import PAGE, documented, undocumented
from tests.recipe.telemetry.test_routing_metrics import metrics_of

Tree = ast.Module


@cache
def trees() -> list[Tree]:
    files = (path for folder in ("recipe", "launch") for path in sorted((ROOT / folder).rglob("*.py")))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in files]


def constants(node: ast.AST | None) -> set[str]:
    """The strings that an expression can be."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def events_of(tree: Tree) -> set[str]:
    """The kinds of events that a module makes: as `"event": kind`, as `event=kind`, or through a function of its own."""
    kinds: set[str] = set()
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        for value in event_values(function):
            kinds |= constants(value)
            if isinstance(value, ast.Name) and value.id in names:
                kinds |= arguments_of(tree, function.name, names.index(value.id), len(names))
    return kinds


def event_values(function: ast.FunctionDef) -> list[ast.expr]:
    nodes = list(ast.walk(function))
    pairs = [pair for d in nodes if isinstance(d, ast.Dict) for pair in zip(d.keys, d.values, strict=True)]
    keywords = [
        word.value for call in nodes if isinstance(call, ast.Call) for word in call.keywords if word.arg == "event"
    ]
    return [value for key, value in pairs if constants(key) == {"event"}] + keywords


def arguments_of(tree: Tree, function: str, position: int, count: int) -> set[str]:
    """What a module gives a function of its own at a position; of `*values`, what its functions return as such tuples."""
    strings: set[str] = set()
    for name, arguments in map(called, (node for node in ast.walk(tree) if isinstance(node, ast.Call))):
        starred = next((i for i, argument in enumerate(arguments) if isinstance(argument, ast.Starred)), count)
        if name != function:
            continue
        if starred <= position:
            for elements in returned_tuples(tree, count - starred):
                strings |= constants(elements[position - starred])
        elif position < len(arguments):
            strings |= constants(arguments[position])
    return strings


def called(call: ast.Call) -> tuple[str, list[ast.expr]]:
    """Name and arguments of what is called; of `partial(function, ...)`, the function's."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    return called(ast.Call(call.args[0], call.args[1:], [])) if name == "partial" else (name, call.args)


def returned_tuples(tree: Tree, length: int) -> list[list[ast.expr]]:
    """Of the module's functions and of those that it imports."""
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    imported = [f for other in trees() for f in other.body if isinstance(f, ast.FunctionDef) and f.name in names]
    returns = [node for source in (tree, *imported) for node in ast.walk(source) if isinstance(node, ast.Return)]
    tuples = [node.elts for item in returns for node in ast.walk(item) if isinstance(node, ast.Tuple)]
    return [elements for elements in tuples if len(elements) == length]


def test_every_event_that_code_writes_is_on_the_page_and_no_other():
    written = set().union(*map(events_of, trees()))
    # As a literal, by the supervisor, through helpers, as a starred tuple, through functools.partial.
    assert {
        "started",
        "attempt_ended",
        "fired",
        "checkpoint_failed",
        "checkpoint_rewound",
        "checkpoint_damaged",
    } <= written
    assert documented("events.jsonl", "kind") == written


def test_every_file_that_has_a_name_in_the_code_is_on_the_page():
    names = {
        value
        for key, value in vars(records).items()
        if key.isupper() and key[0] != "_" and isinstance(value, str) and key != "VERSION_KEY"
    }
    assert "attempts.jsonl" in names
    page = PAGE.read_text(encoding="utf-8")
    assert {name for name in names if f"| `{name}" not in page and f", `{name}" not in page} == set()


def written_by_a_run_folder(path: Path) -> dict[str, dict[str, Any]]:
    """A record of each file that is written without training, by the section of the page."""
    folder = RunFolder(path, 1)
    run = RunConfig.model_validate(
        {
            "run_dir": path, "model": "m", "tokenizer": "t", "data": {"tokens": "d", "seq_length": 8}, "checkpoint": {"every_steps": 1},
            "schedule": {"total_tokens": 1, "peak_lr": 1e-3, "min_lr": 0, "warmup_tokens": 0},
        }
    )  # fmt: skip
    job = SimpleNamespace(run=run, config=run, ds_config={}, data=SimpleNamespace(facts=[{"seed": 0}]), identity={})
    record_start(job, began_from={"from": "a"}, kept={"budget_gib": 1.0}, kept_in_phases=[{"budget_gib": 1.0}])
    folder.event(event="finished", step=1, message="done")
    folder.record_failure("out_of_memory", "broke", rank=0, host="a")
    folder.order_rewind(1, 2, 0, 3, "why")
    folder.order_suspects(1, "why")
    files = {name: path / name for name in (records.ATTEMPTS, records.EVENTS, records.REWIND, records.SUSPECT)}
    files[records.FAILURES] = records.failure_path(path, 1, 0)
    texts = {title: file.read_text(encoding="utf-8") for title, file in files.items()}
    folder.order_left(1)
    texts[records.LEFT] = (path / records.LEFT).read_text(encoding="utf-8")
    return {title: json.loads(text) for title, text in texts.items()}


def test_the_fields_of_each_file_are_those_on_the_page(tmp_path):
    written = written_by_a_run_folder(tmp_path)
    written["heartbeats"] = asdict(Heartbeat(0, "a", 1, 1, 1, "forward", 1, 1))
    assert len(written) == 7
    for title, record in written.items():
        assert undocumented(title, record) == []
        assert documented(title) <= record.keys(), title


def test_metrics_that_are_made_without_training_are_on_the_page():
    """Those of a real line are compared where a run is watched (tests/recipe/telemetry/test_monitoring.py)."""
    (old,) = read_metrics(Path(__file__).parent / "version_1")[-1:]
    compared, _ = judged([StepTime("a", sent_bytes=Counter(all_reduce=1))], 1.2)
    assert undocumented(records.METRICS, {**old, **compared, "routing": metrics_of([[[5, 5, 5, 5]]])["routing"]}) == []


def test_a_field_that_is_not_on_the_page_is_noticed():
    assert undocumented(records.METRICS, {"step": 1, "phase_s": {"new": 1.0}, "new": 1, "routing": {"new": [1]}}) == [
        "new", "routing.new"
    ]  # fmt: skip
