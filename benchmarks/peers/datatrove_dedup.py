"""datatrove's MinHash pipeline, 14 x 8 on 5-grams, each language with its own word tokenizer."""

import gzip
import json
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages

CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))


def split_by_language(source: Path, target: Path) -> dict[str, int]:
    """datatrove takes one language a pipeline; files of each, as many as there were."""
    files: dict[str, int] = {}
    for number, path in enumerate(sorted(source.glob("*.jsonl.gz"))):
        handles = {}
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                lang = json.loads(line)["lang"]
                if lang not in handles:
                    (target / lang).mkdir(parents=True, exist_ok=True)
                    handles[lang] = gzip.open(
                        target / lang / f"{number:03d}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1
                    )
                handles[lang].write(line)
        for lang, handle in handles.items():
            handle.close()
            files[lang] = files.get(lang, 0) + 1
    return files


def run(lang: str, files: int, work: Path) -> None:
    language = {"en": Languages.english, "zh": Languages.chinese}[lang]
    reader = JsonlReader(str(work / "in" / lang))
    base = work / lang
    steps = [
        ([reader, MinhashDedupSignature(str(base / "sig"), config=CONFIG, language=language)], files),
        ([MinhashDedupBuckets(str(base / "sig"), str(base / "buckets"), config=CONFIG)], CONFIG.num_buckets),
        ([MinhashDedupCluster(str(base / "buckets"), str(base / "remove"), config=CONFIG)], 1),
        ([reader, MinhashDedupFilter(str(base / "remove")), JsonlWriter(str(work / "out" / lang))], files),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(base / f"log{number}")).run()


if __name__ == "__main__":
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    for lang, files in split_by_language(source, work / "in").items():
        run(lang, files, work)
    with open(work / "kept.txt", "w", encoding="utf-8") as kept:
        for path in sorted((work / "out").rglob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                kept.writelines(json.loads(line)["id"] + "\n" for line in lines)
