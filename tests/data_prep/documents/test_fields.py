"""Fields of records become those of documents: names, ids, labels."""

from __future__ import annotations

import pytest

from data_prep.documents.fields import Renames, defect


def document(record, fields=None):
    """The document, or the reason."""
    renames = Renames(fields)
    renames.apply(record)
    return defect(record, renames) or record


@pytest.mark.parametrize(
    ("record", "fields", "expected"),
    [
        ({"id": "a", "body": "t"}, {"text": "body"}, {"id": "a", "text": "t"}),
        ({"id": "a", "text": "old", "body": "t"}, {"text": "body"}, {"id": "a", "text": "t"}),
        # swapped, and one field for two
        ({"id": "t", "text": "a"}, {"id": "text", "text": "id"}, {"id": "a", "text": "t"}),
        ({"key": "a", "text": "t"}, {"id": "key", "url": "key"}, {"id": "a", "text": "t", "url": "a"}),
        # an id that is a label as well stays one; a text does not
        ({"url": "u", "text": "t"}, {"id": "url"}, {"id": "u", "url": "u", "text": "t"}),
        ({"id": "a", "source": "t"}, {"text": "source", "source": "source"}, {"id": "a", "text": "t"}),
        ({"id": "a", "text": "t"}, {"url": "id"}, {"id": "a", "url": "a", "text": "t"}),
        ({"id": "a", "k": "b", "text": "t"}, {"id": "k", "url": "id"}, {"id": "b", "url": "a", "text": "t"}),
        # a dot leads into a field, unless it is in the name
        ({"meta": {"key": "a", "k": 1}, "text": "t"}, {"id": "meta.key"}, {"id": "a", "text": "t", "meta": {"k": 1}}),
        ({"meta": {"key": "b"}, "meta.key": "a", "text": "t"}, {"id": "meta.key"}, {"id": "a", "text": "t", "meta": {"key": "b"}}),
        ({"m": {"a.b": {"c": "a"}}, "text": "t"}, {"id": "m.a.b.c"}, {"id": "a", "text": "t", "m": {"a.b": {}}}),
        ({"m.a": {"b": "a"}, "text": "t"}, {"id": "m.a.b"}, {"id": "a", "text": "t", "m.a": {}}),
        # null leaves ours out
        ({"id": "a", "text": "t", "url": {"odd": 1}}, {"url": None}, {"id": "a", "text": "t"}),
        ({"id": "a", "text": "t", "u": "x"}, {"id": "id", "text": "text", "url": "url"}, {"id": "a", "text": "t", "u": "x"}),
    ],
)  # fmt: skip
def test_names(record, fields, expected):
    assert document(record, fields) == expected


@pytest.mark.parametrize(
    ("record", "fields", "reason"),
    [
        ({"id": "a", "text": "t"}, {"text": "body"}, "missing field 'body', which fields.text names"),
        ({"id": "a", "text": "t", "m": {"x": 1}}, {"id": "m.key"}, "missing field 'm.key', which fields.id names"),
        ({"id": "a", "text": "t", "m": "x"}, {"id": "m.key"}, "missing field 'm.key', which fields.id names"),
        ({"text": "t"}, None, "missing field 'id'; ingest.py numbers records without ids"),
        ({"id": "a", "content": "t"}, None, "missing field 'text'"),
        ({}, None, "missing field 'id'"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(record, fields, reason):
    assert document(record, fields).startswith(reason)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        (7, "7"),
        (-(2**70), str(-(2**70))),
        (b"a", "a"),
        (1.0, "float"),
        (True, "bool"),
        (["a"], "list"),
        ({"a": 1}, "dict"),
        ("", "empty"),
        ("\n ", "empty"),
    ],
)
def test_ids(value, expected):
    found = document({"id": value, "text": "t"})
    if isinstance(found, str):
        assert found.startswith("field 'id' is ")
        assert expected in found
    else:
        assert found["id"] == expected


@pytest.mark.parametrize("text", [7, ["t"], {"t": 1}, 1.5, False, b"\xff"])
def test_a_text_is_a_string(text):
    assert document({"id": "a", "text": text}).startswith("field 'text' is ")


@pytest.mark.parametrize("name", ["lang", "source", "url", "license"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "x"),
        (None, None),
        ("", None),
        ([], None),
        ([None], None),
        (["x"], "x"),
        (["x", None], "x"),
        (b"x", "x"),
        (3, "3"),
        ([3], "3"),
    ],
)
def test_labels_are_strings_or_absent(name, value, expected):
    assert document({"id": "a", "text": "t", name: value}).get(name) == expected


@pytest.mark.parametrize("value", [{"x": 1}, [["x"]], 1.5, True, [True], b"\xff", ["x", {"y": 1}]])
def test_a_label_of_another_kind_sets_the_record_aside(value):
    for name in ("lang", "source", "url", "license"):
        assert document({"id": "a", "text": "t", name: value}).startswith(f"field '{name}' is ")


def test_several_licences_are_joined_and_several_languages_are_none():
    assert document({"id": "a", "text": "t", "license": ["MIT", "Apache-2.0"]})["license"] == "MIT, Apache-2.0"
    assert document({"id": "a", "text": "t", "lang": ["en", "zh"]}) == "field 'lang' is a list of 2, not a string"


def test_other_fields_pass_as_they_are():
    record = {"id": "a", "text": "t", "quality": 0.5, "meta": [1, {"x": None}], "date": None}
    assert document(dict(record)) == record
