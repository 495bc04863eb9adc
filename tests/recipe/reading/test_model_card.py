"""What a model card says, and what hubs read in its first lines."""

from __future__ import annotations

import json

import pytest
import yaml

from recipe.base.model_shape import load_model_shape
from recipe.base.settings import RunConfig
from recipe.reading.model_card import TESTED, ExportFacts, model_card
from recipe.reading.origin import Origin, imported, origin_of, record_of
from tests.conftest import ROOT


@pytest.fixture
def card_of(tmp_path):
    """A function that makes a card, with other facts or sources."""
    run = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "no"),
            "model": "m",
            "tokenizer": "t",
            "data": {"tokens": "x", "seq_length": 32},
            "schedule": {"total_tokens": 8192, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 1024},
            "checkpoint": {"every_steps": 1},
        }
    )
    shape = load_model_shape(ROOT / "recipe" / "configs" / "models" / "tiny")

    def make(read={"en": 100.0, "no": 50.0}, source_by="lang", **changes):  # noqa: B006
        facts = {
            "model_type": "qwen3_moe",
            "class_name": "Qwen3MoeForCausalLM",
            "max_positions": 32,
            "origin": Origin(32),
            "eos_token": "<|end|>",
            "eos_token_id": 7,
        }
        train = {name: {"tokens": 1000, "documents": 3} for name in read}
        manifest = {"counts": {"totals": {"train": train}}, "results": {}, "parameters": {"source_by": source_by}}
        card = model_card(run, shape, manifest, ExportFacts(**{**facts, **changes}), step=4, tokens=1024, read=read)
        _, front, body = card.split("---\n", 2)
        return yaml.safe_load(front), body

    return make


def test_the_first_lines_are_what_a_hub_reads(card_of):
    front, _ = card_of()
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "model_name": "no",  # and not false, as YAML 1.1 has it
        "language": ["en", "no"],
        "tags": ["qwen3_moe", "moe"],
    }


@pytest.mark.parametrize(
    ("source_by", "read", "languages"),
    [
        ("both", {"en-web": 1.0, "en-books": 1.0, "zh-web": 1.0, "de-web": 0.0}, ["en", "zh"]),
        ("source", {"web": 1.0, "en": 1.0}, None),
        ("lang", {"unknown": 1.0}, None),
        ("lang", {"zh": 1.0, "unknown": 1.0}, ["zh"]),
    ],
)
def test_languages_are_those_that_were_read(source_by, read, languages, card_of):
    front, _ = card_of(read, source_by)
    assert front.get("language") == languages


def test_the_base_model_of_an_imported_run_is_named(card_of):
    front, body = card_of(origin=Origin(4096, "Qwen/Qwen3-30B-A3B"), max_positions=4096)
    assert front["base_model"] == "Qwen/Qwen3-30B-A3B"
    assert "The weights began as those of `Qwen/Qwen3-30B-A3B`." in body
    for local in ("my model: v2", "model", ".."):  # no names of a hub
        front, body = card_of(origin=Origin(4096, local), max_positions=4096)
        assert "base_model" not in front
        assert f"`{local}`" in body
    front, body = card_of()
    assert "base_model" not in front
    assert "The weights began" not in body


@pytest.mark.parametrize("architecture", ["glm4_moe", "qwen3_moe", "mixtral"])
def test_the_card_names_the_architecture_and_what_ends_documents(architecture, card_of):
    _, body = card_of(model_type=architecture)
    assert f"of the architecture `{architecture}`" in body
    assert f"tested with transformers from {TESTED} on" in body
    assert "Documents end with `<|end|>` (id 7)." in body
    assert "1,024 tokens in 4 steps" in body


def test_a_context_that_was_not_trained_is_told(card_of):
    _, body = card_of()
    assert "Trained on sequences of up to 32 tokens. " in body
    _, body = card_of(max_positions=4096)
    assert "32 tokens; config.json states 4,096 (`--max-positions`), beyond what the model was trained on" in body


def test_the_card_says_whether_there_is_a_chat_template(card_of):
    assert "There is no chat template, since this is a base model." in card_of()[1]
    body = card_of(has_chat_template=True)[1]
    assert "no chat template" not in body
    assert "names the roles in plain text" in body


def start_of(folder, seq_length, **began_from):
    folder.mkdir(parents=True)
    start = {"run_config": {"data": {"seq_length": seq_length}}}
    if began_from:
        start["began_from"] = began_from
    later = {"run_config": {"data": {"seq_length": seq_length}}}
    (folder / "attempts.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(later) + "\n")


def test_a_run_from_nothing_has_trained_its_own_context(tmp_path):
    start_of(tmp_path / "run", 4096)
    assert origin_of(tmp_path / "run") == Origin(4096)


@pytest.mark.parametrize(("positions", "context"), [(40960, 40960), (512, 4096)])
def test_an_imported_run_has_the_longer_context(positions, context, tmp_path):
    model = tmp_path / "models--Qwen--Qwen3-30B-A3B" / "snapshots" / "abc"
    start_of(tmp_path / "run", 4096, **{"from": str(model), **record_of(imported(model, positions))})
    assert origin_of(tmp_path / "run") == Origin(context, "Qwen/Qwen3-30B-A3B")


def test_a_branch_of_a_branch_of_an_imported_run_has_what_all_trained(tmp_path):
    start_of(tmp_path / "1", 4096, **{"from": "base", **record_of(imported(tmp_path / "base", 1024))})
    start_of(tmp_path / "2", 512, **{"from": "1", **record_of(origin_of(tmp_path / "1"))})
    start_of(tmp_path / "3", 2048, **{"from": "2", **record_of(origin_of(tmp_path / "2"))})
    assert origin_of(tmp_path / "3") == Origin(4096, "base")


def test_a_run_of_a_version_that_did_not_record_it_has_its_own_context(tmp_path):
    start_of(tmp_path / "run", 4096, **{"from": "exports/a", "upcycled": False})
    assert origin_of(tmp_path / "run") == Origin(4096, unrecorded="exports/a")
