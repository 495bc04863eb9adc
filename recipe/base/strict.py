"""Reading JSON and YAML into pydantic models with every problem reported at once, unknown keys by name."""

from __future__ import annotations

import json
import re
import reprlib
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recipe.base.errors import ConfigError, UserError, nearest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str, ...]  # of a value: the keys that lead to it

LARGEST = 2**63 - 1  # whole number that torch, numpy and Arrow can hold
MANY_PLACES = 3  # keys of one name that a message lists
NAME_MAX = 255  # bytes of a file's name, limits.h


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, and nothing changes it once it is read.

    The string below a field is its meaning; docs/configuration.md prints it. `renamed` has keys of earlier versions, with what
    they are called now.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
    renamed: ClassVar[dict[str, str]] = {}


def load_json(path: str | Path) -> Any:
    """Parse a JSON file; a repeated key is an error, since JSON parsers keep the last one in silence."""
    return _parsed(_read(path), path, lambda text: json.loads(text, object_pairs_hook=_unique_keys))


def load_yaml(path: str | Path) -> Any:
    """Parse a YAML file, refusing repeated keys."""
    return _parsed(_read(path), path, lambda text: yaml.load(text, Loader=_StrictLoader))


def parse_yaml_value(text: str) -> Any:
    """The value that `text` stands for in YAML 1.1, plus `1e-3`, which YAML 1.1 reads as a string.

    Raises:
        UserError: not YAML.
    """
    return _parsed(text, f"the value {_shown(text)}", lambda text: yaml.load(text, Loader=_StrictLoader))


def apply_override(values: dict[str, Any], override: str, example: str) -> None:
    """Set one `key.sub=value`, the value in YAML, in nested `values`; a section that is missing or null is made.

    Of a list of sections a number is the key: `phases.1.tokens=1e9`.

    Args:
        example: of such an override, for the message.

    Raises:
        UserError: malformed, or a key below something that is not a section.
    """
    key, separator, text = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not all((*parents, last)):
        raise UserError(f"--set takes key=value, such as --set {example}; got '{override}'")
    try:
        value = parse_yaml_value(text)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from None
    section: Any = values
    for depth, parent in enumerate(parents, start=1):
        key_of_parent = _key_in(section, parent, override)
        if isinstance(section, dict) and section.get(parent) is None:
            section[parent] = {}
        section = section[key_of_parent]
        if not isinstance(section, dict | list):
            raise UserError(f"--set {override}: '{'.'.join(parents[:depth])}' is not a section")
    section[_key_in(section, last, override)] = value


def _key_in(section: Any, key: str, override: str) -> Any:
    """A key of a section as it is; of a list of sections its number."""
    if isinstance(section, dict):
        return key
    if not (key.isascii() and key.isdigit() and int(key) < len(section)):
        raise UserError(f"--set {override}: '{key}' is none of the list's {len(section)} entries, which count from 0")
    return int(key)


def strict_model(model: type[Model], values: Any, path: object) -> Model:
    """Validate `values` as `model`; raise one `ConfigError` naming every problem in `path`.

    A model may define `problems()`, the checks that need more than one field; it is asked once the
    fields themselves are sound.
    """
    if not isinstance(values, dict):
        raise ConfigError(path, [f"must hold a mapping of settings, not {type(values).__name__}"])
    misread = dict(_misread(model, values))
    problems, parsed = list(misread.values()), None
    try:
        parsed = model.model_validate(values)
    except ValidationError as error:
        problems += [_sentence(model, item) for item in error.errors() if not _is_told(item["loc"], misread)]
    if parsed is not None and not problems and hasattr(parsed, "problems"):
        problems = parsed.problems()
    if problems:
        raise ConfigError(path, problems)
    assert parsed is not None
    return parsed


def _misread(annotation: Any, value: Any, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Values that pydantic would convert in silence (true to 1, 1 to true), and numbers and text that nothing can use."""
    kinds = _alternatives(annotation)
    if isinstance(value, dict):
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        mapping = next((kind for kind in kinds if get_origin(kind) is dict), None)
        for key, item in value.items():
            inside = (*location, str(int(key) if isinstance(key, bool) else key))  # as pydantic names it
            if model is not None and isinstance(key, str):
                yield from _misread(_annotation_of(model, key), item, inside)
            elif mapping is not None and _is_key(key, get_args(mapping)[0]):
                yield from _misread(get_args(mapping)[1], item, inside)
            elif model is not None or mapping is not None:
                yield inside, _key_problem(key, location)
    elif isinstance(value, list):
        items = next((get_args(kind) for kind in kinds if get_origin(kind) in (list, tuple)), ())
        items = tuple(item for item in items if item is not Ellipsis)
        for index, item in enumerate(value if items else ()):
            yield from _misread(items[min(index, len(items) - 1)], item, (*location, str(index)))
    elif (problem := _problem_of(kinds, value)) is not None:
        yield location, f"'{'.'.join(location)}' is {_shown(value)}: {problem}"


def _problem_of(kinds: list[Any], value: Any) -> str | None:
    """Why a single value is not of any of these kinds, though pydantic may take it for one."""
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if value in choices and (type(value), value) not in [(type(choice), choice) for choice in choices]:
        return f"must be one of {', '.join(map(repr, choices))}"  # true equals 1, and 1.0 does
    if value is None and len(kinds) > 1 and NoneType not in kinds:
        return "must not be null; set it or leave it out"  # pydantic says it for each kind
    number, text, boolean = int in kinds or float in kinds, str in kinds or Path in kinds, bool in kinds
    if isinstance(value, str):
        if text:
            return _problem_of_text(value, Path in kinds)
        if number:  # YAML readers do not agree whether 1e-3 is one
            return _problem_of_number(_as_number(value), float in kinds)
        return "must be true or false" if boolean else None
    if isinstance(value, bool) and number and not boolean:
        return "must be a number; yes, no, on, off, true and false are not numbers"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if number:
            return _problem_of_number(value, float in kinds)
        if boolean:
            return "must be true or false"
    if text and isinstance(value, bool | int | float | date):
        return f"must be text, and is read as {type(value).__name__}; put it in quotes"
    return None


def _problem_of_text(value: str, is_path: bool) -> str | None:
    if is_path and not value:
        return "must be a path"
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "holds a character that neither a path nor UTF-8 can have"
    if is_path and any(len(name.encode()) > NAME_MAX for name in value.split("/")):
        return f"has a name of more than {NAME_MAX} bytes"
    return None


def _problem_of_number(value: float, fraction: bool) -> str | None:
    if fraction:
        return None if abs(value) <= sys.float_info.max else "must be a finite number"
    return None if abs(value) <= LARGEST else f"must be a whole number of at most {LARGEST:,}"


def _as_number(text: str) -> float:
    """The number that a text stands for; 0 for one that stands for none, which pydantic will say."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _is_key(key: Any, annotation: Any) -> bool:
    """Whether a mapping may have it; a whole number may be text, as in JSON."""
    return isinstance(key, str) if annotation is str else not isinstance(key, bool)


def _key_problem(key: Any, location: Location) -> str:
    where = f"'{'.'.join(location)}' has the key" if location else "the key"
    if isinstance(key, bool):
        return f"{where} {key}, which YAML reads for yes, no, on, off, true and false; put the name in quotes, such as 'no'"
    return f"{where} {_shown(key)}, which is read as {type(key).__name__}, not as text; put it in quotes"


def _alternatives(annotation: Any) -> list[Any]:
    """The kinds of value that an annotation lets through: of `int | None` both."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _annotation_of(model: type[BaseModel], key: str) -> Any:
    """What a model's key may hold; None for a key that it does not know."""
    return next((f.annotation for name, f in model.model_fields.items() if key == (f.alias or name)), None)


def _is_told(location: tuple[int | str, ...], misread: dict[Location, str]) -> bool:
    names = tuple(str(part) for part in location)
    return any(names[: len(told)] == told for told in misread)


def _shown(value: Any) -> str:
    """A value in a message; a large one cut short."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    return short.repr(value)


def _sentence(model: type[BaseModel], item: Any) -> str:
    location = list(item["loc"])
    name = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        if owner is not None and issubclass(owner, Section) and (new := owner.renamed.get(str(location[-1]))):
            return f"'{name}' is called '{new}' now; rename it"
        return f"unknown key '{name}'{_known_key(model, owner, str(location[-1]))}"
    if item["type"] == "missing":
        return f"'{name}' is missing; set it"
    if item["type"] == "model_type":
        return f"'{name}' is {_shown(item['input'])}: must hold a mapping of settings"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"'{name}' is {_shown(item['input'])}: {message}"


def _known_key(model: type[BaseModel], owner: type[BaseModel] | None, key: str) -> str:
    """`"; did you mean ...?"`: a key of this name in another section, else the nearest of this section."""
    elsewhere = [path for path in _key_paths(model) if path.rpartition(".")[2] == key]
    if 0 < len(elsewhere) <= MANY_PLACES:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    return nearest(key, owner.model_fields if owner else [])


def _key_paths(model: type[BaseModel], section: str = "") -> Iterator[str]:
    """All keys of a model and of its sections, as `--set` takes them."""
    for name, field in model.model_fields.items():
        path = f"{section}{field.alias or name}"
        yield path
        for kind in _alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _key_paths(kind, f"{path}.")


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
        model = _inner_model(argument)
        if model is not None:
            return model
    return None


def _read(path: str | Path) -> str:
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of an existing file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parsed(text: str, name: object, parse: Any) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise UserError(f"{name} is not valid: it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise UserError(f"{name} is not valid: {error.problem}{where}") from None
    except (
        LookupError,
        AttributeError,
        TypeError,
    ):  # of PyYAML, which does not look at a value before it takes it apart
        raise UserError(f"{name} is not valid: it has a tag or a key that cannot be read") from None
    except (yaml.YAMLError, _RepeatedKey, ValueError, OverflowError) as error:  # of dates and numbers too
        raise UserError(f"{name} is not valid: {' '.join(str(error).split())}") from None


class _RepeatedKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    unique: dict[Any, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _RepeatedKey(f"the key '{key}' stands twice; keep one")
        unique[key] = value
    return unique


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and values inside themselves, and reads numbers such as `1e-3` as YAML 1.2 does."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.deep_construct = True  # at once, by which PyYAML notices a value that holds itself

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            _unique_keys([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        return super().construct_yaml_int(_decimal(node))

    def construct_yaml_float(self, node: Any) -> float:
        return super().construct_yaml_float(_decimal(node))


def _decimal(node: Any) -> Any:
    """A node that YAML 1.1 takes for a number, refused where it would be one of base 8 or 60."""
    if isinstance(node, yaml.ScalarNode) and (":" in node.value or re.fullmatch(r"[-+]?0_*\d[\d_]*", node.value)):
        raise yaml.constructor.ConstructorError(
            problem=f"'{node.value}' would be read as a number of base 8 or 60; write it in decimal, or in quotes if it is text"
        )
    return node


for _tag in ("int", "float"):  # PyYAML binds its own functions, not the names that a subclass overrides
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", getattr(_StrictLoader, f"construct_yaml_{_tag}"))


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
