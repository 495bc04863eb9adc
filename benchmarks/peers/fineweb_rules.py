"""FineWeb's English and FineWeb-2's Chinese rules, by datatrove: which documents of the labelled set they drop, and why.

English: the filters and thresholds of FineWeb (arXiv 2406.17557, datatrove's examples/fineweb.py). Chinese: those of
FineWeb-2 (arXiv 2506.20920): https://github.com/huggingface/fineweb-2, fineweb-2-pipeline.py, with the values of
configs/cmn_Hani.yml. Filters by URL and by language, deduplication and the removal of personal data are left out.
Reads the labelled set's lines; prints JSON: datatrove's version, and id -> reason of the documents that are dropped.
"""

import importlib.metadata
import json
import sys

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.typeshelper import Languages

# configs/cmn_Hani.yml of FineWeb-2, commit 05e6729
CMN_HANI_STOP_WORDS = [
    "的",
    "年",
    "在",
    "月",
    "是",
    "和",
    "日",
    "了",
    "於",
    "·",
    "為",
    "有",
    "被",
    "人",
    "中",
    "为",
    "他",
    "與",
    "後",
    "也",
    "而",
    "由",
]
CMN_HANI_TOP_N_GRAMS = ((2, 0.256), (3, 0.201), (4, 0.171))
CMN_HANI_DUP_N_GRAMS = ((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127))


def fineweb() -> list:
    language = Languages.english
    return [
        GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language),
        C4QualityFilter(filter_no_terminal_punct=False, language=language),
        FineWebQualityFilter(language=language),
    ]


def fineweb_2_chinese() -> list:
    language = Languages.mandarin_chinese__hani
    return [
        GopherRepetitionFilter(
            language=language,
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            dup_line_frac=0.287,
            top_n_grams=CMN_HANI_TOP_N_GRAMS,
            dup_n_grams=CMN_HANI_DUP_N_GRAMS,
        ),
        FineWebQualityFilter(
            language=language,
            short_line_thr=999,
            char_duplicates_ratio=0.1,
            line_punct_thr=0.106,
            new_line_ratio=0.178,
        ),
        GopherQualityFilter(
            language=language,
            min_avg_word_length=1,
            max_avg_word_length=5,
            stop_words=CMN_HANI_STOP_WORDS,
            min_stop_words=2,
            max_non_alpha_words_ratio=0.735,
        ),
    ]


def first_reason(steps: list, text: str) -> str | None:
    """The reason of the first filter that drops the text; C4's takes lines out before FineWeb's sees it."""
    document = Document(text=text, id="")
    for step in steps:
        passed = step.filter(document)
        if passed is not True:
            return passed[1] if isinstance(passed, tuple) else step.name
    return None


if __name__ == "__main__":
    steps = {"en": fineweb(), "zh": fineweb_2_chinese()}
    rows = [json.loads(line) for line in sys.stdin]
    reasons = {row["id"]: first_reason(steps[row["lang"]], row["text"]) for row in rows}
    dropped = {name: reason for name, reason in reasons.items() if reason}
    json.dump({"datatrove": importlib.metadata.version("datatrove"), "dropped": dropped}, sys.stdout)
