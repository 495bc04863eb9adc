"""The data report shows what the manifests say, in one file, and runs nothing from documents."""

from __future__ import annotations

import re

import pytest

from data_prep.documents.reading import write_documents
from data_prep.report import main
from recipe.base.strict import load_json
from tests.data_prep.job_server import run_job


def test_every_stage_rule_and_source_is_in_one_file(prepared, tmp_path):
    target = tmp_path / "report.html"
    assert main([str(w) for w in (prepared.curated, prepared.deduped, prepared.tokens, "--output", target)]) == 0
    text = target.read_text(encoding="utf-8")
    curated, deduped = (
        load_json(folder / "manifest.json")["counts"] for folder in (prepared.curated, prepared.deduped)
    )
    for reason, number in {**curated["dropped"], **deduped["dropped"]}.items():
        assert re.search(rf"<td>{reason}</td><td>{number:,}</td>", text), reason
    assert f"{deduped['out']:,} out" in text
    assert text.count("<svg") == 1
    assert "synthetic-zh" in text
    assert not re.search(r"(src|href)=", text)  # nothing from elsewhere


def test_text_of_documents_is_never_markup(tmp_path):
    write_documents(tmp_path / "in.jsonl", [{"id": "<b>", "text": "<script>alert(1)</script> of the"}])
    assert (
        run_job("data_prep/curate.py", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out").returncode == 0
    )
    assert main([str(tmp_path / "out"), "--output", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(("output", "message"), [("report.html", "has no manifest.json"), (".", "is a folder")])
def test_mistakes_end_in_one_sentence(prepared, tmp_path, capsys, output, message):
    source = tmp_path if output != "." else prepared.curated
    assert main([str(source), "--output", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err
