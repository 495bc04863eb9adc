#!/usr/bin/env python3
"""Train a byte-level BPE tokenizer and save it as a folder that transformers' AutoTokenizer loads."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.bad_records import BadRecords
from data_prep.command import job_parser
from data_prep.documents import Document, read_documents
from data_prep.stage import Stage
from recipe.base.errors import exit_on_user_error
from recipe.base.strict import load_yaml, strict_model

# Words keep one leading blank or mark; Han runs stand apart from the Latin words around them; runs of blanks
# and line ends stay whole, for code. After the pattern of GPT-4's cl100k_base, with Han split off.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_SEED = 20_260_103
DIGITS = {"single": r"\p{N}", "triple": r"\p{N}{1,3}"}


class TokenizerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(gt=0)
    digits: Literal["single", "triple"] = "single"
    eod_token: str = "<|endoftext|>"
    pad_token: str = "<|pad|>"
    extra_special_tokens: list[str] = []
    reserved_tokens: int = Field(0, ge=0)
    sample_bytes: int = Field(gt=0)
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
    """An untrained tokenizer: NFC, our pre-tokenizer, every byte representable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN % DIGITS[config.digits]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterator[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    tokenizer = new_tokenizer(config)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=config.eod_token,
        pad_token=config.pad_token,
        extra_special_tokens=config.special_tokens[2:],
        clean_up_tokenization_spaces=False,
    )


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


class Sample:
    """Texts of a stage's input in the shares that `language_budgets` gives, chosen by a hash of the id.

    So they come from the whole input, and the same whatever the files. Read once to count, once to train.
    """

    def __init__(self, stage: Stage, config: TokenizerConfig):
        self._stage, self._config = stage, config
        self.read = self.bad = 0
        self.used: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        totals: Counter[str] = Counter()
        for document in self._documents():
            self.read += 1
            totals[document.get("lang", "unknown")] += len(document["text"].encode())
        budgets = language_budgets(dict(totals), self._config.sample_bytes, self._config.alpha)
        for document in self._documents():
            language = document.get("lang", "unknown")
            share = budgets[language] / totals[language]
            if xxhash.xxh3_64_intdigest(document["id"].encode(), seed=SAMPLE_SEED) < share * 2**64:
                self.used[language] += 1
                self.bytes[language] += len(document["text"].encode())
                yield document["text"]

    def _documents(self) -> Iterator[Document]:
        self.bad = 0
        for number, part in enumerate(self._stage.parts):
            bad = BadRecords(part.path, number, self._stage.output, self._stage.max_bad - self.bad)
            yield from read_documents(part, bad)
            bad.write()
            self.bad += len(bad)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__, "python data_prep/train_tokenizer.py --input work/deduped --output work/tokenizer", "tokenizer.yaml"
    )
    args = parser.parse_args(argv)
    config = strict_model(TokenizerConfig, load_yaml(args.config), args.config)
    stage = Stage.of("train_tokenizer", args, config.model_dump(mode="json"))
    if not stage.finished:
        stage.record_inputs()
        sample = Sample(stage, config)
        tokenizer = train(iter(sample), config)
        stage.must_have_documents(len(sample.used))
        written = tokenizer.save_pretrained(stage.output)
        counts: dict[str, Any] = {
            "in": sample.read,
            "out": sum(sample.used.values()),
            "bad_records": sample.bad,
            "bytes": dict(sample.bytes),
        }
        results = {"vocab_size": len(tokenizer), "requested": config.vocab_size}
        stage.finish(counts=counts, files=sorted({Path(f) for f in written if Path(f).exists()}), results=results)
        if len(tokenizer) < config.vocab_size:
            print(f"note: the text gave {len(tokenizer):,} tokens, fewer than the {config.vocab_size:,} asked for")
    stage.report()


if __name__ == "__main__":
    raise SystemExit(main())
