"""The configuration of curation: what is asked of every document, and a file of rules for each language."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from data_prep.curation.blocked_urls import is_entry
from data_prep.curation.language import LANGUAGES
from data_prep.curation.personal import Masks
from data_prep.curation.rules import LanguageRules
from data_prep.documents.fields import Fields
from recipe.base.errors import ConfigError, UserError
from recipe.base.strict import Section, load_yaml, strict_model


class Quality(Section):
    """A score of a model of yours, `function(text, lang) -> float`, written to the field `quality`."""

    function: str = Field(pattern=r"^[\w.]+:\w+$")  # package.module:function, importable by every worker
    min: float


class CurateConfig(Section):
    fields: Fields = Fields()
    languages: dict[str, LanguageRules]
    min_language_share: float = Field(0.5, ge=0, le=1)
    max_characters: int = Field(5_000_000, gt=0)
    personal_data: Masks | None = Masks()
    blocked_urls: list[str] = []
    blocked_words: dict[str, list[str]] = {}  # by language
    quality: Quality | None = None
    dropped_samples: int | None = Field(20, ge=0)

    def problems(self) -> list[str]:
        unknown = sorted(set(self.languages) - LANGUAGES)
        known = f"name some of {', '.join(sorted(LANGUAGES))}"
        no_hosts = [line for line in self.blocked_urls if not is_entry(line)]
        return [
            *([] if self.languages else ["languages is empty; name at least one"]),
            *(f"'languages.{name}' is none that documents are identified as; {known}" for name in unknown),
            *(
                f"blocked_urls: '{line}' names no host, or more than a host and a path; write one host or host/path a line"
                for line in no_hosts[:5]
            ),
        ]


def load_curate_config(path: Path) -> CurateConfig:
    """Read the config with the files that it names, each relative to the one that names it.

    Raises:
        UserError: a file is missing or wrong; `ConfigError` with every problem of one.
    """
    values = load_yaml(path)
    languages, blocked = {}, {}
    if isinstance(values, dict) and isinstance(values.get("languages"), dict):
        for name, file in values["languages"].items():
            if not isinstance(file, str):
                raise ConfigError(path, [f"'languages.{name}' is {file!r}: give the file of its rules"])
            rules = strict_model(LanguageRules, load_yaml(path.parent / file), path.parent / file)
            languages[name] = rules
            if rules.blocked_words:
                blocked[name] = _lines_of((path.parent / file).parent / rules.blocked_words)
        values = {
            **values,
            "languages": {name: rules.model_dump() for name, rules in languages.items()},
            "blocked_words": blocked,
        }
        if isinstance(values.get("blocked_urls"), str):
            values["blocked_urls"] = _lines_of(path.parent / values["blocked_urls"])
        elif values.get("blocked_urls", "") is None:
            values["blocked_urls"] = []
    return strict_model(CurateConfig, values, path)


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
