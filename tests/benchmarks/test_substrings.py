"""The benchmark of repeated spans: what it plants is there, and its numbers say what was found and cut."""

from __future__ import annotations

from benchmarks.curation_run import substrings
from data_prep.deduplication.spans import RepeatedSpans
from data_prep.documents.reading import write_documents


def test_planted_spans_stand_in_an_earlier_text_and_are_found(tmp_path):
    texts, planted = substrings.planted_texts(20, 60)
    for number, spans in enumerate(planted):
        for start, stop in spans:
            assert stop - start >= 60
            assert any(texts[number][start:stop] in text for text in texts[:number])
    path = tmp_path / "in.jsonl"
    write_documents(path, [{"id": str(number), "text": text} for number, text in enumerate(texts)])
    _, found = substrings.our_spans(path, len(texts), RepeatedSpans(min_characters=60))
    assert substrings._common(found, planted) == substrings._size(planted) > 0


def test_the_table_gives_shares_of_what_a_suffix_array_finds():
    numbers = {"repeated": 200, "found": 150, "false": 3, "planted": 100, "planted_found": 90, "planted_cut": 80}
    result = {"min_characters": 50, **numbers, "mb_per_cpu_s": {"ours": 10.0, "pydivsufsort": 2.5}}
    cells = [row.split(" | ")[1] for row in substrings.table(result).splitlines()[2:]]
    assert cells == ["75.00%", "3", "90.00%", "80.00%", "10.0"]
