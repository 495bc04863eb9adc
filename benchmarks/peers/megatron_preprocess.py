"""The loop of Megatron-LM's tools/preprocess_data.py: a HuggingFace tokenizer per document, IndexedDatasetBuilder."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from transformers import AutoTokenizer

if __name__ == "__main__":
    source, work, folder = map(Path, sys.argv[1:4])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    builder = IndexedDatasetBuilder(str(work / "out.bin"), dtype=np.int32)
    tokens = 0
    for path in sorted(source.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
                ids.append(tokenizer.eos_token_id)
                builder.add_document(ids, [len(ids)])
                tokens += len(ids)
    builder.finalize(str(work / "out.idx"))
    print(json.dumps({"tokens": tokens}))
