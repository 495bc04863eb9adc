"""Reading JSON and YAML into pydantic models with every problem reported at once, unknown keys by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recipe.base.errors import ConfigError, UserError, nearest

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, and nothing changes it once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_json(path: str | Path) -> Any:
    """Parse a JSON file; a repeated key is an error, since JSON parsers keep the last one in silence."""
    return _load(path, lambda text: json.loads(text, object_pairs_hook=_unique_keys))


def load_yaml(path: str | Path) -> Any:
    """Parse a YAML file, refusing repeated keys."""
    return _load(path, lambda text: yaml.load(text, Loader=_UniqueKeyLoader))


def parse_yaml_value(text: str) -> Any:
    """The value that `text` stands for in YAML 1.1, plus `1e-3`, which YAML 1.1 reads as a string."""
    return yaml.load(text, Loader=_UniqueKeyLoader)


def strict_model(model: type[Model], values: Any, path: object) -> Model:
    """Validate `values` as `model`; raise one `ConfigError` naming every problem in `path`.

    A model may define `problems()`, the checks that need more than one field; it is asked once the
    fields themselves are sound.
    """
    if not isinstance(values, dict):
        raise ConfigError(path, [f"must hold a mapping of settings, not {type(values).__name__}"])
    try:
        parsed = model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(path, [_sentence(model, item) for item in error.errors()]) from None
    found = parsed.problems() if hasattr(parsed, "problems") else []
    if found:
        raise ConfigError(path, found)
    return parsed


def _sentence(model: type[BaseModel], item: Any) -> str:
    location = list(item["loc"])
    name = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        return f"unknown key '{name}'{nearest(str(location[-1]), owner.model_fields if owner else [])}"
    if item["type"] == "missing":
        return f"'{name}' is missing; set it"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"'{name}' is {item['input']!r}: {message}"


def _model_at(model: type[BaseModel] | None, location: list[Any]) -> type[BaseModel] | None:
    """The pydantic model that owns the key after `location`, looking through Optional, list and dict."""
    for part in location:
        if model is None:
            return None
        if isinstance(part, str) and part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation)
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None


def _load(path: str | Path, parse: Any) -> Any:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of an existing file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        return parse(text)
    except (json.JSONDecodeError, yaml.YAMLError, _RepeatedKey) as error:
        raise UserError(f"{path} is not valid: {' '.join(str(error).split())}") from None


class _RepeatedKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _RepeatedKey(f"the key '{key}' stands twice; keep one")
        unique[key] = value
    return unique


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and reads `1e-3` as the number it is (YAML 1.2)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
        _unique_keys(pairs)
        return super().construct_mapping(node, deep=deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
