#!/usr/bin/env python3
"""Remove exact and near duplicates; of each cluster the longest document stays, then the smallest id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from data_prep.command import job_parser
from data_prep.documents import Document, read_documents, write_documents
from data_prep.minhash import MinHash, candidate_pairs, connected_components
from data_prep.stage import Stage, for_documents, merged_counts
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.strict import load_yaml, strict_model


class DedupConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ngram: int = Field(5, gt=0)
    bands: int = Field(14, gt=0)
    rows: int = Field(8, gt=0)
    threshold: float = Field(0.72, gt=0, le=1)
    seed: int = 1


def exact_key(text: str) -> bytes:
    """Equal for texts that differ in case and blanks only."""
    return xxhash.xxh3_128_digest(re.sub(r"\s+", " ", text.lower()).strip().encode())


def sign_file(documents: Iterable[Document], number: int, *, config: DedupConfig, output: Path) -> dict[str, Any]:
    """Signatures, lengths and ids of one file's documents, as tasks/signatures/NNNNN.npz."""
    minhash = MinHash(config.ngram, config.bands * config.rows, config.seed)
    signatures, exact, lengths, ids = [], [], [], []
    for document in documents:
        signatures.append(minhash.signature(document["text"]))
        exact.append(exact_key(document["text"]))
        lengths.append(len(document["text"]))
        ids.append(document["id"])
    path = _signature_path(output, number)
    partial_path = path.with_suffix(".partial.npz")
    np.savez(
        partial_path,
        signatures=np.array(signatures, np.uint32).reshape(len(ids), config.bands * config.rows),
        exact=np.array(exact, "V16"),
        lengths=np.array(lengths, np.int64),
        ids=np.array(ids, dtype=object).astype("U") if ids else np.empty(0, "U1"),
    )
    partial_path.replace(path)
    return {"documents": len(ids)}


def find_duplicates(output: Path, files: int, config: DedupConfig) -> dict[str, Any]:
    """Clusters over all files.

    Returns:
        `drop`: for each file, a list of [place, reason]; `clusters`: kept id and dropped ids of each.
    """
    parts = [np.load(_signature_path(output, number)) for number in range(files)]
    signatures = np.concatenate([part["signatures"] for part in parts])
    exact = np.concatenate([part["exact"] for part in parts])
    lengths = np.concatenate([part["lengths"] for part in parts])
    ids = np.concatenate([part["ids"] for part in parts])
    file_of = np.repeat(np.arange(files), [part["lengths"].size for part in parts])
    place_of = np.concatenate([np.arange(part["lengths"].size) for part in parts])

    _, exact_group = np.unique(exact, return_inverse=True)
    component = connected_components(ids.size, _duplicate_pairs(signatures, exact_group, config))
    # Best first within a component: longest, then smallest id, then first read.
    order = np.lexsort((np.arange(ids.size), ids, -lengths, component))
    keeper_of = {int(component[i]): int(i) for i in reversed(order.tolist())}

    drop: list[list[Any]] = [[] for _ in range(files)]
    clusters: dict[int, dict[str, Any]] = {}
    for i in order.tolist():
        keeper = keeper_of[int(component[i])]
        if i == keeper:
            continue
        reason = "exact_duplicate" if exact_group[i] == exact_group[keeper] else "near_duplicate"
        drop[int(file_of[i])].append([int(place_of[i]), reason])
        cluster = clusters.setdefault(keeper, {"kept": str(ids[keeper]), "dropped": []})
        cluster["dropped"].append([str(ids[i]), reason])
    return {"drop": drop, "clusters": [clusters[keeper] for keeper in sorted(clusters)]}


def write_survivors(file, number: int, *, drop: list[Any], output: Path) -> dict[str, Any]:
    """Copy one file without the documents that `drop` names by place."""
    reasons = dict(map(tuple, drop[number]))
    counts: dict[str, Any] = {"in": 0, "out": 0, "dropped": {}, "by_language": {}}

    def survivors():
        # Places count documents, so the records that the first pass set aside are passed over.
        for place, document in enumerate(read_documents(file.path, lambda bad: None)):
            tally = counts["by_language"].setdefault(
                document.get("lang", "unknown"), {"in": 0, "out": 0, "dropped": {}}
            )
            for count in (counts, tally):
                count["in"] += 1
                if place in reasons:
                    count["dropped"][reasons[place]] = count["dropped"].get(reasons[place], 0) + 1
                else:
                    count["out"] += 1
            if place not in reasons:
                yield document

    write_documents(output / "documents" / f"{number:05d}.jsonl.zst", survivors())
    return {"counts": counts}


def _duplicate_pairs(signatures: np.ndarray, exact_group: np.ndarray, config: DedupConfig):
    order = np.argsort(exact_group, kind="stable")
    same = exact_group[order[1:]] == exact_group[order[:-1]]
    yield order[:-1][same], order[1:][same]
    for left, right in candidate_pairs(signatures, config.bands):
        alike = np.array(
            [(signatures[i] == signatures[j]).mean() >= config.threshold for i, j in zip(left, right, strict=True)],
            bool,
        )
        yield left[alike], right[alike]


def _signature_path(output: Path, number: int) -> Path:
    return output / "signatures" / f"{number:05d}.npz"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(__doc__, "python data_prep/dedup.py --input work/curated --output work/deduped", "dedup.yaml")
    args = parser.parse_args(argv)
    config = strict_model(DedupConfig, load_yaml(args.config), args.config)
    stage = Stage("dedup", args.input, args.output, config.model_dump(mode="json"), args.max_bad)
    if not stage.finished:
        (stage.output / "signatures").mkdir(exist_ok=True)
        sign = for_documents(stage, work=partial(sign_file, config=config, output=stage.output))
        signed = stage.run_tasks("signatures", sign, stage.inputs, args.workers)
        if sum(result["documents"] for result in signed) == 0:
            raise UserError(f"--input {args.input} holds no documents; give files with at least one")
        found = find_duplicates(stage.output, len(stage.inputs), config)
        write_json(stage.output / "clusters.json", found["clusters"])
        survive = partial(write_survivors, drop=found["drop"], output=stage.output)
        results = stage.run_tasks("survivors", survive, stage.inputs, args.workers)
        counts = merged_counts(results, "counts")
        counts["clusters"] = len(found["clusters"])
        counts["bad_records"] = sum(result["bad_records"] for result in signed)
        stage.finish(counts=counts, files=sorted((stage.output / "documents").iterdir()))
    stage.report()


if __name__ == "__main__":
    raise SystemExit(main())
