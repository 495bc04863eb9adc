#!/usr/bin/env python3
"""Tokenize documents into packed .bin/.idx shards (Megatron IndexedDataset), one series per source and split.

Documents come shuffled, by a hash of their id and text: the shards do not depend on the input's files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from data_prep.core.command import job_parser
from data_prep.core.shuffle import Shuffle, list_value, producer
from data_prep.core.stage import Stage, document_task
from data_prep.core.tally import merged
from data_prep.deduplication.distinct import DistinctIds
from data_prep.documents.reading import Document, Part
from data_prep.tokenization.encoder import (
    CHECKED_CHARACTERS,
    EncoderMismatch,
    FastEncoder,
    ReferenceEncoder,
    load_encoder,
)
from recipe.base.errors import exit_on_user_error
from recipe.base.files import sha256
from recipe.base.strict import Section, load_json, load_yaml, strict_model
from recipe.data.indexed import SUFFIXES, ShardWriter, token_dtype
from recipe.data.token_folder import check_named_tokens, tokenizer_facts

BATCH, BATCH_CHARACTERS = 256, 4_000_000  # documents encoded together
CHUNK_TOKENS = 24_000_000  # of one series in memory at a time: 96 MB, twice when it is ordered
SHUFFLE_SEED = 20_260_102
UNLIKELY_NATS = 20.0  # exp(-20) is 2e-9
MAX_NAME_BYTES = 100  # of a source, in names of folders, of which file systems take 255 with what stands before it
IDS_SIZE = 512  # of the sketches of ids, one for each part and source: 4%
ENOUGH_IDS = 0.8  # different ones a document, beyond the error of the sketch
MANY_DOCUMENTS = 1000  # of a source, of which a share can be held out


class TokenizeConfig(Section):
    source_by: Literal["lang", "source", "both"] = "lang"
    held_out: float = Field(0.005, ge=0, lt=1)
    max_shard_tokens: int = Field(75_000_000, gt=0)


def is_held_out(identity: str, share: float) -> bool:
    """Whether a document is kept from training; depends on its id alone, so a larger crawl keeps the choice."""
    return xxhash.xxh3_64_intdigest(identity.encode(), seed=20_260_101) < share * 2**64


def source_name(document: Document, source_by: str) -> str:
    """Name of the shard series that a document goes to, safe as a folder name."""
    fields = {"lang": ("lang",), "source": ("source",), "both": ("lang", "source")}[source_by]
    names = (re.sub(r"[^\w.-]+", "_", str(document.get(field, "unknown"))).strip("._-") for field in fields)
    name = "-".join(name or "unnamed" for name in names)
    return name if len(name) <= MAX_NAME_BYTES // 4 or len(name.encode()) <= MAX_NAME_BYTES else _shortened(name)


def _shortened(name: str) -> str:
    """The beginning of a long name, and a hash that keeps it apart from others with that beginning."""
    digest = "_" + xxhash.xxh3_64_hexdigest(name.encode("utf-8", "surrogatepass"))
    return name.encode()[: MAX_NAME_BYTES - len(digest)].decode("utf-8", "ignore") + digest


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
        sources = [source_name(document, config.source_by) for document in batch]
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


class Losses:
    """What a tokenizer loses of texts or puts into them, by source: unknown tokens, ends of documents, other text.

    The first two are counted in all documents; for the last a few of each batch are decoded, of different sources: whole
    ones, or the beginning of a longer one where a source has no other.
    """

    def __init__(self, reference: ReferenceEncoder, eod: int):
        self._reference = reference
        self._counted = {"unknown_tokens": reference.unknown_id, "ends_in_text": eod}
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in (*self._counted, "decoded", "changed")}

    def counts(self) -> dict[str, dict[str, int]]:
        """Tokens or documents by source, of unknown_tokens, ends_in_text, decoded and changed."""
        return {name: dict(counter) for name, counter in self._counts.items()}

    def add(self, batch: list[Document], sources: list[str], ids: np.ndarray, ends: np.ndarray) -> None:
        for name, token in self._counted.items():
            if token is not None:
                owners = np.searchsorted(ends, np.flatnonzero(ids == token), side="right")
                self._counts[name].update(sources[owner] for owner in owners.tolist())
        longer: dict[str, str] = {}
        left, decoded = CHECKED_CHARACTERS, set()
        for number, (document, source) in enumerate(zip(batch, sources, strict=True)):
            size = len(document["text"])
            if source not in decoded and size <= left:
                decoded.add(source)
                left -= size
                start = int(ends[number - 1]) if number else 0
                self._compare(source, document["text"], ids[start : int(ends[number])])
            elif size > CHECKED_CHARACTERS:
                longer.setdefault(source, document["text"])
        for source, text in longer.items():
            if source not in decoded and left > 0:
                beginning = text[:left]
                left -= len(beginning)
                self._compare(source, beginning, self._reference.encode([beginning])[0])

    def _compare(self, source: str, text: str, ids: np.ndarray) -> None:
        self._counts["decoded"][source] += 1
        if not self._reference.keeps(text, ids):
            self._counts["changed"][source] += 1


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents to encode together: `BATCH` of them, or as many as have `BATCH_CHARACTERS`."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document["text"])
        if len(batch) == BATCH or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Rows:
    """Token rows of one part for one series of shards, sent in pieces of bounded size."""

    def __init__(self, target: Shuffle, number: int):
        self._target, self._number, self._chunk = target, number, 0
        self._totals: dict[str, Any] = {"documents": 0, "tokens": 0, "text_bytes": 0}
        self._licenses: Counter[str] = Counter()  # tokens by the licence that the document carried
        self._clear()

    def _clear(self) -> None:
        self._keys: list[int] = []
        self._bytes: list[int] = []
        self._tokens: list[np.ndarray] = []
        self._size = 0

    def add(self, document: Document, ids: np.ndarray, eod: int) -> None:
        text = document["text"].encode()
        self._keys.append(xxhash.xxh3_64_intdigest(document["id"].encode() + b"\0" + text, seed=SHUFFLE_SEED))
        self._bytes.append(len(text))
        self._tokens.append(np.append(ids, np.uint32(eod)))
        self._size += ids.size + 1
        self._licenses[str(document.get("license") or "not stated")] += ids.size + 1
        self.flush_if_full()

    def flush_if_full(self) -> None:
        if self._size >= CHUNK_TOKENS:
            self._flush()

    def close(self) -> dict[str, Any]:
        self._flush()
        self._target.remove_chunks(self._number, self._chunk)
        return {**self._totals, "licenses": dict(self._licenses)}

    def _flush(self) -> None:
        keys = np.array(self._keys, np.uint64)
        order = np.argsort(keys, kind="stable")  # here already, where it moves documents and not their tokens' lists
        ordered = [self._tokens[place] for place in order.tolist()]
        ends = np.cumsum([0, *(tokens.size for tokens in ordered)], dtype=np.int64)
        flat = pa.array(np.concatenate([np.zeros(0, np.uint32), *ordered]))
        tokens = pa.LargeListArray.from_arrays(pa.array(ends), flat)
        columns = {"text_bytes": np.array(self._bytes, np.int64)[order], "tokens": tokens}
        self._target.write(producer(self._number, self._chunk), keys[order], columns)
        for name, size in (("documents", len(self._keys)), ("tokens", self._size), ("text_bytes", sum(self._bytes))):
            self._totals[name] += size
        self._chunk += 1
        self._clear()


def write_shard(task: dict[str, Any], number: int, *, shuffle: Path, output: Path, vocab_size: int) -> dict[str, Any]:
    """One shard: the rows of one range of keys, in their order."""
    rows = Shuffle(shuffle / f"{task['split']}-{task['source']}").ordered(task["partition"], task["partitions"])
    prefix = Path("shards") / task["split"] / task["source"] / f"{task['partition']:05d}"
    entry = {"prefix": str(prefix), "split": task["split"], "source": task["source"], "documents": 0, "text_bytes": 0}
    writer = ShardWriter(output / prefix, token_dtype(vocab_size), vocab_size)
    for table, row in rows:
        writer.add_document(list_value(table, "tokens", row))
        entry["text_bytes"] += table["text_bytes"][row].as_py()
        entry["documents"] += 1
    writer.close()
    hashes = {suffix: sha256(output / f"{prefix}{suffix}") for suffix in SUFFIXES}
    return {**entry, "tokens": writer.num_tokens, "sha256": hashes}


def shard_tasks(series: dict[str, Any], max_shard_tokens: int) -> list[dict[str, Any]]:
    """The shards of every series, each about equally large and none much larger than `max_shard_tokens`."""
    tasks = []
    for _, entry in sorted(series.items()):
        shards = max(1, -(-entry["tokens"] // max_shard_tokens))
        for i in range(shards):
            tasks.append({"split": entry["split"], "source": entry["source"], "partition": i, "partitions": shards})
    return tasks


def totals_of(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents, tokens and text bytes by split and source."""
    names = ("documents", "tokens", "text_bytes")
    return merged({shard["split"]: {shard["source"]: {name: shard[name] for name in names}}} for shard in shards)


def held_out_far_off(totals: dict[str, Any], share: float) -> dict[str, Any]:
    """Sources whose held-out share of documents is not what was asked for, by source; see `is_far_off`."""
    return {source: counts for source, counts in _held_out(totals).items() if is_far_off(**counts, share=share)}


def _held_out(totals: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Documents by source, all of them and those that are held out."""
    counts = {}
    for source in sorted({source for sources in totals.values() for source in sources}):
        train, held_out = (totals.get(split, {}).get(source, {}).get("documents", 0) for split in ("train", "held_out"))
        counts[source] = {"documents": train + held_out, "held_out": held_out}
    return counts


def few_held_out(totals: dict[str, Any], ids: dict[str, int], share: float) -> dict[str, Any]:
    """Sources of which nothing is held out or whose documents share ids, so that the held-out ones are a matter of chance.

    Args:
        totals: by split and source.
        ids: different ones, by source.
        share: asked for.
    """
    return {
        source: {**counts, "ids": ids[source]}
        for source, counts in _held_out(totals).items()
        if share and counts["documents"] >= MANY_DOCUMENTS and source in ids and not is_far_off(**counts, share=share)
        if not counts["held_out"] or ids[source] < ENOUGH_IDS * counts["documents"]
    }


def _distinct_ids(encoded: list[dict[str, Any]]) -> dict[str, int]:
    """About how many different ids the documents of each source have."""
    dumps: dict[str, list[str]] = {}
    for result in encoded:
        for source, dump in result.get("ids", {}).items():  # a task that an older version finished has none
            dumps.setdefault(source, []).append(dump)
    return {source: DistinctIds.merged(dumps[source], IDS_SIZE).count() for source in sorted(dumps)}


def is_far_off(held_out: int, documents: int, share: float) -> bool:
    """Whether a held-out share is off by more than a factor of 3, and no chance if each document had its own id.

    The chance is at most exp(-documents * KL(found || share)), Chernoff's bound for a binomial (Hoeffding 1963, theorem 1).
    """
    if documents < MANY_DOCUMENTS or share == 0 or share / 3 <= held_out / documents <= 3 * share:
        return False
    found = held_out / documents
    terms = ((found, share), (1 - found, 1 - share))
    return documents * sum(p * math.log(p / q) for p, q in terms if p > 0) > UNLIKELY_NATS


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
    stage.report()
    manifest = load_json(stage.output / "manifest.json")
    for note in notes(manifest["results"], config.held_out):
        print(f"  note: {note}")
    for split, sources in manifest["counts"]["totals"].items():
        for source, total in sources.items():
            rate = total["text_bytes"] / max(1, total["tokens"])
            print(f"  {split:<9} {source:<12} {total['tokens']:>12,} tokens  {rate:.2f} bytes/token")


if __name__ == "__main__":
    raise SystemExit(main())
