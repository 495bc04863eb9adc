#!/usr/bin/env python3
"""Print docs/configuration.md: every key of the run config, the ds_config and a model's config.json, from their schemas."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipe.base.ds_config import DsConfig
from recipe.base.model_shape import ModelShape
from recipe.base.settings import RunConfig
from recipe.base.tables import markdown_table

HEAD = """# Configuration

The run config says what is learned and how it is watched, the ds_config what depends on the cluster, and the model's `config.json`
its shape. This page has every key of the three. An unknown key is refused, with the nearest known key. The configs of the data jobs
are short and commented: `data_prep/configs/`. `python recipe/describe_settings.py` prints this page, and a test compares it."""
PARTS = (
    ("Run config (YAML, `--config`)", RunConfig, "Any key may be given on the command line: `--set schedule.peak_lr=3e-4`."),
    ("ds_config (JSON, `--deepspeed_config`)", DsConfig, "The keys of DeepSpeed that the recipe lets through; `launch/plan.py --write` makes such a file."),
    ("Model (`config.json` in `model:`)", ModelShape, "Names and meanings of transformers' `glm4_moe`."),
)  # fmt: skip


def sections(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel], str]]:
    """A model and those below it: the dotted names they have in a file, and what they are for."""
    rows = [(prefix, model, inspect.cleandoc(vars(model).get("__doc__") or "").split("\n\nArgs:")[0])]
    for name, field in model.model_fields.items():
        if (inner := inner_model(field.annotation)) is not None:
            many = "[]" if get_origin(field.annotation) is list else ""
            (at, section, purpose), *below = sections(inner, f"{prefix}.{field.alias or name}{many}".lstrip("."))
            rows += [(at, section, " ".join(filter(None, [purpose, field.description, null_note(field)]))), *below]
    return rows


def null_note(field: FieldInfo) -> str:
    """Whether a section may be left out."""
    if type(None) not in get_args(field.annotation):
        return ""
    return "Null by default." if field.default is None else "Null switches it off."


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be null; of a list of sections that of each."""
    choices = [annotation, *get_args(annotation)]
    if get_origin(annotation) not in (None, Union, types.UnionType, list):
        choices = []
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)


def table(model: type[BaseModel]) -> str:
    """The keys of one section that hold values."""
    rows = []
    for name, field in model.model_fields.items():
        if inner_model(field.annotation) is None:
            default = "required" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
            limits = ", ".join(limit for limit in map(limit_of, field.metadata) if limit)
            kind = type_of(field.annotation) + (f", {limits}" if limits else "")
            rows.append([f"`{field.alias or name}`", kind, default, meaning_of(field)])
    return markdown_table(["key", "value", "default", "meaning"], rows, left=4) if rows else ""


def meaning_of(field: FieldInfo) -> str:
    """The string below a field in the code, on one line."""
    return " ".join((field.description or "").split()).replace("|", "\\|")


def limit_of(item: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return next((f"{sign} {getattr(item, name):g}" for name, sign in signs.items() if hasattr(item, name)), "")


def type_of(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Annotated:
        part, bounds = get_args(annotation)
        return f"{type_of(part)} ({', '.join(filter(None, map(limit_of, bounds.metadata)))})"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{shown(value)}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(type_of(part) for part in get_args(annotation))
    if get_args(annotation):
        parts = [type_of(part) for part in get_args(annotation) if part is not ...]
        return f"{get_origin(annotation).__name__}[{', '.join(parts)}]"
    return "path" if annotation is Path else annotation.__name__


def shown(value: Any) -> str:
    """A value as YAML and JSON write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value) if isinstance(value, tuple) else value)


def document() -> str:
    parts = [HEAD]
    for title, root, message in PARTS:
        parts += [f"## {title}", message]
        for name, model, purpose in sections(root):
            heading = [f"### `{name}`", " ".join(purpose.split())] if name else []
            parts += [part for part in (*heading, table(model)) if part]
    return "\n\n".join(parts)


def main() -> int:
    print(document())
    return 0


if __name__ == "__main__":
    sys.exit(main())
