#!/usr/bin/env python3
"""Write the embedded default corpus: documents of two languages from small grammars, with planted defects.

The grammars give each document a topic and a place that its sentences return to, so that a language model
has word order, agreement and context to learn. Exact duplicates, near duplicates and junk are planted, and
listed in planted.json, so that the later jobs' catches can be counted.
"""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path

from data_prep.core.following import following_command, is_driven
from data_prep.documents.reading import Document, write_documents
from data_prep.grammars.grammar import GRAMMARS, Grammar
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json


def make_corpus(grammar: Grammar, documents: int, seed: int) -> tuple[list[Document], dict[str, dict[str, str]]]:
    """Documents of one language in random order, and what was planted: id -> kind (and what it copies)."""
    # hash() differs between processes; crc32 does not.
    rng = random.Random(seed * 1_000_003 + zlib.crc32(grammar.lang.encode()))
    made: list[Document] = []
    planted: dict[str, dict[str, str]] = {}

    def add(text: str, **plant: str) -> None:
        identity = f"synthetic/{grammar.lang}/{len(made):06d}"
        made.append({"id": identity, "text": text, "lang": grammar.lang, "source": f"synthetic-{grammar.lang}"})
        if plant:
            planted[identity] = plant

    for _ in range(documents):
        add(grammar.document(rng))
    for _ in range(documents // 20):
        original = made[rng.randrange(documents)]
        add(original["text"].replace("\n\n", "\n\n\n"), kind="exact_duplicate", of=original["id"])
        original = made[rng.randrange(documents)]
        add(grammar.near_copy(rng, original["text"]), kind="near_duplicate", of=original["id"])
    for _ in range(documents // 10):
        kind, text = grammar.junk(rng)
        add(text, kind=f"junk: {kind}")
    rng.shuffle(made)
    return made, planted


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python data_prep/synthetic_corpus.py --output work/raw --documents 2000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, help="a new or empty folder")
    parser.add_argument(
        "--documents",
        type=positive_int,
        default=3000,
        help="documents without defects, in each language (default: %(default)s)",
    )
    parser.add_argument(
        "--languages",
        default="en,zh",
        help=f"which of {', '.join(sorted(GRAMMARS))} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the generator; another one gives other documents (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.documents < 20:
        raise UserError(
            f"--documents {args.documents} is too few, since defects are planted among them; give at least 20"
        )
    languages = args.languages.split(",")
    if unknown := sorted(set(languages) - GRAMMARS.keys()):
        raise UserError(
            f"--languages: there is no grammar of {', '.join(unknown)}; name some of {', '.join(sorted(GRAMMARS))}"
        )
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"--output {args.output} exists and is not an empty folder; choose another")
    planted: dict[str, dict[str, str]] = {}
    for grammar in map(GRAMMARS.__getitem__, languages):
        made, plants = make_corpus(grammar, args.documents, args.seed)
        planted.update(plants)
        half = len(made) // 2
        for part, documents in enumerate((made[:half], made[half:])):
            write_documents(args.output / f"{grammar.lang}-{part:02d}.jsonl.gz", documents)
        print(f"{grammar.lang}: {len(made):,} documents, {len(plants):,} of them planted defects")
    write_json(args.output / "planted.json", planted)
    print(f"corpus -> {args.output}; the planted defects are listed in {args.output / 'planted.json'}")
    if not is_driven(args.output):
        print(f"next: {following_command('synthetic_corpus', args.output)}")


if __name__ == "__main__":
    raise SystemExit(main())
