#!/usr/bin/env python3
"""Print what a run would read of each source: share, tokens and epochs, for each phase; write it as YAML.

Reads a finished tokenize_corpus.py folder, or the expected tokens of sources.yaml before anything is tokenized.
The run config's `data.mixture` takes the same keys, and the loader follows the same plan.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_prep.ingest import load_sources
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.run_config.data import Mixture
from recipe.base.strict import apply_override, load_yaml, strict_model
from recipe.data.mixture import CYCLE, PhaseData, Stretch, plan_mixture
from recipe.data.token_folder import TokenFolder

# Up to here data that is read again trains almost like new data: Muennighoff et al., Scaling Data-Constrained Language
# Models, arXiv 2305.16264, abstract and figure 1
CHEAP_EPOCHS = 4


def read_mixture(path: Path | None, overrides: list[str]) -> Mixture:
    """The `data.mixture` of a run config, or the defaults, with `key=value` changes."""
    values: dict[str, Any] = {}
    if path is not None:
        config = load_yaml(path)
        data = config.get("data") if isinstance(config, dict) else None
        values = dict((data or {}).get("mixture") or {}) if isinstance(data, dict) else {}
    for override in overrides:
        apply_override(values, override, "alpha=0.3")
    return strict_model(Mixture, values, path or "--set")


def table(
    sizes: dict[str, float], languages: dict[str, str], phases: list[Stretch], run_tokens: float, cycle_tokens: float
) -> str:
    """Share, tokens and epochs of every source and language in each phase and in all."""
    ends = [phase.first_cycle * cycle_tokens for phase in phases[1:]] + [run_tokens]
    starts = [phase.first_cycle * cycle_tokens for phase in phases]
    head = "".join(f"  {'phase ' + str(i + 1):>9}" for i in range(len(phases)))
    lines = [f"{'source':<24} {'one epoch':>10}{head} {'tokens':>10} {'share':>7} {'epochs':>7}"]
    groups = {name: [name] for name in sorted(sizes)}
    if len(set(languages.values())) < len(sizes):
        groups |= {f"({lang})": [n for n in sizes if languages[n] == lang] for lang in sorted(set(languages.values()))}
    for title, names in groups.items():
        size = sum(sizes[name] for name in names)
        weights = [sum(phase.weights[name] for name in names) for phase in phases]
        read = sum(w * (end - start) for w, start, end in zip(weights, starts, ends, strict=True))
        shares = "".join(f"  {weight:>9.2%}" for weight in weights)
        lines.append(f"{title:<24} {size:>10.3g}{shares} {read:>10.3g} {read / run_tokens:>7.2%} {read / size:>7.2f}")
    spans = "".join(f"  {end - start:>9.3g}" for start, end in zip(starts, ends, strict=True))
    lines.append(f"{'tokens of the phase':<24} {sum(sizes.values()):>10.3g}{spans} {run_tokens:>10.3g}")
    return "\n".join(lines)


def repetition_notes(
    sizes: dict[str, float], phases: list[Stretch], run_tokens: float, cycle_tokens: float
) -> Iterator[str]:
    """A sentence for each source that the plan reads more often than costs little."""
    bounds = [*(phase.first_cycle * cycle_tokens for phase in phases), run_tokens]
    for name, size in sorted(sizes.items()):
        epochs = [
            phase.weights[name] * (end - start) / size
            for phase, start, end in zip(phases, bounds, bounds[1:], strict=False)
        ]
        if sum(epochs) > CHEAP_EPOCHS * (1 + 1e-6):
            last = f", {epochs[-1]:.1f} of them in the last phase" if len(phases) > 1 else ""
            yield (
                f"{name} is read {sum(epochs):.1f} times{last}; beyond {CHEAP_EPOCHS} epochs repeated data is worth less "
                f"and less (arXiv 2305.16264): set max_epochs to {CHEAP_EPOCHS}, lower its weight, add data, or shorten the run"
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
        "--config", type=Path, help="run config whose data.mixture is used (default: the defaults of data.mixture)"
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
    mixture = read_mixture(args.config, args.set)
    if args.tokens:
        sizes = {source.name: float(source.num_tokens) for source in TokenFolder(args.tokens).sources("train")}
        languages = {name: name.split("-")[0] for name in sizes}  # as source_by: lang and both name them
    else:
        sources = load_sources(args.sources)
        sizes = {name: source.expected_tokens for name, source in sources.items()}
        languages = {name: source.lang for name, source in sources.items()}
        mixture = mixture.model_copy(update={
            "factors": mixture.factors or {name: s.weight for name, s in sources.items()},
            "tiers": mixture.tiers or {name: s.tier for name, s in sources.items()},
        })  # fmt: skip
    (phases,) = plan_mixture([PhaseData(mixture, args.seq_length, args.run_tokens, "", sizes)])
    print(table(sizes, languages, phases, args.run_tokens, CYCLE * args.seq_length))
    for note in repetition_notes(sizes, phases, args.run_tokens, CYCLE * args.seq_length):
        print(f"note: {note}")
    if args.output:
        values = mixture.model_dump(mode="json", exclude_defaults=True)
        write_text(args.output, yaml.safe_dump({"mixture": values}, allow_unicode=True, sort_keys=False))
        print(f"mixture -> {args.output}; paste it under data: of the run config")


if __name__ == "__main__":
    raise SystemExit(main())
