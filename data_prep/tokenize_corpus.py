#!/usr/bin/env python3
"""Tokenize documents into packed .bin/.idx shards (Megatron IndexedDataset), one series per source and split.

Documents are shuffled by a hash of their id and text, so the shards do not depend on the order of the input. A share of the
documents is held out of training, for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from data_prep.core.command import job_parser
from data_prep.core.shuffle import Shuffle
from data_prep.core.stage import Stage, document_task
from data_prep.core.tally import merged
from data_prep.deduplication.distinct import DistinctIds
from data_prep.documents.reading import Document, Part
from data_prep.tokenization.encoder import (
    EncoderMismatch,
    FastEncoder,
    ReferenceEncoder,
    batches,
    load_encoder,
)
from data_prep.tokenization.held_out import ENOUGH_IDS, few_held_out, held_out_far_off, is_held_out, none_held_out
from data_prep.tokenization.losses import Losses
from data_prep.tokenization.shards import Rows, shard_tasks, source_name, totals_of, write_shard
from recipe.base.errors import exit_on_user_error
from recipe.base.strict import Section, load_json, load_yaml, strict_model
from recipe.data.token_folder import check_named_tokens, tokenizer_facts

IDS_SIZE = 512  # of the sketches of ids, one for each part and source: 4%


class TokenizeConfig(Section):
    source_by: Literal["lang", "source", "both"] = "lang"
    bilingual: Literal["language", "apart", "label"] = "language"
    held_out: float = Field(0.005, ge=0, lt=1)
    max_shard_tokens: int = Field(75_000_000, gt=0)


def tokenize_part(
    part: Part,
    number: int,
    *,
    config: TokenizeConfig,
    eod: int,
    tokenizer: Path,
    shuffle: Path,
    output: Path,
    max_bad: int,
) -> dict[str, Any]:
    """Token rows of one part, by split and source, under keys that will shuffle them.

    If a check finds that the fast encoder differs, the whole part is encoded again by the reference.
    """
    encoder, why = load_encoder(tokenizer)

    def encode(documents: Iterable[Document], number: int) -> dict[str, Any]:
        return encode_documents(documents, number, config, eod, encoder, shuffle)

    try:
        result = document_task(part, number, work=encode, output=output, max_bad=max_bad)
    except EncoderMismatch as error:
        encoder, why = ReferenceEncoder(tokenizer), str(error)
        result = document_task(part, number, work=encode, output=output, max_bad=max_bad)
    return {**result, "encoder": encoder.name, "fell_back": why}


def encode_documents(
    documents: Iterable[Document],
    number: int,
    config: TokenizeConfig,
    eod: int,
    encoder: FastEncoder | ReferenceEncoder,
    shuffle: Path,
) -> dict[str, Any]:
    rows: dict[tuple[str, str], Rows] = {}
    losses = Losses(encoder.reference, eod)
    distinct: dict[str, DistinctIds] = {}
    for batch in batches(documents):
        ids, ends = encoder.encode([document["text"] for document in batch])
        sources = [source_name(document, config.source_by, config.bilingual) for document in batch]
        losses.add(batch, sources, ids, ends)
        starts = np.concatenate(([0], ends[:-1]))
        for document, source, start, end in zip(batch, sources, starts.tolist(), ends.tolist(), strict=True):
            split = "held_out" if is_held_out(document["id"], config.held_out) else "train"
            key = (split, source)
            if key not in rows:
                rows[key] = Rows(Shuffle(shuffle / "-".join(key)), number)
            rows[key].add(document, ids[start:end], eod)
            if source not in distinct:
                distinct[source] = DistinctIds(IDS_SIZE)
            distinct[source].add(document["id"])
    series = {"-".join(key): {"split": key[0], "source": key[1], **rows[key].close()} for key in sorted(rows)}
    for folder in shuffle.glob("*"):  # of sources that an earlier attempt has met, and this one has not
        if folder.name not in series:
            Shuffle(folder).remove_chunks(number, 0)
    dumps = {source: distinct[source].dump() for source in sorted(distinct)}
    return {"series": series, "losses": losses.counts(), "ids": dumps}


def _distinct_ids(encoded: list[dict[str, Any]]) -> dict[str, int]:
    """About how many different ids the documents of each source have."""
    dumps: dict[str, list[str]] = {}
    for result in encoded:
        for source, dump in result.get("ids", {}).items():  # a task that an older version finished has none
            dumps.setdefault(source, []).append(dump)
    return {source: DistinctIds.merged(dumps[source], IDS_SIZE).count() for source in sorted(dumps)}


def _licenses(encoded: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens of the training split by source and licence, those with most first."""
    series = [entry for result in encoded for entry in result["series"].values() if entry["split"] == "train"]
    found = merged({entry["source"]: entry["licenses"]} for entry in series)
    by_tokens = lambda item: (-item[1], item[0])  # noqa: E731
    return {source: dict(sorted(found[source].items(), key=by_tokens)) for source in sorted(found)}


def notes(results: dict[str, Any], held_out: float) -> Iterator[str]:
    """A sentence for each thing about the tokens that a user should know and may not expect."""
    for why in sorted(set(results["fell_back"])):
        reason = why if why.startswith("fastokens") else f"fastokens gave {why}"
        yield f"encoded by `tokenizers`, slower, since {reason}"
    losses = results.get("losses") or {}  # a folder that an older version finished has none
    for source, count in losses.get("unknown_tokens", {}).items():
        yield (
            f"{count:,} tokens of {source} are the tokenizer's unknown token: text that its vocabulary cannot express, which "
            "is lost; choose a tokenizer with all bytes in its vocabulary"
        )
    for source, count in losses.get("ends_in_text", {}).items():
        remedy = "mark the eos_token special in tokenizer.json"
        if results.get("eos_is_a_piece"):
            remedy = (
                "the model's vocabulary has the eos_token for text too, special or not; take a new one, by transformers: "
                "tokenizer.add_special_tokens({'eos_token': '<|document_end|>'}), then tokenizer.save_pretrained"
            )
        yield f"{count:,} end-of-document tokens of {source} come from inside its texts and end documents early; {remedy}"
    for source, count in losses.get("changed", {}).items():
        yield (
            f"{count:,} of {losses['decoded'][source]:,} documents of {source} that were decoded again came back changed: the "
            "tokenizer replaces or drops text; evaluate_tokenizer.py counts all of them"
        )
    for source, found in results.get("held_out_far_off", {}).items():
        yield (
            f"{found['held_out']:,} of {found['documents']:,} documents of {source} are held out, {held_out:.2%} were asked "
            "for: all documents of one id are held out together, and these share few ids; give each an id of its own"
        )
    for source, found in results.get("few_held_out", {}).items():
        share_ids = found["ids"] < ENOUGH_IDS * found["documents"]
        yield (
            f"{found['held_out']:,} of {found['documents']:,} documents of {source} are held out, {held_out:.2%} were asked "
            f"for: they have about {found['ids']:,} different ids, and all documents of one id are held out together; "
            + ("give each an id of its own" if share_ids else "raise held_out, or tokenize more of it")
        )


def notes_of_few(results: dict[str, Any], totals: dict[str, Any], held_out: float) -> Iterator[str]:
    """A sentence where sources have too few documents for a share of them to be held out."""
    told = {**results.get("held_out_far_off", {}), **results.get("few_held_out", {})}
    sources = [source for source in none_held_out(totals) if source not in told] if held_out else []
    if sources:
        yield (
            f"no document of {', '.join(sources)} is held out (held_out is {held_out}): a run that reads these tokens cannot "
            "be evaluated on them; raise held_out, or tokenize more documents"
        )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/tokenize_corpus.py --input work/deduped --tokenizer work/tokenizer --output work/tokens",
        "tokenize.yaml",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=Path,
        help="tokenizer: output folder of train_tokenizer.py, or of transformers' save_pretrained",
    )
    args = parser.parse_args(argv)
    config = strict_model(TokenizeConfig, load_yaml(args.config), args.config)
    facts = tokenizer_facts(args.tokenizer)
    check_named_tokens(args.tokenizer)
    reference = load_encoder(args.tokenizer)[0].reference
    reference.check()
    if lost := reference.lost_scripts():
        print(
            f"  note: {args.tokenizer} has no tokens for {', '.join(lost)} and none for what is unknown: such text vanishes; if "
            "documents have it, choose a tokenizer with all bytes in its vocabulary"
        )
    stage = Stage.of("tokenize", args, {**config.model_dump(mode="json"), "tokenizer": facts})
    if not stage.finished:
        shuffle = stage.shuffle("tokens").folder
        encode = partial(
            tokenize_part, config=config, eod=facts["eod_id"], tokenizer=args.tokenizer, shuffle=shuffle,
            output=stage.output, max_bad=stage.max_bad,
        )  # fmt: skip
        encoded = stage.run_tasks("encode", encode, stage.parts)
        series = {name: entry for result in encoded for name, entry in result["series"].items()}
        sizes = merged({name: {"tokens": e["tokens"]} for name, e in result["series"].items()} for result in encoded)
        stage.must_have_documents(len(series))
        for name in sorted(series):
            Shuffle(shuffle / name).merge(stage.run_tasks)
        tasks = shard_tasks({name: {**series[name], **sizes[name]} for name in series}, config.max_shard_tokens)
        write = partial(write_shard, shuffle=shuffle, output=stage.output, vocab_size=facts["vocab_size"])
        shards = stage.run_tasks("shards", write, tasks)
        documents = sum(shard["documents"] for shard in shards)
        bad = sum(result["bad_records"] for result in encoded)
        totals = totals_of(shards)
        counts = {"in": documents, "out": documents, "bad_records": bad, "totals": totals}
        results = {
            "tokenizer": facts,
            "shards": shards,
            "licenses": _licenses(encoded),
            "fell_back": [r["fell_back"] for r in encoded if r["fell_back"]],
            "losses": merged(result.get("losses", {}) for result in encoded),
            "eos_is_a_piece": reference.is_piece(facts["eod_id"]),
            "held_out_far_off": held_out_far_off(totals, config.held_out),
            "few_held_out": few_held_out(totals, _distinct_ids(encoded), config.held_out),
        }
        stage.finish(counts=counts, files=[], results=results)
    stage.report("tokenized")
    manifest = load_json(stage.output / "manifest.json")
    totals = manifest["counts"]["totals"]
    for note in (
        *notes(manifest["results"], config.held_out),
        *notes_of_few(manifest["results"], totals, config.held_out),
    ):
        print(f"  note: {note}")
    for split, sources in totals.items():
        for source, total in sources.items():
            rate = total["text_bytes"] / max(1, total["tokens"])
            print(f"  {split:<9} {source:<12} {total['tokens']:>12,} tokens  {rate:.2f} bytes/token")
    print(f"for training, set data.tokens to {stage.output} and tokenizer to {args.tokenizer} in the run config")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
