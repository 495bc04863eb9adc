"""Sources become documents with their labels, from local files and through `datasets`."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.core.command import CONFIGS
from data_prep.documents.reading import write_documents
from data_prep.ingest import load_sources, main
from recipe.base.errors import ConfigError
from recipe.base.strict import load_json
from tests.conftest import documents_in

LABELS = {"lang": "en", "license": "CC0-1.0", "expected_tokens": 1000.0, "tier": 1}


def run(tmp_path, source, *more):
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": {"mine": {**LABELS, **source}}}))
    words = ["--config", tmp_path / "sources.yaml", "--source", "mine", "--output", tmp_path / "out", "--workers", 1]
    return main([str(word) for word in (*words, *more)])


def test_local_files_by_glob_with_other_field_names(tmp_path):
    for name in ("a", "b"):
        write_documents(tmp_path / "raw" / f"{name}.jsonl.gz", [{"doc": name, "content": f"text {name}", "url": "u"}])
    source = {"files": str(tmp_path / "raw" / "*.jsonl.gz"), "fields": {"id": "doc", "text": "content"}}
    assert run(tmp_path, source) == 0
    assert documents_in(tmp_path / "out") == [
        {"id": f"mine/{n}", "text": f"text {n}", "url": "u", "lang": "en", "source": "mine", "license": "CC0-1.0"}
        for n in ("a", "b")
    ]
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["groups"]["en"]["mine"]["in"] == 2


def test_a_path_is_a_path_whatever_characters_it_has(tmp_path):
    for folder in ("d[1]", "d1"):
        write_documents(tmp_path / folder / "a.jsonl", [{"text": folder}])
    for files in ("d[1]", "d[1]/a.jsonl"):
        assert run(tmp_path, {"files": str(tmp_path / files)}) == 0
        assert [(d["id"], d["text"]) for d in documents_in(tmp_path / "out")] == [("mine/a.jsonl/0", "d[1]")]
        shutil.rmtree(tmp_path / "out")


def test_messages_name_the_files_of_the_source(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for files, message in (("empty", "files /"), ("loop", "leads to itself"), ("gone", "match nothing")):
        assert run(tmp_path, {"files": str(tmp_path / files)}) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--input" not in error


def test_a_dataset_streamed_with_and_without_ids(tmp_path):
    lines = [json.dumps({"body": f"text {i}", "extra": i}) for i in range(5)]
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, json.dumps({"body": " ", "extra": 5})]) + "\n")
    hub = {"path": "json", "data_files": str(tmp_path / "data.jsonl")}
    assert run(tmp_path, {"hub": hub, "fields": {"text": "body"}}) == 0
    documents = documents_in(tmp_path / "out")
    assert [d["text"] for d in documents] == [f"text {i}" for i in range(5)]
    assert documents[3] == {
        "id": "mine/00000/000000003", "text": "text 3", "lang": "en", "source": "mine", "license": "CC0-1.0",
    }  # fmt: skip
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["bad_records"] == 1


def test_a_trial_takes_a_few_documents_of_each_part(tmp_path):
    write_documents(tmp_path / "x.jsonl", [{"id": str(i), "text": "t"} for i in range(50)])
    assert run(tmp_path, {"files": str(tmp_path / "x.jsonl")}, "--limit", 3) == 0
    assert len(documents_in(tmp_path / "out")) == 3


PAIRS = [{"pair": {"en": f"Sentence {i}.", "zh": f"第{i}句。"}} for i in range(5)]
AS_PAIRS = {
    "lang": "mul",
    "bilingual": "parallel",
    "records": 2,
    "fields": {"text": ["pair.en", "pair.zh"], "id": None},
}


def test_pairs_of_sentences_become_bilingual_documents_of_several(tmp_path):
    bad = [{"pair": {"en": "Alone.", "zh": None}}, {"pair": {"en": "Alone.", "zh": " "}}, {"pair": {"en": "Alone."}}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*PAIRS[:1], *bad, *PAIRS[1:]])) + "\n")
    for where in (
        {"files": str(tmp_path / "x.jsonl")},
        {"hub": {"path": "json", "data_files": str(tmp_path / "x.jsonl")}},
    ):
        assert run(tmp_path, {**AS_PAIRS, **where}) == 0
        documents = documents_in(tmp_path / "out")
        assert [d["text"] for d in documents] == [
            "Sentence 0.\n第0句。\n\nSentence 1.\n第1句。",
            "Sentence 2.\n第2句。\n\nSentence 3.\n第3句。",
            "Sentence 4.\n第4句。",
        ]
        assert {(d["lang"], d["bilingual"], "pair" in d and bool(d["pair"])) for d in documents} == {
            ("mul", "parallel", False)
        }
        assert len({d["id"] for d in documents}) == 3
        assert load_json(tmp_path / "out" / "manifest.json")["counts"]["bad_records"] == 3
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "problem"), [([], "at least 1 item"), (None, "must not be null")], ids=["none", "null"]
)
def test_a_text_is_of_some_field(text, problem, tmp_path, capsys):
    assert run(tmp_path, {**AS_PAIRS, "files": "x.jsonl", "fields": {"text": text, "id": None}}) == 2
    assert problem in capsys.readouterr().err


def test_a_field_to_join_that_no_record_has_is_named(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    source = {**AS_PAIRS, "files": str(tmp_path / "x.jsonl"), "fields": {"text": ["pair.en", "pair.de"], "id": None}}
    assert run(tmp_path, source) != 0
    reasons = "".join(path.read_text() for path in (tmp_path / "out").rglob("bad_records/*") if path.is_file())
    assert (
        "a field of pair.en, pair.de, which fields.text joins, is missing, empty or no string"
        in reasons + capsys.readouterr().err
    )


def test_the_limit_counts_documents_of_several_records(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n")
    assert run(tmp_path, {**AS_PAIRS, "files": str(tmp_path / "x.jsonl")}, "--limit", 1) == 0
    assert [d["text"].count("。") for d in documents_in(tmp_path / "out")] == [2]


def written(path, records) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def results(tmp_path):
    return load_json(tmp_path / "out" / "manifest.json")["results"]


def test_records_without_ids_are_numbered_by_their_file_below_the_glob(tmp_path):
    for folder in ("a", "b"):
        written(tmp_path / "raw" / folder / "x.jsonl", [{"text": "t"}, {"id": 7, "text": "u"}, {"text": "v"}])
    assert run(tmp_path, {"files": str(tmp_path / "raw" / "*" / "*.jsonl")}, "--workers", 2) == 0
    ids = [d["id"] for d in documents_in(tmp_path / "out")]
    assert ids == ["mine/a/x.jsonl/0", "mine/7", "mine/a/x.jsonl/37", "mine/b/x.jsonl/0", "mine/7", "mine/b/x.jsonl/37"]


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_numbers_where_ids_are_not_wanted_and_bad_records_where_a_named_one_lacks(tmp_path, kind):
    records = [{"id": "same", "meta": {"key": i} if i else {"k": 1}, "text": f"text {i}"} for i in range(4)]
    path = written(tmp_path / "x.jsonl", records)
    source = {"files": path} if kind == "files" else {"hub": {"path": "json", "data_files": path}}
    assert run(tmp_path, {**source, "fields": {"id": None}}) == 0
    assert len({d["id"] for d in documents_in(tmp_path / "out")}) == 4
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, {**source, "fields": {"id": "meta.key"}}) == 0
    assert [d["id"] for d in documents_in(tmp_path / "out")] == ["mine/1", "mine/2", "mine/3"]
    (bad,) = load_json(tmp_path / "out" / "bad_records" / "00000.json")
    assert bad["record"] == 1
    assert "missing field 'meta.key', which fields.id names" in bad["reason"]


def test_labels_of_records_count_where_their_fields_are_named(tmp_path):
    records = [{"id": "a", "text": "t", "rights": ["MIT", "BSD"], "lang": ["xx"]}, {"id": "b", "text": "t", "lang": {}}]
    assert run(tmp_path, {"files": written(tmp_path / "x.jsonl", records), "fields": {"license": "rights"}}) == 0
    assert [(d["lang"], d["license"]) for d in documents_in(tmp_path / "out")] == [
        ("en", "MIT, BSD"),
        ("en", "CC0-1.0"),
    ]


def test_a_dataset_with_values_that_json_does_not_have(tmp_path):
    columns = {"key": pa.array([1, 2]), "text": pa.array([b"t", b"\xff"]), "at": pa.array([0, 0], pa.timestamp("ns"))}
    pq.write_table(pa.table({**columns, "nested": [{"raw": b"\xff"}] * 2}), tmp_path / "x.parquet")
    hub = {"path": "parquet", "data_files": str(tmp_path / "x.parquet")}
    assert run(tmp_path, {"hub": hub, "fields": {"id": "key"}}) == 0
    (document,) = documents_in(tmp_path / "out")
    assert (document["id"], document["text"]) == ("mine/1", "t")
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["bad_records"] == 1


def test_few_different_ids_are_told(tmp_path, capsys):
    few = [{"info": f"host {i % 3}", "text": f"text {i}"} for i in range(20)]
    assert run(tmp_path, {"files": written(tmp_path / "x.jsonl", few), "fields": {"id": "info"}}) == 0
    (note,) = results(tmp_path)["notes"]
    assert results(tmp_path)["distinct_ids"] == 3
    assert "20 documents have only about 3 different ids in 'info', such as 'host 0'" in note
    assert note in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    enough = [{"id": f"{i % 19}", "text": "t"} for i in range(20)]
    assert run(tmp_path, {"files": written(tmp_path / "x.jsonl", enough)}) == 0
    assert results(tmp_path) == {"distinct_ids": 19, "notes": []}
    shutil.rmtree(tmp_path / "out")
    thousand = [{"id": f"{i % 900}", "text": "t"} for i in range(1500)]
    assert run(tmp_path, {"files": written(tmp_path / "x.jsonl", thousand)}) == 0
    assert len(results(tmp_path)["notes"]) == 1


def test_files_that_each_number_their_records_from_zero_are_told(tmp_path):
    for name in ("a", "b"):
        written(tmp_path / "raw" / f"{name}.jsonl", [{"id": i, "text": "t"} for i in range(20)])
    assert run(tmp_path, {"files": str(tmp_path / "raw")}) == 0
    (note,) = results(tmp_path)["notes"]
    assert "40 documents have only about 20 different ids" in note


def test_an_id_that_is_also_the_url_stays_the_id(tmp_path):
    assert (
        run(tmp_path, {"files": written(tmp_path / "x.jsonl", [{"id": "u", "text": "t"}]), "fields": {"url": "id"}})
        == 0
    )
    assert [(d["id"], d["url"]) for d in documents_in(tmp_path / "out")] == [("mine/u", "u")]


def test_a_part_whose_documents_all_have_one_id_stops_the_job(tmp_path, capsys):
    same = [{"warcinfo": "host: x", "text": f"text {i}"} for i in range(100)]
    assert run(tmp_path, {"files": written(tmp_path / "x.jsonl", same), "fields": {"id": "warcinfo"}}) == 2
    error = capsys.readouterr().err
    assert "x.jsonl: all 100 documents have the id 'host: x'; name another field than 'warcinfo'" in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_fields_that_no_record_has_and_files_that_are_not_read_are_told(tmp_path, capsys):
    written(tmp_path / "raw" / "x.jsonl", [{"id": "a", "text": "t", "uri": "u"}])
    (tmp_path / "raw" / "README.md").touch()
    assert run(tmp_path, {"files": str(tmp_path / "raw" / "**"), "fields": {"url": "URI"}}) == 0
    output = capsys.readouterr().out
    assert len(documents_in(tmp_path / "out")) == 1
    assert "no record has a value in 'URI', which fields.url names" in output
    assert "not read, since they are not documents or are links to files that are read: 1 files, README.md" in output
    assert "README.md" in output


def test_a_source_of_bad_records_only_says_so_with_the_first_reason(tmp_path, capsys):
    path = written(tmp_path / "x.jsonl", [{"id": "a", "content": "t"}] * 3)
    assert run(tmp_path, {"files": path}) == 2
    error = capsys.readouterr().err
    assert "--source mine holds no documents: all of its 3 records were set aside; the first, record 1 of" in error
    assert 'missing field \'text\', in {"id": "a", "content"' in error


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Dataset 'x/y' is a gated dataset on the Hub. You must be authenticated to access it.", "hf auth login"),
        (
            "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']",
            "['a', 'b']); give hub.name",
        ),
        ("BuilderConfig 'c' not found. Available: ['a']", "give hub.name"),
        ("Bad split: train. Available splits: ['test']", "give hub.split"),
        ("Couldn't reach 'x/y' on the Hub (LocalEntryNotFoundError)", "check its name and the network"),
    ],
)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, ConnectionError])
def test_a_dataset_that_does_not_open_is_told_with_what_to_do(tmp_path, capsys, monkeypatch, message, advice, kind):
    def refuse(*words, **more):
        raise kind(message)

    monkeypatch.setattr("datasets.load_dataset", refuse)
    assert run(tmp_path, {"hub": {"path": "x/y"}}) == 2
    error = capsys.readouterr().err
    assert "dataset x/y cannot be opened" in error
    assert advice in error


def test_a_dataset_that_breaks_on_the_way_is_told_with_the_row(tmp_path, capsys, monkeypatch):
    class Stream:
        num_shards = 1

        def shard(self, **which):
            yield {"id": "a", "text": "t"}
            raise RuntimeError("connection reset")

    monkeypatch.setattr("data_prep.ingest.open_hub", lambda hub: Stream())
    assert run(tmp_path, {"hub": {"path": "x/y"}}) == 2
    assert "dataset x/y shard 0 cannot be read beyond row 1 (connection reset)" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-3", "x"])
def test_a_limit_is_a_positive_number(tmp_path, capsys, limit):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, {"files": "x"}, f"--limit={limit}")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": "x", "fields": {"txt": "body"}}, "'sources.mine.fields.txt'; did you mean"),
        ({"files": "x", "fields": {"text": None}}, "sources.mine.fields.text"),
        ({}, "give exactly one of 'hub' and 'files'"),
        ({"files": "x", "hub": {"path": "y"}}, "give exactly one of 'hub' and 'files'"),
        ({"files": "x", "tier": 9}, "'sources.mine.tier' is 9"),
        ({"files": "nowhere/*.jsonl"}, "match nothing"),
        ({"hub": {"path": "json", "data_files": "nowhere.jsonl"}}, "cannot be opened"),
    ],
)
def test_a_source_that_cannot_work_is_told(tmp_path, capsys, source, message):
    assert run(tmp_path, source) == 2
    assert message in capsys.readouterr().err


def test_a_source_of_another_name_is_told(tmp_path, capsys):
    words = ["--config", CONFIGS / "sources.yaml", "--source", "wikipedia-e", "--output", tmp_path / "out"]
    assert main([str(w) for w in words]) == 2
    assert "did you mean 'wikipedia-en'?" in capsys.readouterr().err


def test_the_shipped_sources_are_sound_and_cover_the_run():
    sources = load_sources(CONFIGS / "sources.yaml")
    for lang in ("en", "zh"):
        assert sum(s.expected_tokens for s in sources.values() if s.lang == lang) > 5e11
    assert {s.tier for s in sources.values()} == {1, 2, 3}
    with pytest.raises(ConfigError):
        load_sources(CONFIGS / "curate.yaml")
