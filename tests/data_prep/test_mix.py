"""The mixture is printed as the loader will read it."""

from __future__ import annotations

import re

import pytest
import yaml

from data_prep.core.command import CONFIGS
from data_prep.mix import main
from recipe.base.run_config.data import Mixture
from recipe.data.loader import BatchOrder
from recipe.data.mixture import CYCLE, PhaseData, plan_mixture
from recipe.data.token_folder import TokenFolder

ANNEAL = "anneal={share: 0.1, tier_weights: {1: 4, 2: 1, 3: 0.2}}"


def rows(output: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in output.splitlines()}


def test_tokens_of_a_folder_are_read_as_the_table_says(prepared, capsys):
    run_tokens = 3 * CYCLE * 32
    words = ["--tokens", prepared.tokens, "--run-tokens", run_tokens, "--seq-length", 32, "--set", "alpha=0.3"]
    assert main([str(w) for w in words]) == 0
    table = rows(capsys.readouterr().out)
    sources = TokenFolder(prepared.tokens).sources("train")
    sizes = {s.name: s.num_tokens for s in sources}
    (stretches,) = plan_mixture([PhaseData(Mixture(alpha=0.3), 32, run_tokens, "", sizes)])
    read = BatchOrder(sources, stretches, 32, 0).read(3 * CYCLE)
    for name, count in read.items():
        assert float(table[name][2]) == pytest.approx(count * 32, rel=0.01)


def test_the_shipped_sources_make_a_run_of_a_trillion_tokens(capsys, tmp_path):
    anneal = "anneal={share: 0.1, tier_weights: {1: 4, 2: 1, 3: 0.2}}"
    words = ["--sources", CONFIGS / "sources.yaml", "--run-tokens", "1e12", "--set", "max_epochs=4", "--set", anneal]
    assert main([str(w) for w in (*words, "--output", tmp_path / "mixture.yaml")]) == 0
    table = rows(capsys.readouterr().out)
    assert all(float(row[-1]) <= 4 for name, row in table.items() if re.match(r"[\d.]+$", row[-1]) and name != "tokens")
    assert float(table["wikipedia-en"][2].rstrip("%")) > float(table["wikipedia-en"][1].rstrip("%"))
    assert {"(en)", "(zh)"} <= set(table)
    written = Mixture(**yaml.safe_load((tmp_path / "mixture.yaml").read_text())["mixture"])
    assert written.anneal is not None
    assert written.tiers["wikipedia-zh"] == 1


@pytest.mark.parametrize(
    ("more", "repeated"),
    [
        ([], {"books-gutenberg", "wikipedia-en", "wikipedia-zh"}),
        (["--run-tokens", "1.5e11"], {"wikipedia-zh"}),
        (["--set", "max_epochs=4"], set()),
        (["--set", "max_epochs=4", "--set", ANNEAL], set()),
        (["--set", "max_epochs=6", "--set", ANNEAL], {"books-gutenberg", "wikipedia-en", "wikipedia-zh"}),
        (["--run-tokens", "1e10"], set()),
    ],
)
def test_sources_that_are_read_more_often_than_costs_little_are_named(more, repeated, tmp_path, capsys):
    sizes = {"books-gutenberg": 3e9, "fineweb-edu": 1.3e12, "wikipedia-en": 4.5e9, "wikipedia-zh": 9e8, "web-zh": 5e11}
    tiers = {"fineweb-edu": 2, "web-zh": 3}
    entries = {
        name: {
            "files": "x", "lang": name[-2:], "license": "CC0", "expected_tokens": size, "tier": tiers.get(name, 1),
            "weight": 2 if name.startswith("wikipedia") else 1,
        }
        for name, size in sizes.items()
    }  # fmt: skip
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": entries}))
    words = ["--sources", tmp_path / "sources.yaml", "--run-tokens", "7e11", *more]
    assert main([str(w) for w in words]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert {note.split()[1] for note in notes} == repeated
    assert all("beyond 4 epochs" in note and "arXiv 2305.16264" in note for note in notes)
    assert all("of them in the last phase" in note for note in notes) == (ANNEAL in more or not notes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "alhpa=1"], "unknown key 'alhpa'; did you mean 'alpha'?"),
        (["--set", "alpha"], "--set takes key=value"),
        (["--set", "max_epochs=0.1"], "max_epochs leaves"),
        (["--run-tokens", "-1"], "must be positive"),
        (["--run-tokens", "nan"], "must be positive"),
        (["--run-tokens", "inf"], "must be positive"),
        (["--config", "nowhere.yaml"], "does not exist"),
    ],
)
def test_mistakes_end_in_one_sentence(more, message, capsys):
    assert main(["--sources", str(CONFIGS / "sources.yaml"), "--run-tokens", "1e12", *more]) == 2
    assert message in capsys.readouterr().err


def test_a_mixture_is_not_written_over_a_folder_and_its_file_is_named(prepared, tmp_path, capsys):
    words = ["--tokens", str(prepared.tokens), "--run-tokens", "1e6", "--output"]
    assert main([*words, str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"--output {tmp_path} is a folder; name a YAML file" in printed.err
    assert printed.out == ""
    assert main([*words, str(tmp_path / "mixture.yaml")]) == 0
    assert f"mixture -> {tmp_path / 'mixture.yaml'}" in capsys.readouterr().out


def test_the_phases_of_a_run_config_are_planned_together(prepared, tmp_path, capsys):
    phases = [
        {"name": "base", "tokens": 1_000_000},
        {"name": "more-chinese", "tokens": 500_000, "data": {"mixture": {"weights": {"en": 1, "zh": 3}}}},
        {"name": "long", "data": {"seq_length": 64}},
    ]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"data": {"mixture": {"weights": {"en": 1, "zh": 1}}}, "phases": phases}))
    words = ["--tokens", prepared.tokens, "--seq-length", 32, "--config", config, "--run-tokens"]
    words = [str(word) for word in words]
    assert main([*words, "1750000"]) == 0
    table = rows(capsys.readouterr().out)
    assert table["source"][2:5] == ["base", "more-chinese", "long"]
    assert table["zh"][1:4] == ["50.00%", "75.00%", "50.00%"]
    assert table["tokens"][-4:] == ["1e+06", "5e+05", "2.5e+05", "1.75e+06"]
    assert float(table["zh"][4]) == pytest.approx(1e6, rel=0.01)
    assert main([*words, "1000000"]) == 2
    assert "the phases have 1,500,000 tokens, which do not make --run-tokens 1,000,000" in capsys.readouterr().err
    assert main([*words, "1750000", "--output", str(tmp_path / "mixture.yaml")]) == 2
    assert "has phases; leave it out" in capsys.readouterr().err


def test_a_phase_of_another_folder_has_lines_of_its_own(prepared, tmp_path, capsys):
    packed = tmp_path / "packed"
    packed.symlink_to(prepared.tokens)
    phases = [
        {"name": "base", "tokens": 1_000_000},
        {"name": "long", "data": {"tokens": str(packed), "seq_length": 64}},
    ]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"phases": phases}))
    words = ["--seq-length", "32", "--config", str(config), "--run-tokens", "1.5e6"]
    assert main(["--tokens", str(prepared.tokens), *words]) == 0
    table = rows(capsys.readouterr().out)
    assert table[f"{prepared.tokens.name}/zh"][2] == table["packed/zh"][1] == "0.00%"
    assert main(["--sources", str(CONFIGS / "sources.yaml"), *words]) == 2
    assert "phase long has data.tokens of its own, which --sources cannot stand for" in capsys.readouterr().err
