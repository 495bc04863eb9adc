#!/usr/bin/env python3
"""Print what a run would read of each source: share, tokens and epochs, for each phase; write it as YAML.

Reads a finished tokenize_corpus.py folder, or the expected tokens of sources.yaml before anything is tokenized.
The run config's `data.mixture` takes the same keys, and the loader follows the same plan.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.ingest import load_sources
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.run_config.data import Data, Mixture
from recipe.base.run_config.phase import Phase, problems_of_phases
from recipe.base.strict import apply_override, load_yaml, strict_model
from recipe.data.mixture import CYCLE, PhaseData, plan_mixture
from recipe.data.token_folder import TokenFolder

# Up to here data that is read again trains almost like new data: Muennighoff et al., Scaling Data-Constrained Language
# Models, arXiv 2305.16264, abstract and figure 1
CHEAP_EPOCHS = 4


@dataclass(frozen=True)
class Tokens:
    """The sources of a token folder, or what sources.yaml expects of them."""

    folder: str
    sizes: dict[str, float]
    languages: dict[str, str]
    factors: dict[str, float] = field(default_factory=dict)  # where the mixture has none
    tiers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, path: Path) -> Tokens:
        sizes = {name: float(size) for name, size in TokenFolder(path).sizes("train").items()}
        return cls(
            str(path), sizes, {name: name.split("-")[0] for name in sizes}
        )  # as source_by: lang and both name them

    @classmethod
    def expected(cls, path: Path) -> Tokens:
        sources = load_sources(path)
        return cls(
            str(path),
            {name: source.expected_tokens for name, source in sources.items()},
            {name: source.lang for name, source in sources.items()},
            {name: source.weight for name, source in sources.items()},
            {name: source.tier for name, source in sources.items()},
        )

    def data(self, mixture: Mixture, seq_length: int, tokens: float, name: str = "") -> PhaseData:
        """What a phase of these sources reads."""
        factors = self.factors if mixture.weights is None else {}  # which weights would override
        filled = {"factors": mixture.factors or factors, "tiers": mixture.tiers or self.tiers}
        return PhaseData(mixture.model_copy(update=filled), seq_length, tokens, self.folder, self.sizes, name)


def read_config(path: Path | None) -> tuple[dict[str, Any], list[Phase]]:
    """`data.mixture` and `phases` of a run config; nothing where there is none."""
    config = {} if path is None else load_yaml(path)
    config = config if isinstance(config, dict) else {}
    data = config.get("data")
    mixture = dict((data or {}).get("mixture") or {}) if isinstance(data, dict) else {}
    phases = [strict_model(Phase, phase, path) for phase in config.get("phases") or []]
    if problems := problems_of_phases(phases):
        raise ConfigError(path, problems)
    return mixture, phases


def read_mixture(values: dict[str, Any], overrides: list[str], path: object) -> Mixture:
    """A mixture with `key=value` changes."""
    values = dict(values)
    for override in overrides:
        apply_override(values, override, "alpha=0.3")
    return strict_model(Mixture, values, path)


def data_of(
    phase: Phase, length: float, mixture: dict[str, Any], tokens: Tokens, args: argparse.Namespace
) -> PhaseData:
    """What a phase of the run config reads, with the keys of `data` that it changes."""
    where = f"{args.config}: phase {phase.name}"
    own = strict_model(Data, {"tokens": tokens.folder, "seq_length": args.seq_length, **phase.data}, where)
    if str(own.tokens) != tokens.folder:
        if args.sources:
            raise UserError(f"{where} has data.tokens of its own, which --sources cannot stand for; give --tokens")
        tokens = Tokens.of_folder(own.tokens)
    changed = read_mixture(phase.data.get("mixture", mixture), args.set, where)
    return tokens.data(changed, own.seq_length, length, phase.name)


@dataclass(frozen=True)
class Part:
    """A part of the run with one mixture: a phase, or a stretch of it."""

    title: str
    data: PhaseData
    weights: dict[str, float]
    tokens: float

    def read(self, folder: str, names: Iterable[str]) -> float:
        """Tokens of sources of a folder."""
        return self.tokens * self.share(folder, names)

    def share(self, folder: str, names: Iterable[str]) -> float:
        return sum(self.weights[name] for name in names) if folder == self.data.folder else 0.0


def lengths(phases: list[Phase], run_tokens: float) -> list[float]:
    """Tokens of each phase of a run; the last may have what is left."""
    given = sum(phase.tokens or 0 for phase in phases)
    if phases[-1].tokens is None and given < run_tokens:
        return [*(float(phase.tokens or 0) for phase in phases[:-1]), run_tokens - given]
    if phases[-1].tokens is None or given != run_tokens:
        raise UserError(
            f"the phases have {given:,} tokens, which do not make --run-tokens {run_tokens:,.0f}; change either"
        )
    return [float(phase.tokens or 0) for phase in phases]


def parts_of(phases: list[PhaseData]) -> list[Part]:
    """The plan of a run, in its order."""
    parts: list[Part] = []
    for phase, stretches in zip(phases, plan_mixture(phases), strict=True):
        cycle_tokens = CYCLE * phase.seq_length
        ends = [*(following.first_cycle * cycle_tokens for following in stretches[1:]), phase.tokens]
        for stretch, end in zip(stretches, ends, strict=True):
            title = phase.name or f"phase {len(parts) + 1}"
            parts.append(Part(title, phase, stretch.weights, end - stretch.first_cycle * cycle_tokens))
    return parts


def sizes_of(parts: list[Part]) -> dict[str, Mapping[str, float]]:
    """Tokens of each source of each folder."""
    return {part.data.folder: part.data.sizes for part in parts}


def table(parts: list[Part], languages: dict[str, str]) -> str:
    """Share, tokens and epochs of every source and language in each part of a run and in all."""
    widths = [max(9, len(part.title)) for part in parts]
    head = "".join(f"  {part.title:>{width}}" for part, width in zip(parts, widths, strict=True))
    lines = [f"{'source':<24} {'one epoch':>10}{head} {'tokens':>10} {'share':>7} {'epochs':>7}"]
    run_tokens = sum(part.tokens for part in parts)
    for title, folder, names in _rows(parts, languages):
        size = sum(sizes_of(parts)[folder][name] for name in names)
        read = sum(part.read(folder, names) for part in parts)
        shares = "".join(
            f"  {part.share(folder, names):>{width}.2%}" for part, width in zip(parts, widths, strict=True)
        )
        lines.append(f"{title:<24} {size:>10.3g}{shares} {read:>10.3g} {read / run_tokens:>7.2%} {read / size:>7.2f}")
    spans = "".join(f"  {part.tokens:>{width}.3g}" for part, width in zip(parts, widths, strict=True))
    size = sum(sum(sizes.values()) for sizes in sizes_of(parts).values())
    lines.append(f"{'tokens of the phase':<24} {size:>10.3g}{spans} {run_tokens:>10.3g}")
    return "\n".join(lines)


def _rows(parts: list[Part], languages: dict[str, str]) -> Iterator[tuple[str, str, list[str]]]:
    """Title, folder and sources of each line: one for each source, then one for each language that has several."""
    for folder, sizes in sizes_of(parts).items():
        prefix = _prefix(folder, parts)
        yield from ((prefix + name, folder, [name]) for name in sorted(sizes))
        language = {name: languages.get(name, name.split("-")[0]) for name in sizes}
        if len(set(language.values())) < len(sizes):
            for lang in sorted(set(language.values())):
                yield f"{prefix}({lang})", folder, [name for name in sizes if language[name] == lang]


def _prefix(folder: str, parts: list[Part]) -> str:
    return f"{Path(folder).name}/" if len(sizes_of(parts)) > 1 else ""


def repetition_notes(parts: list[Part]) -> Iterator[str]:
    """A sentence for each source that the plan reads more often than costs little."""
    for folder, sizes in sizes_of(parts).items():
        for name, size in sorted(sizes.items()):
            epochs = [part.read(folder, [name]) / size for part in parts]
            if sum(epochs) > CHEAP_EPOCHS * (1 + 1e-6):
                last = f", {epochs[-1]:.1f} of them in the last phase" if len(parts) > 1 else ""
                yield (
                    f"{_prefix(folder, parts)}{name} is read {sum(epochs):.1f} times{last}; beyond {CHEAP_EPOCHS} epochs repeated data is "
                    f"worth less and less (arXiv 2305.16264): set max_epochs to {CHEAP_EPOCHS}, lower its weight, add data, or shorten the run"
                )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python data_prep/mix.py --tokens work/tokens --run-tokens 1e12 --config recipe/configs/runs/X.yaml\n"
        "  python data_prep/mix.py --sources data_prep/configs/sources.yaml --run-tokens 1e12 --set max_epochs=4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--tokens", type=Path, help="output folder of tokenize_corpus.py or import_shards.py")
    given.add_argument(
        "--sources",
        type=Path,
        help="a sources.yaml, whose expected tokens stand for those of sources that are not tokenized yet",
    )
    parser.add_argument(
        "--run-tokens", type=float, required=True, help="tokens that the whole run trains on, such as 1e12"
    )
    parser.add_argument("--seq-length", type=int, default=4096, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument(
        "--config",
        type=Path,
        help="run config whose data.mixture and phases are used (default: the defaults of data.mixture, no phases)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the mixture; may be repeated"
    )
    parser.add_argument("--output", type=Path, help="write the mixture as YAML, to paste under data: of a run config")
    args = parser.parse_args(argv)
    if not 0 < args.run_tokens < math.inf or args.seq_length <= 0:
        raise UserError("--run-tokens and --seq-length must be positive numbers")
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name a YAML file, such as {args.output / 'mixture.yaml'}")
    values, phases = read_config(args.config)
    if args.output is not None and phases:
        raise UserError(f"--output writes one mixture, and {args.config} has phases; leave it out")
    tokens = Tokens.of_folder(args.tokens) if args.tokens else Tokens.expected(args.sources)
    if phases:
        spans = zip(phases, lengths(phases, args.run_tokens), strict=True)
        run = [data_of(phase, length, values, tokens, args) for phase, length in spans]
    else:
        run = [tokens.data(read_mixture(values, args.set, args.config or "--set"), args.seq_length, args.run_tokens)]
    parts = parts_of(run)
    print(table(parts, tokens.languages))
    for note in repetition_notes(parts):
        print(f"note: {note}")
    if args.output:
        written = run[0].mixture.model_dump(mode="json", exclude_defaults=True)
        write_text(args.output, yaml.safe_dump({"mixture": written}, allow_unicode=True, sort_keys=False))
        print(f"mixture -> {args.output}; paste it under data: of the run config")


if __name__ == "__main__":
    raise SystemExit(main())
