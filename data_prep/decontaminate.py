#!/usr/bin/env python3
"""Remove documents that contain parts of evaluation sets, before they are tokenized.

An evaluation item is every text of a record: question, choices, answer. A document that shares an n-gram of
words (characters in Chinese) with an item goes. N-grams of many items are templates and do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from data_prep.characters import native
from data_prep.command import job_parser
from data_prep.documents import Document, document_files, parts_of, records, write_documents, write_part
from data_prep.exchange import column, read_table, write_table
from data_prep.stage import Stage, for_documents
from data_prep.tally import Tally, merged, with_totals
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import sha256
from recipe.base.strict import load_yaml, strict_model


class DecontaminateConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ngram_words: int = Field(13, gt=1)
    ngram_characters: int = Field(20, gt=1)
    template_items: int = Field(10, gt=1)
    max_shared: int = Field(0, ge=0)
    ignored_fields: list[str] = []


def texts_of(record: Any, ignored: frozenset[str]) -> Iterator[str]:
    """Every string in a record of an evaluation set, however deep, but for those under ignored keys."""
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict):
        for key, value in record.items():
            if key not in ignored:
                yield from texts_of(value, ignored)
    elif isinstance(record, list):
        for value in record:
            yield from texts_of(value, ignored)


def is_han(text: str) -> bool:
    han, kana, _, letters = native.script_counts(text)
    return 2 * (han + kana) >= letters > 0


class ItemGrams:
    """The n-grams of evaluation sets, words and characters apart, each with the set that it comes from."""

    def __init__(self, config: DecontaminateConfig):
        self._config = config
        self._words = native.Signer(1, [], [])
        self._sets: list[str] = []
        self._found: dict[bool, dict[int, tuple[int, int]]] = {False: {}, True: {}}  # hash -> items, set
        self.items, self.short = Counter[str](), Counter[str]()

    def add_file(self, path: Path, name: str) -> None:
        self._sets.append(name)
        ignored = frozenset(self._config.ignored_fields)
        signers = {han: native.Signer(self.length(han), [], []) for han in (False, True)}
        for part in parts_of(path):
            for raw in records(part):
                try:
                    record = orjson.loads(raw) if isinstance(raw, bytes) else raw
                except orjson.JSONDecodeError as error:
                    raise UserError(
                        f"{path} has a line that is not JSON ({error.msg}); mend the evaluation set"
                    ) from None
                self.items[name] += 1
                self.short[name] += not self._add(record, ignored, signers)

    def _add(self, record: Any, ignored: frozenset[str], signers: dict[bool, Any]) -> bool:
        """Add one item's n-grams; False where it has fewer words than n, which could not be told from chance."""
        text = "\n".join(texts_of(record, ignored))
        han = is_han(text)
        if self._words.shingles(text).size < self.length(han):
            return False
        for value in set(signers[han].shingles(text).tolist()):
            items, first = self._found[han].get(value, (0, len(self._sets) - 1))
            self._found[han][value] = (items + 1, first)
        return True

    def length(self, han: bool) -> int:
        return self._config.ngram_characters if han else self._config.ngram_words

    def write(self, folder: Path) -> dict[str, int]:
        """Write the n-grams that are no templates, sorted, for `Matcher`. Returns how many were templates."""
        templates = {}
        for han, name in ((False, "words"), (True, "characters")):
            kept = sorted((h, s) for h, (n, s) in self._found[han].items() if n < self._config.template_items)
            hashes, sets = np.array([h for h, _ in kept], np.uint64), [self._sets[s] for _, s in kept]
            write_table(
                folder / f"{name}.arrow", pa.table({"hash": pa.array(hashes), "set": pa.array(sets, pa.string())})
            )
            templates[name] = len(self._found[han]) - len(kept)
        return templates


class Matcher:
    """Looks for evaluation n-grams in documents."""

    def __init__(self, folder: Path, config: DecontaminateConfig):
        self._tables = {
            han: read_table(folder / name) for han, name in ((False, "words.arrow"), (True, "characters.arrow"))
        }
        lengths = {False: config.ngram_words, True: config.ngram_characters}
        self._hashes = {han: column(table, "hash") for han, table in self._tables.items()}
        self._overlaps = {han: native.Overlap(lengths[han], hashes) for han, hashes in self._hashes.items()}

    def find(self, text: str) -> Counter[str]:
        """How many different n-grams of each evaluation set the text holds."""
        found: Counter[str] = Counter()
        for han, overlap in self._overlaps.items():
            shared = np.unique(overlap.find(text))
            if shared.size:
                places = np.searchsorted(self._hashes[han], shared)
                found.update(self._tables[han]["set"].take(pa.array(places)).to_pylist())
        return found


def clean_part(
    documents: Iterable[Document], number: int, *, grams: Path, config: DecontaminateConfig, output: Path
) -> dict[str, Any]:
    matcher, tally = Matcher(grams, config), Tally()
    sets: Counter[str] = Counter()
    removed: list[Document] = []

    def kept() -> Iterator[Document]:
        for document in documents:
            found = matcher.find(document["text"])
            reason = "contaminated" if found.total() > config.max_shared else None
            size = len(document["text"].encode())
            tally.add(str(document.get("lang", "unknown")), str(document.get("source", "unknown")), size, reason, size)
            if reason is None:
                yield document
            else:
                sets.update(found.keys())
                removed.append({**document, "dropped": reason, "evaluation_ngrams": dict(sorted(found.items()))})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", removed)
    return {"groups": tally.groups(), "documents_by_set": dict(sets), "files": written.below(output)}


def read_items(files: dict[str, Path], number: int, *, config: DecontaminateConfig, folder: Path) -> dict[str, Any]:
    """N-grams of all evaluation files into `folder`."""
    grams = ItemGrams(config)
    for name, path in files.items():
        grams.add_file(path, name)
    templates = grams.write(folder)
    return {"items": dict(grams.items), "items_without_text": dict(grams.short), "template_ngrams": templates}


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
        help="evaluation sets, a .jsonl(.gz|.zst) or .parquet each",
    )
    args = parser.parse_args(argv)
    config = strict_model(DecontaminateConfig, load_yaml(args.config), args.config)
    if not args.evaluation.exists():
        raise UserError(f"--evaluation {args.evaluation} does not exist; give a file or folder of evaluation sets")
    root = args.evaluation if args.evaluation.is_dir() else args.evaluation.parent
    files = {str(path.relative_to(root)): path for path in document_files(args.evaluation)}
    hashes = {name: sha256(path) for name, path in files.items()}
    stage = Stage.of("decontaminate", args, {**config.model_dump(mode="json"), "evaluation": hashes})
    if not stage.finished:
        grams = stage.exchange("ngrams").folder
        (items,) = stage.run_tasks("items", partial(read_items, config=config, folder=grams), [files])
        if not items["items"]:
            raise UserError(f"--evaluation {args.evaluation} holds no items; give evaluation sets")
        work = partial(clean_part, grams=grams, config=config, output=stage.output)
        results = stage.run_tasks("documents", for_documents(stage, work=work), stage.parts)
        counts = with_totals(merged(result["groups"] for result in results))
        stage.must_have_documents(counts["in"])
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        by_set = merged(result["documents_by_set"] for result in results)
        stage.finish(counts=counts, written=results, results={**items, "documents_by_set": by_set})
    stage.report()


if __name__ == "__main__":
    raise SystemExit(main())
