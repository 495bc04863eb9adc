#!/usr/bin/env python3
"""Order the documents of a token folder so that training sequences of one length hold them whole wherever they fit.

The result is a token folder too. Training cuts its sequences back to back, so it is the order of documents that decides which
are cut. Each shard is packed by itself. Held-out documents stay as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.core.command import job_parser
from data_prep.core.stage import Stage
from data_prep.core.tally import merged
from data_prep.packing.selection import packing_tasks, shares_taken, taken, tokens_by_range
from data_prep.packing.sequences import order_of, packing_facts, sentence_of
from data_prep.packing.settings import PackConfig
from data_prep.tokenization.shards import totals_of
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import replacing, sha256
from recipe.base.strict import load_json, load_yaml, strict_model
from recipe.data.indexed import SUFFIXES, Shard, ShardWriter, token_dtype
from recipe.data.token_folder import TokenFolder

CHUNK_TOKENS = 1 << 22  # that are put in order together: 16 MB


def count_shard(shard: dict[str, Any], number: int, *, folder: Path, config: PackConfig) -> dict[str, Any]:
    """Tokens of a shard in each range of lengths, and documents that are too short for any."""
    lengths = _checked(folder, shard, (".idx",)).lengths
    bounds = list(config.lengths_of(shard["source"]))
    return {"tokens": tokens_by_range(lengths, bounds), "too_few_tokens": int((lengths < bounds[0]).sum())}


def pack_shards(
    task: dict[str, Any], number: int, *, folder: Path, output: Path, vocab_size: int, seq_length: int
) -> dict[str, Any]:
    """One shard of the result: the documents that are taken of one or more shards, packed."""
    shards = [_checked(folder, shard) for shard in task["shards"]]
    chosen = [taken(shard.lengths, task["bounds"], task["shares"]) for shard in shards]
    lengths = np.concatenate([shard.lengths[c] for shard, c in zip(shards, chosen, strict=True)]).astype(np.int64)
    order = order_of(lengths, seq_length)
    prefix = Path("shards") / "train" / task["source"] / f"{task['partition']:05d}"
    writer = ShardWriter(output / prefix, token_dtype(vocab_size), vocab_size)
    documents = _views(shards, chosen)
    for place in _chunks(lengths[order]):
        part = order[place]
        writer.add_documents(np.concatenate([documents[i] for i in part.tolist()]), lengths[part].tolist())
    writer.close()
    return {
        "prefix": str(prefix),
        "split": "train",
        "source": task["source"],
        "documents": int(lengths.size),
        "text_bytes": _text_bytes(task["shards"], chosen, shards),
        "tokens": writer.num_tokens,
        "sha256": {suffix: sha256(output / f"{prefix}{suffix}") for suffix in SUFFIXES},
        "packing": packing_facts(lengths, order, seq_length),
    }


def copy_shard(shard: dict[str, Any], number: int, *, folder: Path, output: Path) -> dict[str, Any]:
    """A held-out shard as it is."""
    _checked(folder, shard)
    (output / shard["prefix"]).parent.mkdir(parents=True, exist_ok=True)
    for suffix in SUFFIXES:
        with replacing(output / f"{shard['prefix']}{suffix}") as temporary:
            shutil.copyfile(folder / f"{shard['prefix']}{suffix}", temporary)
    return shard


def _checked(folder: Path, shard: dict[str, Any], suffixes: Sequence[str] = SUFFIXES) -> Shard:
    """A shard of the input, its files compared with its manifest.

    Raises:
        UserError: one of them is not what the manifest lists.
    """
    opened = Shard(folder / shard["prefix"])
    for suffix in suffixes:
        path = folder / f"{shard['prefix']}{suffix}"
        if sha256(path) != shard["sha256"][suffix]:
            raise UserError(f"{path} is not what {folder / 'manifest.json'} lists; restore it or tokenize again")
    return opened


def _views(shards: Sequence[Shard], chosen: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tokens of the documents that are taken, without copies of them."""
    views = []
    for shard, mask in zip(shards, chosen, strict=True):
        tokens = np.asarray(shard.tokens)  # slices of a memmap cost several times as much
        ends = np.cumsum(shard.lengths, dtype=np.int64)[mask]
        starts = ends - shard.lengths[mask]
        views += [tokens[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return views


def _chunks(lengths: np.ndarray) -> Iterator[slice]:
    """Places of documents that together have about `CHUNK_TOKENS`."""
    ends = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        begun = int(ends[start] - lengths[start])
        stop = max(start + 1, int(np.searchsorted(ends, begun + CHUNK_TOKENS, side="right")))
        yield slice(start, stop)
        start = stop


def _text_bytes(entries: Sequence[dict[str, Any]], chosen: Sequence[np.ndarray], shards: Sequence[Shard]) -> int:
    """Of the documents that are taken; where these are some of a shard, by their share of its tokens."""
    return sum(
        round(entry["text_bytes"] * int(shard.lengths[mask].sum(dtype=np.int64)) / entry["tokens"])
        for entry, mask, shard in zip(entries, chosen, shards, strict=True)
    )


def check_sources(config: PackConfig, tokens: TokenFolder) -> None:
    """Refuse sources that the folder has no training shards of.

    Raises:
        UserError: names them, and those that there are.
    """
    there = tokens.sizes("train")
    unknown = sorted(set(config.sources) - set(there))
    if unknown:
        raise UserError(
            f"sources names {', '.join(unknown)}, which {tokens.path} has no training shards of; it has {', '.join(there) or 'none'}"
        )
    if not there:
        raise UserError(f"{tokens.path} has no training shards; tokenize with a smaller held_out")


def _shards_of(tokens: TokenFolder, split: str) -> list[dict[str, Any]]:
    return [shard for shard in tokens.manifest["results"]["shards"] if shard["split"] == split and shard["tokens"]]


def run(stage: Stage, tokens: TokenFolder, config: PackConfig) -> None:
    """From the lengths of documents to the manifest."""
    train, held_out = _shards_of(tokens, "train"), _shards_of(tokens, "held_out")
    named = [shard for shard in train if config.amount(shard["source"]) is not None]
    counted = stage.run_tasks("lengths", partial(count_shard, folder=tokens.path, config=config), named)
    sources = sorted({shard["source"] for shard in named})
    there = {name: [0] * len(config.lengths_of(name)) for name in sources}
    for shard, count in zip(named, counted, strict=True):
        there[shard["source"]] = [a + b for a, b in zip(there[shard["source"]], count["tokens"], strict=True)]
    shares = {name: shares_taken(name, config, there[name]) for name in sources}
    pack = partial(
        pack_shards, folder=tokens.path, output=stage.output, vocab_size=tokens.tokenizer["vocab_size"],
        seq_length=config.seq_length,
    )  # fmt: skip
    packed = stage.run_tasks("shards", pack, packing_tasks(named, counted, shares, config))
    copied = stage.run_tasks("held_out", partial(copy_shard, folder=tokens.path, output=stage.output), held_out)
    dropped = {
        "source_left_out": sum(s["documents"] for s in train if config.amount(s["source"]) is None),
        "too_few_tokens": sum(count["too_few_tokens"] for count in counted),
    }
    _finish(stage, tokens, config, packed, copied, dropped)


def _finish(
    stage: Stage,
    tokens: TokenFolder,
    config: PackConfig,
    packed: list[dict[str, Any]],
    copied: list[dict[str, Any]],
    dropped: dict[str, int],
) -> None:
    given = sum(shard["documents"] for shard in _shards_of(tokens, "train"))
    kept, held_out = sum(shard["documents"] for shard in packed), sum(shard["documents"] for shard in copied)
    dropped = {**dropped, "not_taken": given - kept - sum(dropped.values())}
    shards = [{key: value for key, value in shard.items() if key != "packing"} for shard in packed] + copied
    facts = merged({shard["source"]: shard["packing"]} for shard in packed)
    counts = {
        "in": given + held_out,
        "out": kept + held_out,
        "dropped": {reason: number for reason, number in dropped.items() if number},
        "totals": totals_of(shards),
    }
    results = {
        "tokenizer": tokens.tokenizer,
        "shards": shards,
        "licenses": _licenses(tokens, totals_of(packed).get("train", {})),
        "packing": {"seq_length": config.seq_length, "sources": facts},
    }
    stage.finish(counts=counts, results=results)


def _licenses(tokens: TokenFolder, totals: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Tokens by licence; of a source that is taken in part, by its share."""
    sizes, found = tokens.sizes("train"), tokens.manifest["results"].get("licenses", {})
    return {
        source: {name: round(n * total["tokens"] / sizes[source]) for name, n in found.get(source, {}).items()}
        for source, total in totals.items()
    }


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/pack_sequences.py --input work/tokens --output work/tokens-32k",
        "pack.yaml",
        reads_input=False,
    )
    parser.add_argument(
        "--input", dest="tokens", required=True, type=Path, help="output folder of tokenize_corpus.py or import_shards.py"
    )  # fmt: skip
    args = parser.parse_args(argv)
    config = strict_model(PackConfig, load_yaml(args.config), args.config)
    tokens = TokenFolder(args.tokens)
    check_sources(config, tokens)
    if Path(os.path.realpath(args.output)).is_relative_to(os.path.realpath(args.tokens)):
        raise UserError(f"--output {args.output} lies in --input {args.tokens}; choose another")
    files = [
        args.tokens / f"{shard['prefix']}{suffix}"
        for split in ("train", "held_out")
        for shard in _shards_of(tokens, split)
        for suffix in SUFFIXES
    ]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing; restore it or tokenize again")
    source_by = tokens.manifest.get("parameters", {}).get("source_by", "source")
    parameters = {**config.model_dump(mode="json"), "source_by": source_by, "tokenizer": tokens.tokenizer}
    stage = Stage.of("pack_sequences", args, parameters, files=files, root=args.tokens, parent=args.tokens)
    if not stage.finished:
        run(stage, tokens, config)
    stage.report("packed or held out")
    results = load_json(stage.output / "manifest.json")["results"]
    for source, facts in results["packing"]["sources"].items():
        print(f"  {sentence_of(source, facts, config.seq_length)}")
    print(
        f"for training, set data.tokens to {stage.output} and data.seq_length to {config.seq_length} in the run config"
    )
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
