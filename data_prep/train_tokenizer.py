#!/usr/bin/env python3
"""Train a byte-level BPE tokenizer and save it as a folder that transformers' AutoTokenizer loads.

It learns from a sample of the documents (sample_bytes of the config), in which small languages have a larger share.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.core.command import job_parser
from data_prep.core.partial_files import partial_path
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import merged
from data_prep.documents.reading import Document
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import replacing, write_text
from recipe.base.ranks import environment
from recipe.base.strict import Section, load_yaml, strict_model
from recipe.base.tables import size
from recipe.huggingface.split_patterns import split_pattern
from recipe.huggingface.tokenizer_folder import write_tokenizer_config

SAMPLE_SEED = 20_260_103


class TokenizerConfig(Section):
    vocab_size: int = Field(gt=0)
    digits: Literal["single", "triple"] = "single"
    combining_marks: Literal["split", "join"] = "split"
    eod_token: str = "<|endoftext|>"
    pad_token: str = "<|pad|>"
    extra_special_tokens: list[str] = []
    reserved_tokens: int = Field(0, ge=0)
    sample_bytes: int = Field(4_000_000_000, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)

    @property
    def special_tokens(self) -> list[str]:
        reserved = [f"<|reserved_{i}|>" for i in range(self.reserved_tokens)]
        return [self.eod_token, self.pad_token, *self.extra_special_tokens, *reserved]

    def problems(self) -> list[str]:
        found = []
        if self.vocab_size < 256 + len(self.special_tokens):
            found.append(
                f"vocab_size {self.vocab_size} is less than 256 bytes and {len(self.special_tokens)} special tokens; raise it"
            )
        repeated = [token for token, n in Counter(self.special_tokens).items() if n > 1]
        return found + [f"special token '{token}' is named twice" for token in repeated]


def new_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """An untrained tokenizer: NFC, a pre-tokenizer of `split_pattern`, every byte representable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(config.digits, config.combining_marks)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Adds no token; where there is none, transformers 5 puts one of its own.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    tokenizer = new_tokenizer(config)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_folder(tokenizer: Tokenizer, config: TokenizerConfig, folder: Path) -> list[Path]:
    """Write a trained tokenizer the way that an export writes it; the files."""
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    write_text(files[0], tokenizer.to_str(pretty=True))
    special = {"eos_token": config.eod_token, "pad_token": config.pad_token}
    write_tokenizer_config(folder, {**special, "additional_special_tokens": config.special_tokens[2:]})
    return files


def language_budgets(text_bytes: dict[str, int], sample_bytes: int, alpha: float) -> dict[str, float]:
    """How many bytes of each language to read: proportional to its bytes ** alpha, none beyond what it has.

    What a small language cannot fill goes to the others.
    """
    budgets: dict[str, float] = {}
    left, open_ = float(min(sample_bytes, sum(text_bytes.values()))), dict(text_bytes)
    while open_:
        powers = {name: size**alpha for name, size in open_.items()}
        shares = {name: left * power / sum(powers.values()) for name, power in powers.items()}
        full = [name for name, size in open_.items() if shares[name] >= size]
        if not full:
            return {**budgets, **shares}
        for name in full:
            budgets[name] = open_.pop(name)
            left -= budgets[name]
    return budgets


def count_part(documents: Iterable[Document], number: int) -> dict[str, Any]:
    """Documents and UTF-8 bytes of each language in one part of the input."""
    languages: dict[str, Counter[str]] = {}
    for document in documents:
        counts = languages.setdefault(language_of(document), Counter())
        counts.update(documents=1, bytes=len(document["text"].encode()))
    return {"languages": languages}


def draw_part(documents: Iterable[Document], number: int, *, shares: dict[str, float], folder: Path) -> dict[str, Any]:
    """Write the texts of one part that belong to the sample, chosen by a hash of the id, in the part's order.

    So they come from the whole input, and are the same whatever the files and the workers.
    """
    languages: dict[str, Counter[str]] = {}

    def drawn() -> Iterator[bytes]:
        for document in documents:
            language = language_of(document)
            if xxhash.xxh3_64_intdigest(document["id"].encode(), seed=SAMPLE_SEED) < shares[language] * 2**64:
                text = document["text"].encode()
                languages.setdefault(language, Counter()).update(documents=1, bytes=len(text))
                yield text

    write_texts(folder / f"{number:05d}.texts", drawn())
    return {"languages": languages}


def language_of(document: Document) -> str:
    return str(document.get("lang", "unknown"))


def write_texts(path: Path, texts: Iterable[bytes]) -> None:
    """Write texts one behind the other, each after its size; the file has its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, partial_path(path)) as temporary, open(temporary, "wb") as file:
        for text in texts:
            file.write(len(text).to_bytes(8, "little") + text)


def read_texts(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        while size := file.read(8):
            yield file.read(int.from_bytes(size, "little")).decode()


def draw_sample(stage: Stage, config: TokenizerConfig) -> tuple[list[Path], dict[str, Any]]:
    """Texts of a stage's input in the shares that `language_budgets` gives, as files for `read_texts`, and the counts.

    The input is read once to count, once to draw, both by tasks of the stage.
    """
    counted = stage.run_tasks("count", for_documents(stage, work=count_part), stage.parts)
    totals = merged(result["languages"] for result in counted)
    read = sum(counts["documents"] for counts in totals.values())
    stage.must_have_documents(read)
    text_bytes = {language: counts["bytes"] for language, counts in totals.items()}
    budgets = language_budgets(text_bytes, config.sample_bytes, config.alpha)
    shares = {language: budgets[language] / size for language, size in text_bytes.items()}
    folder = stage.shuffle("sample").folder
    drawn = stage.run_tasks(
        "sample", for_documents(stage, work=partial(draw_part, shares=shares, folder=folder)), stage.parts
    )
    used = merged(result["languages"] for result in drawn)
    if not used:
        raise UserError(f"sample_bytes {config.sample_bytes:,} draws none of the {read:,} documents; raise it")
    counts = {
        "in": read,
        "out": sum(language["documents"] for language in used.values()),
        "bad_records": sum(result["bad_records"] for result in counted),
        "bytes": {name: language["bytes"] for name, language in used.items()},
    }
    return [folder / f"{number:05d}.texts" for number in range(len(drawn))], counts


def threads(number: int) -> AbstractContextManager[None]:
    """Let `tokenizers` train on so many threads, whatever the environment says: the jobs that encode ask for one."""
    return environment({"RAYON_NUM_THREADS": str(number), "TOKENIZERS_PARALLELISM": "true"})


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__, "python data_prep/train_tokenizer.py --input work/deduped --output work/tokenizer", "tokenizer.yaml"
    )
    args = parser.parse_args(argv)
    config = strict_model(TokenizerConfig, load_yaml(args.config), args.config)
    stage = Stage.of("train_tokenizer", args, config.model_dump(mode="json"))
    if not stage.finished:
        sample, counts = draw_sample(stage, config)
        print(
            f"learning {config.vocab_size:,} tokens from {size(sum(counts['bytes'].values()))} of text in "
            f"{counts['out']:,} documents; this is one step, which starts anew if it is interrupted",
            file=sys.stderr,
        )
        with threads(min(stage.workers, os.cpu_count() or 1)):
            tokenizer = train(chain.from_iterable(map(read_texts, sample)), config)
        files, vocab_size = write_folder(tokenizer, config, stage.output), tokenizer.get_vocab_size()
        results = {"vocab_size": vocab_size, "requested": config.vocab_size}
        stage.finish(counts=counts, files=files, results=results)
        if vocab_size < config.vocab_size:
            print(
                f"note: the text gave {vocab_size:,} tokens, fewer than the vocab_size of {config.vocab_size:,}; give more text "
                "or a smaller vocab_size"
            )
    stage.report("used for training")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
