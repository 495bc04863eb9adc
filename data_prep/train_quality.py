#!/usr/bin/env python3
"""Train a quality model from good and bad documents: a fast linear classifier over n-grams, for each language its own.

Labelled documents come with --input; or give --positive and --negative, such as good sources and raw crawl. Documents that
are held out choose the threshold, and others the agreement with their labels, which the manifest has. Give text as curation
leaves it, without duplicates; then set `quality: {model: FOLDER}` in the configuration of curate.py.
"""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.core.command import job_parser
from data_prep.core.inputs import input_folder
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import merged
from data_prep.documents.reading import document_files
from data_prep.quality.examples import CLASSES, Labels, count_part, draw_part
from data_prep.quality.fitting import fit_language
from data_prep.quality.model import FILE_NAME, Classifier, QualityModel
from data_prep.quality.settings import TrainQualityConfig
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import load_json, load_yaml, strict_model


def shares_to_draw(usable: dict[str, Any], unlabelled: int, config: TrainQualityConfig) -> dict[str, dict[str, float]]:
    """The share of the documents to learn from, by language and class.

    Raises:
        UserError: a language has too few documents of a class.
    """
    shares: dict[str, dict[str, float]] = {}
    others = f"; {unlabelled:,} documents have neither true nor false in '{config.label}'" if unlabelled else ""
    for language in config.languages:
        counts = {name: usable.get(language, {}).get(name, 0) for name in CLASSES}
        if min(counts.values()) < config.min_documents:
            raise UserError(
                f"there are {counts['good']:,} good and {counts['bad']:,} bad documents in '{language}', and min_documents asks for "
                f"{config.min_documents:,} of each{others}; give more, or take '{language}' out of languages"
            )
        shares[language] = {name: config.max_documents / count for name, count in counts.items()}
    return shares


def arguments(argv: list[str] | None) -> Namespace:
    parser = job_parser(
        __doc__,
        "python data_prep/train_quality.py --positive books/ --negative crawl/ --output work/quality",
        "train_quality.yaml",
        reads_input=False,
    )
    parser.add_argument(
        "--input", type=Path, help="documents with a label: a file, a folder, or the output folder of a job"
    )
    parser.add_argument("--positive", type=Path, help="good documents: a file, a folder, or the output folder of a job")
    parser.add_argument(
        "--negative", type=Path, help="bad documents, or those that are to be judged, in place of --input"
    )
    args = parser.parse_args(argv)
    if (args.input is None) == (args.positive is None) or (args.positive is None) != (args.negative is None):
        raise UserError("give --input with labelled documents, or both --positive and --negative")
    return args


def open_stage(args: Namespace, config: TrainQualityConfig) -> tuple[Stage, Labels]:
    """The stage, and how its documents are told good from bad."""
    parameters, languages = config.model_dump(mode="json"), tuple(config.languages)
    if args.input is not None:
        return Stage.of("train_quality", args, parameters), Labels(config.label, languages)
    files = {
        option: document_files(input_folder(getattr(args, option)), f"--{option}")
        for option in ("positive", "negative")
    }
    resolved = {option: {file.resolve() for file in listed} for option, listed in files.items()}
    if both := resolved["positive"] & resolved["negative"]:
        raise UserError(f"{min(both)} is in --positive and in --negative; give it in one of them")
    everything = [*files["positive"], *files["negative"]]
    root = Path(os.path.commonpath([file.parent for file in everything]))
    names = [str(file.relative_to(root)) for file in files["positive"]]
    stage = Stage.of("train_quality", args, {**parameters, "positive": names}, everything, root)
    good_files = set(files["positive"])
    good_parts = frozenset(number for number, part in enumerate(stage.parts) if part.path in good_files)
    return stage, Labels(config.label, languages, good_parts)


def run(stage: Stage, labels: Labels, config: TrainQualityConfig) -> None:
    fields = config.fields.model_dump()
    counted = stage.run_tasks(
        "count", for_documents(stage, work=partial(count_part, labels=labels), fields=fields), stage.parts
    )
    usable = merged(result["usable"] for result in counted)
    unusable = merged(result["unusable"] for result in counted)
    n_usable = sum(number for classes in usable.values() for number in classes.values())
    stage.must_have_documents(n_usable + sum(unusable.values()), of="the input")
    examples, weights = stage.shuffle("examples").folder, stage.shuffle("weights").folder
    shares = shares_to_draw(usable, unusable.get("no_label", 0), config)
    draw = partial(draw_part, labels=labels, shares=shares, ngrams=config.ngrams, folder=examples)
    drawn = stage.run_tasks("draw", for_documents(stage, work=draw, fields=fields), stage.parts)
    learn = partial(
        fit_language,
        config=config,
        candidates="all" if labels.good_parts is None else "bad",
        examples=examples,
        output=weights,
    )
    trained = dict(zip(config.languages, stage.run_tasks("train", learn, config.languages), strict=True))
    classifiers = {
        language: Classifier(np.load(weights / f"{language}.npy"), result["bias"], result["threshold"])
        for language, result in trained.items()
    }
    QualityModel(config.ngrams, classifiers).write(stage.output / FILE_NAME)
    used = merged(result["drawn"] for result in drawn)
    n_used = sum(number for classes in used.values() for number in classes.values())
    counts: dict[str, Any] = {
        "in": n_usable + sum(unusable.values()),
        "out": n_used,
        "dropped": dict(unusable),
        "bad_records": sum(result["bad_records"] for result in counted),
        "documents": used,
    }
    if n_usable > n_used:
        counts["dropped"]["not_drawn"] = n_usable - n_used
    stage.finish(counts=counts, files=[stage.output / FILE_NAME], results={"languages": trained})


def table(results: dict[str, Any]) -> str:
    columns = ("accuracy", "precision", "recall", "f1", "auc")
    lines = [f"{'lang':<8} {'threshold':>9} {'held out':>9}" + "".join(f" {name:>9}" for name in columns)]
    for language, result in results.items():
        measured = result["agreement"]
        numbers = (f"{measured[name]:.3f}" if measured[name] is not None else "-" for name in columns)
        lines.append(
            f"{language:<8} {result['threshold']:>9.3f} {measured['documents']:>9,}"
            + "".join(f" {n:>9}" for n in numbers)
        )
    return "\n".join(lines)


def notes(results: dict[str, Any]) -> list[str]:
    """A sentence for each language whose threshold keeps every document."""
    return [
        f"note: the threshold of '{language}' keeps every held-out document: enough of all of them are good; ask for a higher "
        "precision, or for keep_share"
        for language, result in results.items()
        if result["agreement"]["kept"] == result["agreement"]["documents"]
    ]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    config = strict_model(TrainQualityConfig, load_yaml(args.config), args.config)
    stage, labels = open_stage(args, config)
    if not stage.finished:
        run(stage, labels, config)
    stage.report("used")
    trained = load_json(stage.output / "manifest.json")["results"]["languages"]
    print("\n".join([table(trained), *notes(trained)]))
    print(f"next: set `quality: {{model: {stage.output.absolute()}}}` in the configuration of data_prep/curate.py")


if __name__ == "__main__":
    raise SystemExit(main())
