"""The configuration of curation: what is asked of every document, and a file of rules for each language."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.core.command import CONFIGS
from data_prep.curation.blocked_urls import is_entry
from data_prep.curation.language import LANGUAGES
from data_prep.curation.personal import Masks
from data_prep.curation.rules import LanguageRules
from data_prep.documents.fields import Fields
from data_prep.quality.model import QualityModel, model_file
from recipe.base.errors import ConfigError, UserError
from recipe.base.files import sha256
from recipe.base.strict import Section, load_yaml, strict_model

RULES = CONFIGS / "languages"  # a file of rules for each language that ships, and the template for others


class Quality(Section):
    """A score of each text, written to the field `quality`; texts below `min` are dropped.

    It comes from a model of train_quality.py, or from `function(text, lang) -> float` of yours.
    """

    model: Path | None = None  # output folder of train_quality.py
    function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")  # package.module:function, importable by every worker
    # of all languages; for a model also by language, where null leaves a language without scores, and what is not named
    # has the model's own threshold
    min: float | dict[str, float | None] = {}

    def problems(self, languages: Collection[str]) -> list[str]:
        found = []
        if (self.model is None) == (self.function is None):
            found.append("quality has one of model and function")
        elif self.function is not None and not isinstance(self.min, float):
            found.append("quality.min is missing or not one number, which quality.function needs")
        elif self.model is not None and not all(0 <= least <= 1 for least in self._minima()):
            found.append("quality.min is not from 0 to 1, as the scores of quality.model are; correct it")
        named = set(self.min) if isinstance(self.min, dict) else set[str]()
        strange = sorted(named - set(languages))
        return found + [f"'quality.min.{name}' is none of languages; remove it or add the language" for name in strange]

    def _minima(self) -> list[float]:
        values = self.min.values() if isinstance(self.min, dict) else [self.min]
        return [value for value in values if value is not None]

    def threshold(self, language: str) -> float | None:
        """None where the language is not scored."""
        return self.min.get(language) if isinstance(self.min, dict) else self.min

    def with_thresholds(self, languages: Iterable[str]) -> Quality:
        """The same with every threshold of the model written out.

        Raises:
            UserError: the model cannot be read, or has no classifier for a language.
        """
        if self.model is None:
            return self
        classifiers, thresholds = QualityModel.read(self.model).classifiers, dict[str, float | None]()
        for language in languages:
            asked = self.min.get(language, ...) if isinstance(self.min, dict) else self.min
            if asked is not None and language not in classifiers:
                raise UserError(
                    f"quality.model {self.model} has no classifier for '{language}', only for {', '.join(classifiers)}; train "
                    f"one for it, or set quality.min.{language} to null, which leaves its documents unscored"
                )
            thresholds[language] = classifiers[language].threshold if asked is ... else asked
        return self.model_copy(update={"min": thresholds})


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
        no_hosts = [line for line in self.blocked_urls if not is_entry(line)]
        return [
            *([] if self.languages else ["languages is empty; name at least one"]),
            *map(_not_identified, unknown),
            *(
                f"blocked_urls: '{line}' names no host, or more than a host and a path; write one host or host/path a line"
                for line in no_hosts[:5]
            ),
            *([] if self.quality is None else self.quality.problems(self.languages)),
        ]

    def parameters(self) -> dict[str, Any]:
        """What decides over the result, for a stage: a quality model by its content, not its path."""
        values = self.model_dump(mode="json")
        if self.quality is not None and self.quality.model is not None:
            values["quality"]["model"] = sha256(model_file(self.quality.model))
        return values


def load_curate_config(path: Path) -> CurateConfig:
    """Read the config with the files that it names, each relative to the one that names it.

    Raises:
        UserError: a file is missing or wrong; `ConfigError` with every problem of one.
    """
    values = load_yaml(path)
    languages, blocked = {}, {}
    if isinstance(values, dict) and "languages" in values:
        for name, file in rules_files(path, values["languages"]).items():
            languages[name] = rules = load_rules(file)
            if rules.blocked_words:
                blocked[name] = _lines_of(file.parent / rules.blocked_words)
        values = {
            **values,
            "languages": {name: rules.model_dump() for name, rules in languages.items()},
            "blocked_words": blocked,
        }
        if isinstance(values.get("blocked_urls"), str):
            values["blocked_urls"] = _lines_of(path.parent / values["blocked_urls"])
        elif values.get("blocked_urls", "") is None:
            values["blocked_urls"] = []
    if (
        isinstance(values, dict)
        and isinstance(quality := values.get("quality"), dict)
        and isinstance(quality.get("model"), str)
    ):
        values = {**values, "quality": {**quality, "model": str(path.parent / quality["model"])}}
    config = strict_model(CurateConfig, values, path)
    if config.quality is None:
        return config
    return config.model_copy(update={"quality": config.quality.with_thresholds(config.languages)})


def load_rules(file: Path) -> LanguageRules:
    """The rules of one language, with the phrases of the files that it names.

    Raises:
        UserError: a file of phrases cannot be read; `ConfigError` with every problem of the rules.
    """
    rules = strict_model(LanguageRules, load_yaml(file), file)
    named = {name: getattr(rules, name) for name in ("dense_phrases", "strong_phrases")}
    phrases = {name: _lines_of(file.parent / value) for name, value in named.items() if isinstance(value, str)}
    return rules.model_copy(update=phrases)


def rules_files(path: Path, languages: Any) -> dict[str, Path]:
    """The file of rules of each language, of the `languages` of the config at `path`: names, or name -> file.

    A name alone, or with null, stands for the file that ships.

    Raises:
        ConfigError: a name is no text or stands twice, no file ships for a name alone, or a file is given as something else
            than a path.
    """
    if not isinstance(languages, dict | list):
        raise ConfigError(path, [f"'languages' is {languages!r}: give names, as [en, zh], or name: file"])
    names = [name for name in languages if isinstance(name, str)]
    files: dict[str, Any] = {name: languages[name] if isinstance(languages, dict) else None for name in names}
    shipped = {file.stem: file for file in RULES.glob("*.yaml") if file.stem in LANGUAGES}
    problems = [
        *(
            f"languages names {name!r}, which is no text; write a code of two letters, in quotes where YAML reads it otherwise: 'no'"
            for name in languages
            if not isinstance(name, str)
        ),
        *([] if len(files) == len(names) else ["languages names one twice; name each once"]),
        *(_without_rules(name) for name, file in files.items() if file is None and name not in shipped),
        *(
            f"'languages.{name}' is {file!r}: give the file of its rules, or null for the one that ships"
            for name, file in files.items()
            if not isinstance(file, str | None)
        ),
    ]
    if problems:
        raise ConfigError(path, problems)
    return {name: shipped[name] if file is None else path.parent / file for name, file in files.items()}


def _without_rules(name: str) -> str:
    if name not in LANGUAGES:
        return _not_identified(name)
    return (
        f"no rules ship for 'languages.{name}'; copy {RULES / 'template.yaml'}, fill it in, and name your file: "
        f"languages: {{{name}: my/{name}.yaml}}"
    )


def _not_identified(name: str) -> str:
    return f"'languages.{name}' is none that documents are identified as; name some of {', '.join(sorted(LANGUAGES))}"


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
