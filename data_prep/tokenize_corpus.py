#!/usr/bin/env python3
"""Tokenize documents into packed .bin/.idx shards (Megatron IndexedDataset), one series per source and split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from data_prep.command import job_parser
from data_prep.documents import Document
from data_prep.stage import Stage, for_documents
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import sha256
from recipe.base.strict import load_json, load_yaml, strict_model
from recipe.data.indexed import ShardWriter, token_dtype

BATCH = 256  # documents encoded together


class TokenizeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source_by: Literal["lang", "source", "both"] = "lang"
    held_out: float = Field(0.005, ge=0, lt=1)


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    """Checksum, vocabulary size and end-of-document id of a tokenizer folder.

    Raises:
        UserError: no tokenizer there, or one without an end-of-document (eos) token.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"--tokenizer {folder} holds no tokenizer.json; give the output folder of train_tokenizer.py")
    tokenizer = _load(folder)
    eod = load_json(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(eod, dict):
        eod = eod["content"]
    eod_id = tokenizer.token_to_id(eod) if eod else None
    if eod_id is None:
        raise UserError(f"--tokenizer {folder} names no eos_token in its vocabulary; documents could not be told apart")
    return {"sha256": sha256(path), "vocab_size": tokenizer.get_vocab_size(), "eod_id": eod_id}


def is_held_out(identity: str, share: float) -> bool:
    """Whether a document is kept from training; depends on its id alone, so a larger crawl keeps the choice."""
    return xxhash.xxh3_64_intdigest(identity.encode(), seed=20_260_101) < share * 2**64


def source_name(document: Document, source_by: str) -> str:
    """Name of the shard series that a document goes to, safe as a folder name."""
    fields = {"lang": ("lang",), "source": ("source",), "both": ("lang", "source")}[source_by]
    names = (re.sub(r"[^\w.-]+", "_", str(document.get(field, "unknown"))).strip("._-") for field in fields)
    return "-".join(name or "unnamed" for name in names)


def tokenize_file(
    documents: Iterable[Document],
    number: int,
    *,
    config: TokenizeConfig,
    facts: dict[str, Any],
    tokenizer: Path,
    output: Path,
) -> dict[str, Any]:
    """One input file into one shard per source and split."""
    encoder = _load(tokenizer)
    shards: dict[tuple[str, str], dict[str, Any]] = {}
    writers: dict[tuple[str, str], ShardWriter] = {}
    documents = iter(documents)
    while batch := list(islice(documents, BATCH)):
        for document, encoding in zip(batch, encoder.encode_batch_fast([d["text"] for d in batch]), strict=True):
            split = "held_out" if is_held_out(document["id"], config.held_out) else "train"
            key = (split, source_name(document, config.source_by))
            if key not in writers:
                prefix = Path("shards") / split / key[1] / f"{number:05d}"
                writers[key] = ShardWriter(output / prefix, token_dtype(facts["vocab_size"]))
                shards[key] = {
                    "prefix": str(prefix),
                    "split": split,
                    "source": key[1],
                    "documents": 0,
                    "tokens": 0,
                    "text_bytes": 0,
                }
            ids = np.array([*encoding.ids, facts["eod_id"]])
            writers[key].add_document(ids)
            shards[key]["documents"] += 1
            shards[key]["tokens"] += ids.size
            shards[key]["text_bytes"] += len(document["text"].encode())
    for key, writer in writers.items():
        writer.close()
        shards[key]["sha256"] = {suffix: sha256(Path(f"{writer.prefix}{suffix}")) for suffix in (".bin", ".idx")}
    return {"shards": [shards[key] for key in sorted(shards)]}


@cache
def _load(folder: Path) -> Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _totals(shards: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Documents, tokens and text bytes by split and source."""
    totals: dict[str, dict[str, dict[str, int]]] = {}
    for shard in shards:
        entry = totals.setdefault(shard["split"], {}).setdefault(
            shard["source"], {"documents": 0, "tokens": 0, "text_bytes": 0}
        )
        for name in entry:
            entry[name] += shard[name]
    return totals


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/tokenize_corpus.py --input work/deduped --tokenizer work/tokenizer --output work/tokens",
        "tokenize.yaml",
    )
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder written by train_tokenizer.py")
    args = parser.parse_args(argv)
    config = strict_model(TokenizeConfig, load_yaml(args.config), args.config)
    facts = tokenizer_facts(args.tokenizer)
    stage = Stage(
        "tokenize", args.input, args.output, {**config.model_dump(mode="json"), "tokenizer": facts}, args.max_bad
    )
    if not stage.finished:
        work = partial(tokenize_file, config=config, facts=facts, tokenizer=args.tokenizer, output=stage.output)
        results = stage.run_tasks("shards", for_documents(stage, work=work), stage.inputs, args.workers)
        shards = [shard for result in results for shard in result["shards"]]
        documents = sum(shard["documents"] for shard in shards)
        if documents == 0:
            raise UserError(f"--input {args.input} holds no documents; give files with at least one")
        bad = sum(result["bad_records"] for result in results)
        counts = {"in": documents, "out": documents, "bad_records": bad, "totals": _totals(shards)}
        stage.finish(counts=counts, files=[], results={"tokenizer": facts, "shards": shards})
    stage.report()
    for split, sources in load_json(stage.output / "manifest.json")["counts"]["totals"].items():
        for source, total in sources.items():
            rate = total["text_bytes"] / max(1, total["tokens"])
            print(f"  {split:<9} {source:<12} {total['tokens']:>12,} tokens  {rate:.2f} bytes/token")


if __name__ == "__main__":
    raise SystemExit(main())
