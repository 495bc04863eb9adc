"""docs/configuration.md: every key and section says what it is for."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from recipe.base.strict import Section
from recipe.describe_settings import PARTS, document, inner_model, meaning_of, sections, table, type_of


class Inner(Section):
    """Its purpose."""

    ratio: Annotated[float, Field(ge=0)] | None = None
    """One | two
    lines."""


class Outer(Section):
    steps: int = Field(gt=0)  # no meaning: a comment
    inner: Inner | None = None
    """When it is needed."""
    other: Inner | None = Inner()


@pytest.mark.parametrize(
    ("name", "purpose", "model"),
    [pytest.param(name, purpose, model, id=f"{root.__name__}.{name}") for _, root, _ in PARTS for name, model, purpose in sections(root)],
)  # fmt: skip
def test_every_key_and_section_has_a_meaning(name, purpose, model):
    assert len(purpose) >= 15
    for key, field in model.model_fields.items():
        if inner_model(field.annotation) is None:
            assert meaning_of(field).endswith((".", ")")), f"{name}.{key}: {meaning_of(field)!r} is no sentence"


def test_a_meaning_is_the_string_below_a_key():
    assert "| `steps` | int, > 0 | required |  |" in table(Outer)
    assert "| `ratio` | float (≥ 0) or null | `null` | One \\| two lines. |" in table(Inner)


def test_a_section_says_whether_it_may_be_left_out():
    purposes = {name: purpose for name, _, purpose in sections(Outer)}
    assert purposes["inner"] == "Its purpose. When it is needed. Null by default."
    assert purposes["other"] == "Its purpose. Null switches it off."


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (bool | None, "bool or null"),
        (list[str], "list[str]"),
        (dict[str, float] | None, "dict[str, float] or null"),
        (Literal["a", "b"], "`a` or `b`"),
    ],
)
def test_types_have_the_names_of_python(annotation, text):
    assert type_of(annotation) == text


def test_no_line_of_the_document_has_an_empty_cell():
    assert not [line for line in document().splitlines() if line.startswith("|") and line.endswith("|  |")]
