"""The data report shows what the manifests say, in one file, and runs nothing from documents."""

from __future__ import annotations

import html
import json
import re

import pytest

from data_prep.core.stage import VERSION
from data_prep.documents.reading import write_documents
from data_prep.report import main, render
from data_prep.reporting.stages import read_stage
from recipe.base.files import sha256
from recipe.base.strict import load_json
from tests.data_prep.job_server import run_job
from tests.pages import DESKTOP, PHONE, measured


def finished(folder, stage, counts, *, parent=None, results=None, parameters=None):
    """A folder with the manifest of a finished stage."""
    folder.mkdir(parents=True)
    above = parent and {"stage": "any", "manifest_sha256": sha256(parent / "manifest.json")}
    manifest = {
        "version": VERSION,
        "stage": stage,
        "parent": above,
        "counts": counts,
        "results": results or {},
        "parameters": parameters,
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, "parameters": parameters or {}}))
    return folder


def grouped(groups):
    """Counts of a stage that filters, from (language, source) -> documents in and out; each has 100 bytes."""
    counts = {"in": 0, "out": 0, "dropped": {}, "bytes_dropped": {}, "groups": {}}
    for (lang, source), (came, out) in groups.items():
        gone = {"dropped": {"words_low": came - out}, "bytes_dropped": {"words_low": 100 * (came - out)}}
        sizes = {"bytes_in": 100 * came, "bytes_out": 100 * out}
        counts["groups"].setdefault(lang, {})[source] = {
            "in": came,
            "out": out,
            **sizes,
            **(gone if came > out else {}),
        }
        counts["groups"][lang][source] = {"dropped": {}, "bytes_dropped": {}, **counts["groups"][lang][source]}
        counts["in"] += came
        counts["out"] += out
        counts["dropped"]["words_low"] = counts["dropped"].get("words_low", 0) + came - out
    return counts


def tokens(series, unit="text_bytes"):
    """Counts of a stage that writes tokens, from series -> (documents, bytes, tokens, tokens held out)."""
    totals = {"train": {}, "held_out": {}}
    for name, (documents, size, train, held_out) in series.items():
        totals["train"][name] = {"documents": documents, "text_bytes": size, "tokens": train}
        totals["held_out"][name] = {"documents": 1, "text_bytes": 100, "tokens": held_out}
    whole = sum(n["documents"] for split in totals.values() for n in split.values())
    return {"in": whole, "out": whole, "totals": totals}


def drawings(text, kind="wide"):
    """The texts of each drawing of a flow, in their order."""
    found = re.findall(rf'<svg class="flow {kind}".*?</svg>', text, re.S)
    return [[html.unescape(line) for line in re.findall(r"<text[^>]*>(.*?)</text>", drawing)] for drawing in found]


def words_of(text):
    """What a page says, without its elements."""
    shown = re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", shown).split())


def rows(text):
    """The cells of all table rows."""
    table_rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    return [[re.sub(r"<[^>]*>|\s+", " ", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)] for row in table_rows]  # fmt: skip


LONG = "a-language-with-a-long-name"


def with_large_numbers(folder):
    """The folders of stages with trillions of tokens and with more languages than colours."""
    groups = {(f"l{number:02d}", "web"): (100 + number, 60) for number in range(20)}
    curated = finished(folder / "curated", "curate", grouped({**groups, ("en", "web"): (123_456_789_012, 60_456_789_012), (LONG, "web"): (23_456_789_012, 20_456_789_012)}))  # fmt: skip
    series = {"en": (60_456_789_012, 6_000_000_000_000, 12_000_000_000_000, 30_000_000_000), LONG: (20_456_789_012, 5_000_000_000_000, 2_000_000_000_000, 30_000_000_000)}  # fmt: skip
    series |= {f"l{number:02d}": (7, 6000, 120, 30) for number in range(20)}
    return [curated, finished(folder / "tokens", "tokenize", tokens(series), parent=curated, parameters={"source_by": "lang"})]  # fmt: skip


def test_every_stage_rule_and_source_is_in_one_file_that_fits_phones_and_desks(prepared, tmp_path):
    target = tmp_path / "report.html"
    stages = (prepared.curated, prepared.deduped, prepared.tokenizer, prepared.tokens)
    assert main([*(str(stage) for stage in stages), "--output", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    curated, deduped = (
        load_json(folder / "manifest.json")["counts"] for folder in (prepared.curated, prepared.deduped)
    )
    numbers = {row[0].split()[-1]: row[1] for row in rows(text) if len(row) > 1}
    for reason, number in {**curated["dropped"], **deduped["dropped"]}.items():
        assert numbers[reason] == f"{number:,}"
    assert f"{deduped['out']:,} out" in text
    assert (
        "fewer than 50 (en) or 80 (zh) words (other limits for bilingual, code, dialogue, verse) <code>words_low</code>"
        in text
    )
    assert "synthetic-zh" in text
    assert not re.search(r"(src|href)=", text)  # nothing from elsewhere
    large = tmp_path / "large.html"
    large.write_text(render(with_large_numbers(tmp_path)), encoding="utf-8")
    assert "other languages: 1,200 training" in large.read_text(encoding="utf-8")  # those beyond the colours
    assert [problems for _, _, problems in measured([target, large], PHONE, DESKTOP)] == [[], [], [], []]


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_every_stage_is_drawn_with_what_comes_in_and_what_goes(tmp_path, kind):
    curated = finished(tmp_path / "curated", "curate", grouped({("en", "web"): (10, 6), ("zh", "web"): (5, 5)}),
                       parameters={"languages": {"en": {"rules": {"words": {"min": 7}}}}})  # fmt: skip
    tokenizer = finished(tmp_path / "tok", "train_tokenizer", {"in": 11, "out": 11, "bytes": {"en": 600, "zh": 500}},
                         parent=curated, results={"vocab_size": 512, "requested": 512})  # fmt: skip
    encoded = tokens({"en": (5, 500, 120, 30), "zh": (4, 400, 90, 20)})
    tokenized = finished(tmp_path / "tokens", "tokenize", encoded, parent=curated, parameters={"source_by": "lang"})
    ((*lines,),) = drawings(render([tokenized, curated, tokenizer]), kind)  # each after the one that it read
    names = ["in", "curate", "train_tokenizer", "tokenize"]
    assert [line for line in lines if line in names] == names
    drawn = " ".join(lines).replace("\N{NO-BREAK SPACE}", " ")
    for label in ("in 15 documents 1.5 kB", "curate 11 documents 1.1 kB", "− 4 documents − 400 bytes (26.7%)",
                  "vocabulary 512", "1.1 kB → 260 tokens", "en: 120 training", "30 held out"):  # fmt: skip
        assert label in drawn
    assert "most (4): fewer than 7 words" in drawn


def test_sources_that_were_brought_in_apart_are_one_column_and_imported_shards_a_flow_of_their_own(tmp_path):
    web = finished(tmp_path / "web", "ingest", grouped({("en", "web"): (10, 10)}))
    books = finished(tmp_path / "books", "ingest", grouped({("zh", "books"): (3, 3)}))
    shards = finished(tmp_path / "shards", "import_shards", tokens({"wiki": (5, 0, 120, 30)}))
    first, second = drawings(render([web, books, shards]))
    assert first[:6] == ["in", "13 documents", "1.3\N{NO-BREAK SPACE}kB", "ingest", "13 documents", "1.3\N{NO-BREAK SPACE}kB"]  # fmt: skip
    assert second[:3] == ["in", "6 documents", "150 tokens"]
    assert "wiki: 120 training" in second


def test_the_table_begins_with_what_came_in_and_has_no_rows_of_zeros(tmp_path):
    groups = {("en", "web"): (10, 6), ("ru", "web"): (1, 0), ("fr", "web"): (2, 0), ("zh", "none"): (0, 0)}
    masked = {"en": {"email": 0, "phone": 3}, "zh": {"email": 0}}
    curated = finished(tmp_path / "curated", "curate", grouped(groups), results={"masked": masked})
    deduped = finished(tmp_path / "deduped", "dedup", {**grouped({("en", "web"): (6, 6)}), "clusters_by_size": {}}, parent=curated)  # fmt: skip
    text = render([curated, deduped])
    table = [row[:3] + row[4:5] + row[6:7] for row in rows(text) if row[1:2] == ["web"]]
    assert table == [["en", "web", "10", "6", "6"], ["other languages", "web", "3", "–", "–"]]
    assert "none" not in [row[1] for row in rows(text) if len(row) > 1]
    assert "e-mail" not in text
    assert "phone numbers" in text
    assert "Personal data masked, zh" not in text
    assert "clusters of duplicates" not in text
    assert text.count("Why documents were dropped") == 1


def test_the_page_begins_with_the_numbers_that_matter(prepared):
    text = render([prepared.curated, prepared.deduped, prepared.tokens])
    begins = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text.split("<h2>")[0].split("<body>")[1]))
    curated, deduped, tokenized = (
        load_json(folder / "manifest.json")["counts"]
        for folder in (prepared.curated, prepared.deduped, prepared.tokens)
    )
    train = tokenized["totals"]["train"]
    for part in (
        f"documents {curated['in']:,} → {deduped['out']:,}",
        f"tokens, training {sum(n['tokens'] for n in train.values()):,} en {train['en']['tokens']:,}",
        "tokens, held out",
        f"duplicates removed {sum(deduped['dropped'].values()):,}",
        f"UTC, in {prepared.curated.parent}",
    ):
        assert part in begins


def test_text_of_documents_is_never_markup(tmp_path):
    write_documents(tmp_path / "in.jsonl", [{"id": "<b>", "text": "<script>alert(1)</script> of the"}])
    assert (
        run_job("data_prep/curate.py", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out").returncode == 0
    )
    assert main([str(tmp_path / "out"), "--output", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_labels_of_documents_are_never_markup(tmp_path):
    hostile = "<script>alert(1)</script>"
    read = finished(tmp_path / "in", "ingest", grouped({(hostile, hostile): (300, 200)}))
    shards = finished(tmp_path / "tokens", "tokenize", tokens({hostile: (5, 500, 120, 30)}), parent=read)
    assert "<script>" not in render([read, shards])


@pytest.mark.parametrize(("output", "message"), [("report.html", "has no manifest.json"), (".", "is a folder")])
def test_mistakes_end_in_one_sentence(prepared, tmp_path, capsys, output, message):
    source = tmp_path if output != "." else prepared.curated
    assert main([str(source), "--output", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_finished_stage_is_named_with_what_to_do(tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "stage.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[]")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "manifest.json").write_text(json.dumps({"version": 2, "stage": "curate", "counts": {}, "results": {}}))  # fmt: skip
    for folder, message in (("none", "does not exist"), ("begun", "run that job again"), ("other", "is not the manifest"), ("older", f"its format is 2, not {VERSION}")):  # fmt: skip
        assert main([str(tmp_path / folder), "--output", str(tmp_path / "report.html")]) == 2
        assert message in capsys.readouterr().err


def test_stages_that_have_not_read_one_another_are_flows_of_their_own(tmp_path):
    one_of_many = finished(tmp_path / "wiki", "ingest", grouped({("en", "wiki"): (10, 10)}))
    curated = finished(tmp_path / "curated", "curate", grouped({("en", "web"): (900, 600)}))
    deduped = finished(tmp_path / "deduped", "dedup", grouped({("en", "web"): (600, 300)}), parent=curated)
    text = render([one_of_many, curated, deduped])
    first, second = drawings(text)
    assert "curate" not in first
    assert [name for name in second if name in ("in", "curate", "dedup")] == ["in", "curate", "dedup"]
    assert "900 → 300" in text
    assert "33.3% kept" in text


def test_a_folder_that_is_given_twice_counts_once(tmp_path):
    curated = finished(tmp_path / "curated", "curate", grouped({("en", "web"): (10, 6)}))
    assert "10 → 6" in render([curated, tmp_path / "curated" / ".." / "curated"])


def test_what_a_stage_has_not_read_is_not_drawn_as_dropped(tmp_path):
    web = finished(tmp_path / "web", "ingest", grouped({("en", "web"): (10, 10)}))
    books = finished(tmp_path / "books", "ingest", grouped({("zh", "books"): (3, 3)}))
    curated = finished(tmp_path / "curated", "curate", grouped({("en", "web"): (10, 8)}), parent=web)
    _, second = drawings(render([web, books, curated]))
    assert second[:3] == ["in", "10 documents", "1.0\N{NO-BREAK SPACE}kB"]
    assert "− 200\N{NO-BREAK SPACE}bytes (20.0%)" in second


def test_a_series_of_shards_is_of_the_language_that_its_name_begins_with(tmp_path):
    groups = {("zh", "web"): (5, 4), ("zh-Hans", "web"): (10, 8), ("en", "web"): (5, 5)}
    curated = finished(tmp_path / "curated", "curate", grouped(groups))
    series = {"zh-Hans-web": (7, 500, 120, 30), "zh": (4, 200, 50, 10), "en-web": (4, 200, 70, 10)}
    encoded = finished(tmp_path / "tokens", "tokenize", tokens(series), parent=curated, parameters={"source_by": "both"})  # fmt: skip
    ((*lines,),) = drawings(render([curated, encoded]))
    assert [line for line in lines if line.endswith("training")] == ["en: 70 training", "zh: 50 training", "zh-Hans: 120 training"]  # fmt: skip


def test_samples_are_read_until_every_reason_has_enough(tmp_path):
    counts = {"in": 9, "out": 0, "dropped": {"words_low": 5, "empty": 1}}
    curated = finished(tmp_path / "curated", "curate", counts)
    dropped = [{"id": str(n), "text": f"t{n}", "dropped": "empty" if n == 4 else "words_low"} for n in range(6)]
    write_documents(curated / "dropped" / "00000.jsonl", dropped)
    (curated / "dropped" / "00001.jsonl.gz").write_bytes(b"no gzip, and not read")
    samples = read_stage(curated).samples()
    assert {reason: [sample["id"] for sample in found] for reason, found in samples.items()} == {"words_low": ["0", "1", "2"], "empty": ["4"]}  # fmt: skip


def test_samples_of_what_stays_are_by_language_kind_and_whether_they_are_bilingual(tmp_path):
    curated = finished(
        tmp_path / "curated", "curate", {"in": 9, "out": 6}, parameters={"languages": {"en": {}, "zh": {}}}
    )
    labels = [{}, {}, {"kind": "verse"}, {}, {"bilingual": "glossary"}, {}]
    documents = [{"id": str(n), "text": f"words {n}", "lang": "zh", **more} for n, more in enumerate(labels)]
    write_documents(curated / "documents" / "00000.jsonl", documents)
    samples = read_stage(curated).kept_samples()
    assert {name: [sample["id"] for sample in found] for name, found in samples.items()} == {
        "zh": ["0", "1", "3"], "zh, bilingual (glossary)": ["4"], "zh, verse": ["2"],
    }  # fmt: skip
    page = render([curated])
    assert "zh, bilingual (glossary)" in page
    assert "words 4" in page
    deduped = finished(tmp_path / "deduped", "dedup", {"in": 6, "out": 6}, parent=curated)
    write_documents(deduped / "documents" / "00000.jsonl", documents)
    assert read_stage(deduped).kept_samples() == {}


def test_kinds_of_text_bilingual_documents_widened_marks_and_warnings_are_shown(tmp_path):
    results = {
        "kinds": {"zh": {"prose": 7, "verse": 12}, "en": {"prose": 4}},
        "bilingual": {"zh": {"glossary": {"documents": 3, "bytes": 900}, "parallel": {"documents": 21, "bytes": 9000}}},
        "marks_widened": {"zh": 1234, "en": 0},
        "warnings": ["languages.de: 2 of 414 documents are kept"],
    }
    page = words_of(render([finished(tmp_path / "curated", "curate", {"in": 40, "out": 30}, results=results)]))
    assert "documents in two languages 24 parallel 21 glossary 3" in page
    assert "Kinds of text that stay, zh kind documents verse 12 prose 7" in page
    assert "Kinds of text that stay, en" not in page
    assert "Documents in two languages, mostly zh how documents parallel 21 glossary 3" in page
    assert "1,234 half-width marks after zh text became full-width." in page
    assert "Warning: languages.de: 2 of 414 documents are kept" in page
    cuts = {
        "repeated_spans": {"spans": 118, "characters": 31548, "documents": 40},
        "repeated_lines": {"lines": 1, "documents": 1},
    }
    page = words_of(render([finished(tmp_path / "deduped", "dedup", {"in": 40, "out": 30, **cuts})]))
    assert "118 repeated spans cut from 40 documents. 1 repeated line cut from 1 document." in page
