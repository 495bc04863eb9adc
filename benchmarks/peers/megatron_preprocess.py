"""What Megatron-LM's tools/preprocess_data.py does with --workers 1 --append-eod, which its package does not ship.

A pool of encoders, 32 lines a task, a HuggingFace tokenizer's __call__ per document, ids back to the parent, which
hands them to IndexedDatasetBuilder.
"""

import gzip
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


class Encoder:
    def __init__(self, folder: Path):
        self.folder = folder

    def initializer(self) -> None:
        from transformers import AutoTokenizer

        Encoder.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def encode(self, line: str) -> tuple[list[int], list[int]]:
        ids = Encoder.tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
        ids.append(Encoder.tokenizer.eos_token_id)
        return ids, [len(ids)]


if __name__ == "__main__":
    source, work, folder = map(Path, sys.argv[1:4])
    encoder, tokens = Encoder(folder), 0
    builder = IndexedDatasetBuilder(str(work / "out.bin"), dtype=np.int32)
    with multiprocessing.Pool(1, initializer=encoder.initializer) as pool:
        for path in sorted(source.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for ids, lengths in pool.imap(encoder.encode, lines, 32):
                    builder.add_document(ids, lengths)
                    tokens += len(ids)
        pool.close()
        pool.join()  # so that its CPU time counts
    builder.finalize(str(work / "out.idx"))
    print(json.dumps({"tokens": tokens}))
