"""`tokenizers` alone: encode_batch on 256 documents at a time, ids written as they come."""

import gzip
import json
import os
import sys
from itertools import islice
from pathlib import Path

import numpy as np

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer

if __name__ == "__main__":
    source, work, folder = map(Path, sys.argv[1:4])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = 0
    with open(work / "out.bin", "wb") as out:
        for path in sorted(source.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                while batch := [json.loads(line)["text"] for line in islice(lines, 256)]:
                    for encoded in tokenizer.encode_batch(batch):
                        out.write(np.asarray(encoded.ids, np.int32).tobytes())
                        tokens += len(encoded.ids)
    print(json.dumps({"tokens": tokens}))
