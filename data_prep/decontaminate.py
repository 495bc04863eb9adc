#!/usr/bin/env python3
"""Remove documents that contain parts of evaluation sets, before they are tokenized.

An item of an evaluation set is all text of a record: question, choices, answer. A document is removed when it has a sequence
of words (in Chinese of characters) from an item, or a shorter item as a whole. Sequences that many items have are templates,
and sequences that many documents have are no item's own; both do not count.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from data_prep.core.command import job_parser
from data_prep.core.stage import Stage
from data_prep.core.tally import merged, with_totals
from data_prep.decontamination.grams import EXAMPLES, EvaluationPart, merge_items, read_items
from data_prep.decontamination.items import evaluation_files, evaluation_parts
from data_prep.decontamination.matching import clean_documents
from data_prep.decontamination.settings import DecontaminateConfig
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import sha256
from recipe.base.strict import load_json, load_yaml, strict_model


def read_sets(
    stage: Stage, evaluation: Path, files: dict[str, Path], grams: Path, config: DecontaminateConfig
) -> dict[str, Any]:
    """The phases that read evaluation sets; returns what the manifest says of them.

    Raises:
        UserError: they hold no items, or none that can be looked for.
    """
    parts = [
        EvaluationPart(name, number, part)
        for number, (name, path) in enumerate(files.items())
        for part in evaluation_parts(path)
    ]
    read = stage.run_tasks("items", partial(read_items, config=config, folder=grams), parts)
    counts = merged(result["counts"] for result in read)
    items, short = (sum(counts.get(name, {}).values()) for name in ("items", "items_too_short"))
    if not items:
        raise UserError(f"--evaluation {evaluation} holds no items; give evaluation sets")
    if short == items:
        raise UserError(
            f"none of the {items:,} items of --evaluation {evaluation} can be looked for: their text, without ignored_fields, has "
            f"fewer than {config.min_item_words} words (in Chinese {config.min_item_characters} characters); correct --config or "
            "give other evaluation sets"
        )
    (templates,) = stage.run_tasks("ngrams", partial(merge_items, config=config, folder=grams), [list(files)])
    examples = [
        {"set": name, "text": text} for result in read for name, texts in result["too_short"].items() for text in texts
    ]
    return {**counts, **templates, "too_short_examples": examples[:EXAMPLES]}


def tell_what_did_not_count(output: Path) -> None:
    """Print the items that could not be looked for, and the sequences that are too frequent, as the manifest has them."""
    manifest = load_json(output / "manifest.json")
    results, parameters = manifest["results"], manifest["parameters"]
    items, short = (sum(results[name].values()) for name in ("items", "items_too_short"))
    if short:
        such_as = ", ".join(f"{example['text']!r} of {example['set']}" for example in results["too_short_examples"])
        print(
            f"  note: {short:,} of {items:,} items cannot be checked: they have fewer than {parameters['min_item_words']} words "
            f"(in Chinese {parameters['min_item_characters']} characters)" + (f", such as {such_as}" if such_as else "")
        )
    if results.get("frequent_ngrams"):
        such_as = "; ".join(
            f"{example['text']!r} in {example['documents']:,}" for example in results["frequent_examples"]
        )
        print(
            f"  note: {results['frequent_ngrams']:,} sequences of items do not count, since more than "
            f"{parameters['max_corpus_documents']:,} documents have them: {such_as}"
        )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/decontaminate.py --input work/deduped --evaluation eval_sets/ --output work/clean",
        "decontaminate.yaml",
    )
    parser.add_argument(
        "--evaluation",
        required=True,
        type=Path,
        metavar="DIR",
        help="evaluation sets: a file or a folder of JSON lines, JSON arrays or parquet",
    )
    args = parser.parse_args(argv)
    config = strict_model(DecontaminateConfig, load_yaml(args.config), args.config)
    paths, not_read = evaluation_files(args.evaluation)
    root = args.evaluation if args.evaluation.is_dir() else args.evaluation.parent
    files = {str(path.relative_to(root)): path for path in paths}
    hashes = {name: sha256(path) for name, path in files.items()}
    stage = Stage.of("decontaminate", args, {**config.model_dump(mode="json"), "evaluation": hashes})
    if not_read:
        names = ", ".join(str(path.relative_to(root)) for path in not_read[:5])
        print(
            f"note: {len(not_read):,} files of --evaluation are not read, such as {names}; convert those that are evaluation "
            "sets to JSON lines or parquet"
        )
    if not stage.finished:
        grams = stage.shuffle("ngrams").folder
        of_sets = read_sets(stage, args.evaluation, files, grams, config)
        results, frequent = clean_documents(stage, grams, config)
        counts = with_totals(merged(result["groups"] for result in results))
        stage.must_have_documents(counts["in"])
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        by_set = merged(result["documents_by_set"] for result in results)
        stage.finish(counts=counts, written=results, results={**of_sets, **frequent, "documents_by_set": by_set})
    stage.report("kept")
    tell_what_did_not_count(stage.output)
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
