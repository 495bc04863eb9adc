#!/usr/bin/env python3
"""Say for each language of a curation config what is there and what is missing: rules, documents, tokenizer, tasks.

It reads a sample of the documents and writes nothing. Exit code 2 where something is missing that would cost the language
its documents or its words; a note is something to look at.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import recipe
from data_prep.core.command import CONFIGS
from data_prep.core.inputs import Inputs
from data_prep.core.reasons import sentence
from data_prep.core.tally import Tally
from data_prep.curation.characters import native
from data_prep.curation.coverage import LEAST_KEPT
from data_prep.curation.curator import Curator
from data_prep.curation.rules import STATISTICS, LanguageRules
from data_prep.curation.settings import CurateConfig, load_curate_config
from data_prep.documents.reading import Document, read_documents
from data_prep.tokenization.encoder import load_encoder
from data_prep.tokenization.torn import Splitter
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import load_yaml
from recipe.data.token_folder import tokenizer_file

OK, NOTE, MISSING = "ok", "note", "MISSING"
PAGE = "docs/languages.md"
TASKS = Path(recipe.__path__[0]) / "configs" / "downstream"
MEASURED = 200  # documents of a language that are measured and tokenized
LONGEST_MEAN_WORD = 15  # letters; FineWeb-2's largest bound for German is 15, Thai clauses have more
LEAST_PUNCTUATED = 0.05  # of the lines hold or end a sentence; the rules of English and Chinese ask for 10% and more
MOST_TORN = 0.05  # of words: patterns that cut at capitals cut iPhone; those that cut marks off cut most words of Hindi
FEWEST_BYTES_PER_TOKEN = 2.5  # 32,000 tokens of English and Chinese have 1.3 of Japanese, 2.3 of German, 4 of their own
OF_WORDS = {name for name in STATISTICS if "word" in name or "gram" in name}  # statistics that need words


class Finding(NamedTuple):
    language: str
    part: str
    state: str
    text: str


class Sample(NamedTuple):
    """Documents of the input as curation sees them."""

    texts: dict[str, list[str]]  # by identified language
    tally: Tally


def read_sample(source: Path, config: CurateConfig, documents: int) -> Sample:
    """Judge the first documents of each part of the input, `documents` of them in all where there are as many."""
    parts = Inputs.of(source).parts
    of_part = -(-documents // max(1, len(parts)))
    curator, sample = Curator(config), Sample({}, Tally())

    def read() -> Iterator[Document]:
        for part in parts:
            yield from islice(read_documents(part, lambda bad: None, config.fields.model_dump()), of_part)

    for raw in read():
        verdict = curator.judge(raw, source.name)
        language = verdict.document["lang"]
        sample.tally.add(language, "", len(raw["text"].encode()), verdict.reason, 0)
        sample.texts.setdefault(language, []).append(raw["text"])
    if not sample.texts:
        raise UserError(f"--input {source} holds no documents; give files with at least one")
    return sample


def rules_findings(language: str, rules: LanguageRules) -> Iterator[Finding]:
    yield Finding(language, "rules", OK, f"{len(rules.rules)} rules")
    yield (
        Finding(language, "notices", OK, f"{len(rules.lines.phrases)} phrases")
        if rules.lines.phrases
        else Finding(language, "notices", NOTE, "lines.phrases is empty: cookie and copyright notices stay in the text")
    )
    if not rules.stop_words or "stop_words" not in rules.rules:
        yield Finding(language, "stop words", NOTE, "none, or no rule asks for them: lists of words stay in")


def documents_finding(language: str, sample: Sample, parameters: dict[str, object]) -> Finding:
    """How many documents of the sample are in the language, and how many of them its rules keep."""
    count = sample.tally.groups().get(language, {}).get("")
    if count is None:
        found = Counter({name: len(texts) for name, texts in sample.texts.items()}).most_common(3)
        others = ", ".join(f"{number:,} as '{name}'" for name, number in found)
        return Finding(language, "documents", MISSING, f"none is identified as '{language}'; {others}")
    kept = f"{count['out']:,} of {count['in']:,} are kept"
    if not count["dropped"]:
        return Finding(language, "documents", OK, kept)
    (reason, dropped) = count["dropped"].most_common(1)[0]
    most = f"{kept}; most drops, {dropped:,}: {reason}, {sentence(reason, parameters, [language])}"
    return Finding(language, "documents", OK if count["out"] >= LEAST_KEPT * count["in"] else MISSING, most)


def stop_words_finding(language: str, rules: LanguageRules, texts: Sequence[str]) -> Finding:
    """Whether documents have the stop words of the rules, which may be those of another language."""
    meter = native.Meter({native.word_hash(word) for word in rules.stop_words}, set())
    place, least = STATISTICS.index("stop_words"), rules.rules["stop_words"].min or 0
    having = sum(meter.measure(text)[place] >= least for text in texts) / len(texts)
    text = f"{having:.0%} of the documents have {least:g} of the {len(rules.stop_words)}"
    return Finding(language, "stop words", OK if having > 0.5 else MISSING, text)


def script_findings(language: str, rules: LanguageRules, texts: Sequence[str]) -> Iterator[Finding]:
    """Whether the text has the words and the sentence ends that the statistics of curation know."""
    measured = [dict(zip(STATISTICS, native.Meter(set(), set()).measure(text), strict=True)) for text in texts]
    letters, punctuated = (
        sum(values[mean] * values[of] for values in measured) / max(1, sum(values[of] for values in measured))
        for mean, of in (("mean_word_length", "words"), ("punctuated_line_share", "lines"))
    )
    asked = sorted(OF_WORDS & rules.rules.keys())
    if letters <= LONGEST_MEAN_WORD:
        yield Finding(language, "words", OK, f"{letters:.1f} letters on average")
    else:
        text = f"{letters:.0f} letters on average: no blanks between words, so that a word is a clause here"
        yield Finding(language, "words", MISSING if asked else NOTE, text + (f"; remove the rules {', '.join(asked)}" if asked else ""))  # fmt: skip
    asked = sorted({"sentences", "punctuated_line_share"} & rules.rules.keys())
    text = f"{punctuated:.0%} of the lines hold or end one"
    if punctuated >= LEAST_PUNCTUATED:
        yield Finding(language, "sentences", OK, text)
    else:
        text += ": no mark that curation knows ends its sentences"
        yield Finding(language, "sentences", MISSING if asked else NOTE, text + (f"; remove the rules {', '.join(asked)}" if asked else ""))  # fmt: skip


def tokenizer_findings(language: str, folder: Path, texts: Sequence[str]) -> Iterator[Finding]:
    """Bytes per token, text without a token, and words that the split pattern cuts."""
    encoder = load_encoder(folder)[0]
    ids, _ = encoder.encode(texts)
    rate = sum(len(text.encode()) for text in texts) / max(1, len(ids))
    lost = not all(encoder.reference.keeps(text, encoder.encode([text])[0]) for text in texts)
    low = rate < FEWEST_BYTES_PER_TOKEN
    text = f"{rate:.2f} bytes per token"
    if lost:
        yield Finding(language, "tokens", MISSING, f"{text}, and text is lost; take a tokenizer that has all bytes")
    elif low:
        yield Finding(language, "tokens", MISSING, f"{text}; train one on documents of all languages of the run")
    else:
        yield Finding(language, "tokens", OK, text)
    torn = Splitter(folder / "tokenizer.json").torn_share(texts)
    yield (
        Finding(language, "split", OK, f"{torn:.1%} of the words are cut before BPE")
        if torn <= MOST_TORN
        else Finding(
            language, "split", MISSING,
            f"{torn:.1%} of the words are cut before BPE; train with combining_marks: join ({CONFIGS / 'tokenizer.yaml'})",
        )
    )  # fmt: skip


def tasks_finding(language: str, folders: Sequence[Path]) -> Finding:
    """The group of downstream tasks of the language."""
    name = f"downstream_{language}"
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            return Finding(language, "tasks", OK, f"{name}: {', '.join(tasks_of(path))}")
    return Finding(
        language, "tasks", NOTE,
        f"no {name}.yaml: write one as in {TASKS}, and give its folder as --tasks-path; `lm_eval ls tasks` lists tasks",
    )  # fmt: skip


def tasks_of(path: Path) -> list[str]:
    """The names of the tasks of a group.

    Raises:
        UserError: the file is no group of tasks.
    """
    group = load_yaml(path)
    tasks = group.get("task") if isinstance(group, dict) else None
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{path} names no tasks; give them as task: [...], as the files in {TASKS} do")
    return [str(task.get("task") if isinstance(task, dict) else task) for task in tasks]


def findings(args: argparse.Namespace, config: CurateConfig) -> Iterator[Finding]:
    sample = read_sample(args.input, config, args.documents) if args.input else None
    for language, rules in config.languages.items():
        yield from rules_findings(language, rules)
        if sample is not None:
            yield documents_finding(language, sample, config.model_dump(mode="json"))
            if texts := sample.texts.get(language, [])[:MEASURED]:
                if rules.stop_words and "stop_words" in rules.rules:
                    yield stop_words_finding(language, rules, texts)
                yield from script_findings(language, rules, texts)
                if args.tokenizer:
                    yield from tokenizer_findings(language, args.tokenizer, texts)
        yield tasks_finding(language, [*args.tasks_path, TASKS])
    if sample is not None:
        found = {name: len(texts) for name, texts in sample.texts.items() if name not in config.languages}
        for name, number in Counter(found).most_common(3):
            yield Finding(name, "documents", NOTE, f"{number:,}, in a language that the config does not name")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python data_prep/check_languages.py --config my/curate.yaml --input my/documents --tokenizer work/tokenizer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=CONFIGS / "curate.yaml", help="of curate.py (default: %(default)s)")  # fmt: skip
    parser.add_argument("--input", type=Path, help="documents to try the rules on, as curate.py reads them")
    parser.add_argument("--documents", type=positive_int, default=1000, help="how many to read (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json, to try on the documents")
    parser.add_argument(
        "--tasks-path", action="append", type=Path, default=[], help="folder with more groups of downstream tasks"
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.tokenizer is not None:
        if args.input is None:
            raise UserError("--tokenizer is tried on documents; give --input too")
        tokenizer_file(args.tokenizer)
    if missing := [str(folder) for folder in args.tasks_path if not folder.is_dir()]:
        raise UserError(f"--tasks-path {', '.join(missing)} is no folder; give one with groups of tasks")
    config = load_curate_config(args.config)
    found = list(findings(args, config))
    for finding in found:
        print(f"{finding.language:<4} {finding.part:<11} {finding.state:<8} {finding.text}")
    if args.input is None:
        print("documents and tokenizer are not looked at: give --input, and --tokenizer")
    lacking = [f"{finding.part} of {finding.language}" for finding in found if finding.state == MISSING]
    if lacking:
        raise UserError(f"missing: {', '.join(lacking)}; {PAGE} says where each is written")


if __name__ == "__main__":
    raise SystemExit(main())
