#!/usr/bin/env python3
"""Measure a tokenizer on documents: bytes per token by language and source, unused tokens, text that encoding changes.

With --compare other tokenizers, such as those of Qwen or Llama, are measured on the same documents.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.core.command import job_parser
from data_prep.core.partial_files import partial_path
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import merged
from data_prep.curation.characters import native
from data_prep.documents.reading import Document
from data_prep.tokenization.encoder import Encoder, ReferenceEncoder, batches, load_encoder
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import replacing, sha256, write_text
from recipe.data.token_folder import tokenizer_file


class OtherTokenizer:
    """A tokenizer that transformers loads, for those without a tokenizer.json as well.

    Raises:
        UserError: from the constructor, transformers does not load it.
    """

    name = "transformers"

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of whatever class its code raises
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"transformers loads no tokenizer from {folder}: {reason}; fetch it whole") from None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return np.concatenate([np.asarray(ids, np.uint32) for ids in encoded]), np.cumsum([len(ids) for ids in encoded])


@cache
def load_tokenizer(folder: Path) -> Encoder:
    return load_encoder(folder)[0] if (folder / "tokenizer.json").exists() else OtherTokenizer(folder)


def measure_part(documents: Iterable[Document], number: int, *, folders: list[Path], used: Path) -> dict[str, Any]:
    """Counts per tokenizer, language and source; the ids that our tokenizer used, as used/NNNNN.npy."""
    counts: dict[str, Any] = {}
    ours = load_encoder(folders[0])[0].reference
    used_ids = np.zeros(0, np.uint32)  # not a flag for each id: where they have holes, the largest may be any number
    for batch in batches(documents):
        texts = [unicodedata.normalize("NFC", document["text"]) for document in batch]
        for place, folder in enumerate(folders):
            ids, ends = load_tokenizer(folder).encode(texts)
            starts = np.concatenate(([0], ends[:-1]))
            for document, text, start, end in zip(batch, texts, starts.tolist(), ends.tolist(), strict=True):
                group = counts.setdefault(str(folder), {}).setdefault(str(document.get("lang", "unknown")), {})
                group = group.setdefault(
                    str(document.get("source", "unknown")),
                    {"documents": 0, "bytes": 0, "characters": 0, "tokens": 0, "round_trip_failures": 0},
                )
                for name, value in (
                    ("documents", 1),
                    ("bytes", len(text.encode())),
                    ("characters", len(text)),
                    ("tokens", end - start),
                ):
                    group[name] += value
                if place == 0:
                    group["round_trip_failures"] += ours.decode(ids[start:end]) != text
            if place == 0:
                used_ids = np.union1d(used_ids, ids)
    path = used / f"{number:05d}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, partial_path(path)) as temporary, open(temporary, "wb") as raw:
        np.save(raw, used_ids)
    return {"counts": counts}


def vocabulary_facts(reference: ReferenceEncoder, used: Path) -> dict[str, Any]:
    """Tokens, their count per script, and how many no document used, by the files that `measure_part` wrote to `used`."""
    used_ids: set[int] = set()
    for path in used.glob("?????.npy"):
        used_ids.update(np.load(path).tolist())
    special, vocabulary = reference.special_tokens, reference.vocabulary
    scripts: Counter[str] = Counter()
    for token, number in vocabulary.items():
        scripts["special" if token in special else _script(reference.decode(np.array([number])))] += 1
    unused = sum(number not in used_ids for token, number in vocabulary.items() if token not in special)
    return {"vocab_size": len(vocabulary), "by_script": dict(sorted(scripts.items())), "unused": unused}


def _script(text: str) -> str:
    if "\ufffd" in text:
        return "bytes"
    han, kana, latin, letters = native.script_counts(text)
    if letters == 0:
        return "number" if any(c.isdigit() for c in text) else "blank" if text.isspace() else "punctuation"
    return "han" if han else "kana" if kana else "latin" if latin == letters else "other_letters"


def table(counts: dict[str, Any]) -> str:
    lines = [f"{'tokenizer':<28} {'lang':<8} {'source':<18} {'bytes/token':>11} {'tokens/char':>11} {'documents':>10}"]
    for name, languages in counts.items():
        for lang, sources in languages.items():
            for source, n in {"(all)": merged(sources.values()), **sources}.items():
                rate, fertility = n["bytes"] / max(1, n["tokens"]), n["tokens"] / max(1, n["characters"])
                lines.append(
                    f"{name[-28:]:<28} {lang:<8} {source:<18} {rate:>11.3f} {fertility:>11.4f} {n['documents']:>10,}"
                )
    return "\n".join(lines)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/evaluate_tokenizer.py --input work/deduped --tokenizer work/tokenizer --output work/fertility",
    )
    parser.add_argument("--tokenizer", required=True, type=Path, help="tokenizer: output folder of train_tokenizer.py")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="folder of another tokenizer that transformers loads; may be repeated",
    )
    args = parser.parse_args(argv)
    folders = [args.tokenizer, *args.compare]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a tokenizer, which holds tokenizer.json")
    path = tokenizer_file(args.tokenizer)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("--compare names a tokenizer twice; name each once")
    reference = load_encoder(args.tokenizer)[0].reference
    reference.check()
    for folder in args.compare:
        load_tokenizer(folder)
    parameters = {"tokenizer": sha256(path), "compare": [str(f) for f in args.compare]}
    stage = Stage.of("evaluate_tokenizer", args, parameters)
    if not stage.finished:
        used = stage.shuffle("used").folder
        work = partial(measure_part, folders=folders, used=used)
        results = stage.run_tasks("measure", for_documents(stage, work=work), stage.parts)
        found = merged(result["counts"] for result in results)
        stage.must_have_documents(len(found))
        ours = merged(group for sources in found[str(args.tokenizer)].values() for group in sources.values())
        bad = sum(result["bad_records"] for result in results)
        counts = {
            "in": ours["documents"],
            "out": ours["documents"],
            "bad_records": bad,
            "round_trip_failures": ours["round_trip_failures"],
        }
        write_text(stage.output / "table.txt", table(found) + "\n")
        stage.finish(
            counts=counts,
            files=[stage.output / "table.txt"],
            results={"fertility": found, "vocabulary": vocabulary_facts(reference, used)},
        )
    stage.report("measured")
    manifest = json.loads((stage.output / "manifest.json").read_text(encoding="utf-8"))
    vocabulary = manifest["results"]["vocabulary"]
    print((stage.output / "table.txt").read_text(encoding="utf-8"), end="")
    print(f"the table is in {stage.output / 'table.txt'}")
    print(
        "vocabulary "
        + ", ".join(f"{n / vocabulary['vocab_size']:.1%} {name}" for name, n in vocabulary["by_script"].items())
    )
    print(f"unused     {vocabulary['unused']:,} of {vocabulary['vocab_size']:,} tokens are in none of the documents")
    print(f"round trip {manifest['counts']['round_trip_failures']:,} documents are changed by encoding and decoding")
    stage.tell_next(args.tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
