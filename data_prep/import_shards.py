#!/usr/bin/env python3
"""Bring in token shards (.bin and .idx) of Megatron-LM, Megatron-DeepSpeed or GPT-NeoX as a folder of tokens to train on.

The result is that of tokenize_corpus.py. Documents of several sequences become one. A document that does not end in the
tokenizer's end-of-document token gets it. Documents are shuffled and held out by a hash of their tokens.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field

from data_prep.core.bad_records import BadRecords
from data_prep.core.command import job_parser
from data_prep.core.shuffle import Shuffle
from data_prep.core.stage import Stage
from data_prep.core.tally import merged
from data_prep.documents.reading import Part
from data_prep.tokenization.checks import check_tokens, load_reference, notes, tokens_compared
from data_prep.tokenization.foreign_documents import PieceDocuments
from data_prep.tokenization.foreign_shards import ShardRange, open_shard, prefixes_below
from data_prep.tokenization.held_out import held_out_far_off, is_held_out
from data_prep.tokenization.shards import TokenRows, shard_tasks, source_name, totals_of, write_shard
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import Section, load_json, load_yaml, strict_model
from recipe.data.token_folder import check_named_tokens, tokenizer_facts


class ImportConfig(Section):
    sources: dict[str, list[str]] = {}
    held_out: float = Field(0.005, ge=0, lt=1)
    max_shard_tokens: int = Field(75_000_000, gt=0)
    check_tokenizer: bool = True

    def problems(self) -> list[str]:
        names = [
            f"sources.{name}: the name becomes a folder's; write it as '{_folder_name(name)}'"
            for name in self.sources
            if name != _folder_name(name)
        ]
        paths = [
            f"sources.{name} names no shard{' in one of its lines' if paths else ''}; give paths or remove it"
            for name, paths in self.sources.items()
            if not paths or not all(paths)
        ]
        return names + paths


def _folder_name(name: str) -> str:
    return source_name({"source": name}, "source")


def sources_of(inputs: Sequence[Path], config: ImportConfig) -> dict[str, list[str]]:
    """The shards of each source, as absolute paths without .bin and .idx.

    Raises:
        UserError: none are named, or named twice; one is not there.
    """
    if bool(inputs) == bool(config.sources):
        raise UserError(
            "name the shards once: by --input, which makes each a source, or by sources in the --config, which names "
            "and joins them"
        )
    if inputs:
        named = [(_folder_name(name), prefix) for path in inputs for name, prefix in _named_shards(path)]
    else:
        named = [(name, prefix) for name, paths in config.sources.items() for p in paths for prefix in _prefixes(p)]
    sources: dict[str, list[str]] = {}
    for name, prefix in named:
        sources.setdefault(name, []).append(prefix)
    twice = [prefix for prefix, count in Counter(prefix for _, prefix in named).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice; keep one")
    for name, prefixes in sources.items():
        if inputs and len(prefixes) > 1:
            raise UserError(
                f"{prefixes[0]} and {prefixes[1]} would both be the source '{name}'; name them by sources in the --config"
            )
    return dict(sorted(sources.items()))


def _prefixes(path: str | Path) -> list[str]:
    return [os.path.abspath(prefix) for prefix in prefixes_below(Path(path))]


def _named_shards(path: Path) -> list[tuple[str, str]]:
    prefixes = _prefixes(path)
    if path.is_dir():
        return [(os.path.relpath(prefix, path), prefix) for prefix in prefixes]
    return [(os.path.basename(prefix), prefix) for prefix in prefixes]


def check_index(part: Part, number: int) -> dict[str, Any]:
    """What the index of a shard lists, after it has been found sound, and its pieces."""
    shard = open_shard(str(part.path.with_suffix("")))
    empty = shard.check()
    counts = {"documents": shard.documents, "sequences": shard.sequences, "empty_sequences": empty}
    return {**counts, "dtype": shard.dtype.name, "pieces": shard.pieces()}


def import_piece(
    part: Part,
    number: int,
    *,
    tasks: Sequence[tuple[str, ShardRange]],
    held_out: float,
    facts: dict[str, Any],
    tokenizer: Path,
    check_tokenizer: bool,
    shuffle: Path,
    output: Path,
    max_bad: int,
) -> dict[str, Any]:
    """The documents of a piece of a shard, by split, under keys that will shuffle them."""
    source, piece = tasks[number]
    shard = open_shard(str(part.path.with_suffix("")))
    if check_tokenizer:  # a shard may be put together of several
        check_tokens(shard, piece, facts, tokenizer)
    reference = load_reference(tokenizer)
    documents = PieceDocuments(shard, facts, BadRecords(part.path, number, output, max_bad))
    rows: dict[str, TokenRows] = {}
    for tokens in documents.read(piece):
        identity = xxhash.xxh3_128_hexdigest(tokens.data)
        split = "held_out" if is_held_out(identity, held_out) else "train"
        if split not in rows:
            rows[split] = TokenRows(Shuffle(shuffle / f"{split}-{source}"), number)
        size = len(reference.decode(tokens).encode()) if split == "held_out" else 0
        rows[split].add_tokens(tokens, size, facts["eod_id"])
    documents.bad.write()
    series = {f"{split}-{source}": {"split": split, "source": source, **rows[split].close()} for split in sorted(rows)}
    counts = {source: {**documents.counts, **tokens_compared(shard, piece, facts, tokenizer)}}
    return {"series": series, "counts": counts, "last": documents.last(source), "bad_records": len(documents.bad)}


def _check_output(output: Path, inputs: Iterable[str | Path]) -> None:
    for path in inputs:
        folder = os.path.realpath(path)
        if os.path.isdir(folder) and Path(os.path.realpath(output)).is_relative_to(folder):
            raise UserError(
                f"--output {output} lies in the input {path}, which would read what it wrote; choose another"
            )


def _tasks(
    prefixes: Sequence[tuple[str, str]], indices: Sequence[dict[str, Any]]
) -> list[tuple[str, Path, ShardRange]]:
    """Source, .bin and piece of each task."""
    return [
        (source, Path(f"{prefix}.bin"), ShardRange(*piece))
        for (source, prefix), index in zip(prefixes, indices, strict=True)
        for piece in index["pieces"]
    ]


def run(
    stage: Stage, sources: dict[str, list[str]], config: ImportConfig, facts: dict[str, Any], args: Namespace
) -> None:
    """From checked indices to the manifest."""
    prefixes = [(source, prefix) for source, shards in sources.items() for prefix in shards]
    indices = stage.run_tasks("index", check_index, [Part(Path(f"{prefix}.idx")) for _, prefix in prefixes])
    tasks = _tasks(prefixes, indices)
    shuffle = stage.shuffle("tokens").folder
    read = partial(
        import_piece, tasks=[(source, piece) for source, _, piece in tasks], held_out=config.held_out, facts=facts,
        tokenizer=args.tokenizer, check_tokenizer=config.check_tokenizer, shuffle=shuffle, output=stage.output, max_bad=stage.max_bad,
    )  # fmt: skip
    pieces = stage.run_tasks("documents", read, [Part(path, piece.start, piece.stop) for _, path, piece in tasks])
    series = merged({name: {"tokens": e["tokens"]} for name, e in result["series"].items()} for result in pieces)
    names = {name: entry for result in pieces for name, entry in result["series"].items()}
    stage.must_have_documents(len(series), of="the input")
    for name in sorted(series):
        Shuffle(shuffle / name).merge(stage.run_tasks)
    shards = stage.run_tasks(
        "shards",
        partial(write_shard, shuffle=shuffle, output=stage.output, vocab_size=facts["vocab_size"]),
        shard_tasks({name: {**names[name], **series[name]} for name in series}, config.max_shard_tokens),
    )
    _finish(stage, config, facts, indices, pieces, shards)


def _finish(
    stage: Stage,
    config: ImportConfig,
    facts: dict[str, Any],
    indices: list[dict[str, Any]],
    pieces: list[dict[str, Any]],
    shards: list[dict[str, Any]],
) -> None:
    totals = totals_of(shards)
    given, out = sum(index["documents"] for index in indices), sum(shard["documents"] for shard in shards)
    bad = sum(piece["bad_records"] for piece in pieces)
    dropped = {"empty": given - out - bad} if given - out - bad else {}
    results = {
        "tokenizer": facts,
        "shards": shards,
        "licenses": {source: {"not stated": n["tokens"]} for source, n in totals.get("train", {}).items()},
        "sequences": sum(index["sequences"] for index in indices),
        "empty_sequences": sum(index["empty_sequences"] for index in indices),
        "dtypes": dict(sorted(Counter(index["dtype"] for index in indices).items())),
        "documents": merged(piece["counts"] for piece in pieces),
        "last_tokens": merged(piece["last"] for piece in pieces),
        "held_out_far_off": held_out_far_off(totals, config.held_out),
    }
    counts = {"in": given, "out": out, "dropped": dropped, "bad_records": bad, "totals": totals}
    stage.finish(counts=counts, files=[], results=results)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/import_shards.py --input megatron/wiki_text_document --tokenizer gpt2 --output work/tokens",
        "import_shards.yaml",
        reads_input=False,
    )
    parser.add_argument(
        "--input", dest="shards", action="append", default=[], type=Path, metavar="SHARD",
        help="a shard (its path without .bin and .idx) or a folder of shards; each becomes a source; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", required=True, type=Path, help="folder of the tokenizer that the shards were made with"
    )
    args = parser.parse_args(argv)
    config = strict_model(ImportConfig, load_yaml(args.config), args.config)
    sources = sources_of(args.shards, config)
    _check_output(args.output, [*args.shards, *(path for paths in config.sources.values() for path in paths)])
    facts = tokenizer_facts(args.tokenizer)
    check_named_tokens(args.tokenizer)
    reference = load_reference(args.tokenizer)
    reference.check()
    files = [
        Path(prefix + suffix) for prefixes in sources.values() for prefix in prefixes for suffix in (".idx", ".bin")
    ]
    begun = (args.output / "stage.json").exists()  # after these checks, by the same shards and tokenizer
    for prefix in (prefix for prefixes in sources.values() for prefix in prefixes):
        shard = open_shard(prefix)
        shard.check_size()
        if config.check_tokenizer and not begun:
            check_tokens(shard, shard.whole(), facts, args.tokenizer)
    root = Path(os.path.commonpath([file.parent for file in files]))
    relative = {name: [os.path.relpath(prefix, root) for prefix in prefixes] for name, prefixes in sources.items()}
    parameters = {**config.model_dump(mode="json"), "sources": relative, "tokenizer": facts}
    stage = Stage.of("import_shards", args, parameters, files=files, root=root)
    if not stage.finished:
        run(stage, sources, config, facts, args)
    stage.report("imported")
    manifest = load_json(stage.output / "manifest.json")
    special = {reference.vocabulary[token]: token for token in reference.special_tokens}
    for note in notes(manifest["results"], config.held_out, special, args.tokenizer):
        print(f"  note: {note}")
    for split, by_source in manifest["counts"]["totals"].items():
        for source, total in by_source.items():
            print(f"  {split:<9} {source:<12} {total['tokens']:>12,} tokens  {total['documents']:,} documents")
    print(f"for training, set data.tokens to {stage.output} and tokenizer to {args.tokenizer} in the run config")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
