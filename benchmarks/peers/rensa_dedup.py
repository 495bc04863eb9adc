"""rensa: 5-gram shingles made in Python (words, or characters in Chinese), 112 permutations, LSH of 14 bands."""

import gzip
import json
import re
import sys
from pathlib import Path

from rensa import RMinHash, RMinHashLSH

TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")


def shingles(text: str) -> list[str]:
    tokens = TOKEN.findall(text.lower())
    return [" ".join(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))]


if __name__ == "__main__":
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    lsh, parent, ids, texts = RMinHashLSH(threshold=0.72, num_perm=112, num_bands=14), [], [], []

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    with gzip.open(work / "out.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as out:
        for path in sorted(source.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    document, number = json.loads(line), len(ids)
                    minhash = RMinHash(num_perm=112, seed=1)
                    minhash.update(shingles(document["text"]))
                    parent.append(number)
                    for other in lsh.query(minhash):
                        parent[find(number)] = find(other)
                    lsh.insert(number, minhash)
                    ids.append(document["id"])
                    texts.append(line)
        best: dict[int, int] = {}
        for number in range(len(ids)):
            root = find(number)
            if root not in best or len(texts[number]) > len(texts[best[root]]):
                best[root] = number
        for number in sorted(best.values()):
            out.write(texts[number])
    (work / "kept.txt").write_text("".join(ids[n] + "\n" for n in sorted(best.values())), encoding="utf-8")
