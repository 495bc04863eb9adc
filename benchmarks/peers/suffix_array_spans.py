"""pydivsufsort: a suffix array of all texts with its common prefixes, and the spans of so many characters that stand before.

Prints for each text its spans as (start, stop), and the CPU seconds, as JSON.
"""

import json
import sys
import time

import numpy as np
import pydivsufsort


def spans(texts: list[str], least: int) -> list[list[tuple[int, int]]]:
    # one array, in which each text ends in a number that nothing else has
    codes = [np.frombuffer((text + "\0").encode("utf-32-le"), np.uint32).copy() for text in texts]
    for number, text in enumerate(codes):
        text[-1] = 0x110000 + number
    whole = np.concatenate(codes)
    suffixes = pydivsufsort.divsufsort(whole)
    common = pydivsufsort.kasai(whole, suffixes)[:-1]  # of each suffix with the next
    groups = np.concatenate(([0], np.cumsum(common < least)))
    first = np.full(groups[-1] + 1, whole.size)
    np.minimum.at(first, groups, suffixes)
    before = np.sort(suffixes[suffixes != first[groups]])
    depth = np.bincount(before, minlength=whole.size + least) - np.bincount(
        before + least, minlength=whole.size + least
    )
    covered = np.concatenate(([0], np.cumsum(depth)[: whole.size] > 0, [0])).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(covered) == 1), np.flatnonzero(np.diff(covered) == -1)
    ends = np.cumsum([text.size for text in codes])
    owner = np.searchsorted(ends, starts, side="right")
    found = [[] for _ in texts]
    for text, start, stop in zip(owner.tolist(), starts.tolist(), stops.tolist(), strict=True):
        base = int(ends[text]) - codes[text].size
        found[text].append((start - base, stop - base))
    return found


if __name__ == "__main__":
    texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
    start = time.process_time()
    found = spans(texts, int(sys.argv[2]))
    print(json.dumps({"cpu_s": time.process_time() - start, "spans": found}))
