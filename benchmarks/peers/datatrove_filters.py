"""datatrove's Gopher, C4 and FineWeb filters with their defaults, each language with its own word tokenizer."""

import gzip
import json
import sys
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.typeshelper import Languages

STOP_WORDS = {"en": None, "zh": ["的", "了", "是", "在", "和", "不", "有", "我", "这", "之", "也", "为"]}


def filters(lang: str) -> list:
    language = {"en": Languages.english, "zh": Languages.chinese}[lang]
    return [
        GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language, stop_words=STOP_WORDS[lang]),
        C4QualityFilter(filter_no_terminal_punct=False, language=language),
        FineWebQualityFilter(language=language),
    ]


if __name__ == "__main__":
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    by_language = {lang: filters(lang) for lang in ("en", "zh")}
    kept = 0
    with gzip.open(work / "out.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as out:
        for path in sorted(source.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    document = Document(text=record["text"], id=record["id"])
                    # every filter sees every document, as ours measures every statistic of every document
                    passed = [step.filter(document) for step in by_language[record["lang"]]]
                    if all(verdict is True for verdict in passed):
                        kept += 1
                        out.write(json.dumps({**record, "text": document.text}, ensure_ascii=False) + "\n")
    print(json.dumps({"kept": kept}))
