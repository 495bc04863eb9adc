#!/usr/bin/env python3
"""Train a byte-level BPE tokenizer and save it as a folder that transformers' AutoTokenizer loads."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.command import job_parser
from data_prep.documents import read_documents
from data_prep.stage import BadRecords, Stage
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import load_yaml, strict_model

# Words keep one leading blank or mark; Han runs stand apart from the Latin words around them; runs of blanks
# and line ends stay whole, for code. After the pattern of GPT-4's cl100k_base, with Han split off.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"single": r"\p{N}", "triple": r"\p{N}{1,3}"}


class TokenizerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(gt=0)
    digits: Literal["single", "triple"] = "single"
    eod_token: str = "<|endoftext|>"
    pad_token: str = "<|pad|>"
    extra_special_tokens: list[str] = []
    reserved_tokens: int = Field(0, ge=0)
    max_bytes_per_language: int = Field(gt=0)

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


class Sample:
    """The texts of a stage's input, up to a number of bytes per language, counted as they pass."""

    def __init__(self, stage: Stage, max_bytes_per_language: int):
        self._stage, self._limit = stage, max_bytes_per_language
        self.read = self.bad = 0
        self.used: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        for number, file in enumerate(self._stage.inputs):
            bad = BadRecords(file.path, number, self._stage.output, self._stage.max_bad - self.bad)
            for document in read_documents(file.path, bad):
                self.read += 1
                language = document.get("lang", "unknown")
                if self.bytes[language] < self._limit:
                    self.used[language] += 1
                    self.bytes[language] += len(document["text"].encode())
                    yield document["text"]
            bad.write()
            self.bad += len(bad)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__, "python data_prep/train_tokenizer.py --input work/deduped --output work/tokenizer", "tokenizer.yaml"
    )
    args = parser.parse_args(argv)
    config = strict_model(TokenizerConfig, load_yaml(args.config), args.config)
    stage = Stage("train_tokenizer", args.input, args.output, config.model_dump(mode="json"), args.max_bad)
    if not stage.finished:
        sample = Sample(stage, config.max_bytes_per_language)
        tokenizer = train(iter(sample), config)
        if not sample.used:
            raise UserError(f"--input {args.input} holds no documents; give files with at least one")
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
