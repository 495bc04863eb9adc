"""MinHash signatures over word or character n-grams, and the bands by which similar texts meet.

Words in scripts that separate them, single characters in Chinese and Japanese, so that no segmenter is needed and
mixed text is one sequence. A signature has bands * rows minima; two texts meet when all rows of one band agree,
which at Jaccard similarity J happens with probability 1 - (1 - J**rows)**bands (Leskovec et al., Mining of Massive
Datasets, 3.4). The share of all minima that agree estimates J with variance J * (1 - J) / (bands * rows).
The scan is native (native/minhash.hpp).
"""

from __future__ import annotations

import numpy as np
import xxhash

from data_prep.core.shuffle import scatter
from data_prep.curation.characters import native

_COMPARED_PAIRS = 1 << 15  # at a time: twice 256 bytes each


class MinHash:
    """Signatures by multiply-shift hash functions drawn from a seed.

    Equal parameters give equal signatures on any machine and with any version of Python or numpy.
    """

    def __init__(self, ngram: int, bands: int, rows: int, seed: int):
        self.bands, self.rows = bands, rows
        drawn = [xxhash.xxh3_64_intdigest(f"{place}".encode(), seed=seed) >> 32 for place in range(2 * bands * rows)]
        self._signer = native.Signer(ngram, [m | 1 for m in drawn[: bands * rows]], drawn[bands * rows :])

    def shingles(self, text: str) -> np.ndarray:
        """uint64 hash of each n-gram in order; of the whole word sequence where it is shorter than n."""
        return self._signer.shingles(text)

    def signature(self, text: str) -> np.ndarray:
        """uint32 [bands * rows]: the minimum of each hash function over the text's n-grams; the largest where it has none.

        A text with fewer words than n has none: its few words would stand for whatever else it holds.
        """
        return self._signer.sign(text)

    def lacks_ngrams(self, keys_NB: np.ndarray) -> np.ndarray:
        """bool [N]: the band keys are those of a text without an n-gram, whose minima are of nothing."""
        nothing = np.full((1, self.bands * self.rows), np.iinfo(np.uint32).max, np.uint32)
        return (keys_NB == self.band_keys(nothing)).all(axis=1)

    def band_keys(self, signatures_NH: np.ndarray) -> np.ndarray:
        """uint64 [N, bands]: equal where all rows of a band are; the same rows in another band give another key."""
        rows_NBR = signatures_NH.reshape(len(signatures_NH), self.bands, self.rows)
        keys_NB = scatter(np.broadcast_to(np.arange(self.bands, dtype=np.uint64), rows_NBR.shape[:2]))
        for row in range(self.rows):
            keys_NB = scatter(keys_NB ^ rows_NBR[:, :, row].astype(np.uint64))
        return keys_NB


def pack(signatures_NH: np.ndarray) -> np.ndarray:
    """uint8 [N, H]: a byte of each minimum, enough to tell how many agree (b-bit MinHash, arXiv 0910.3349)."""
    return ((signatures_NH * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def similarity(packed_left_NH: np.ndarray, packed_right_NH: np.ndarray) -> np.ndarray:
    """float64 [N]: estimated Jaccard similarity; a byte agrees by chance once in 256 times."""
    agreed = np.concatenate(
        [np.zeros(0)]
        + [
            (packed_left_NH[at : at + _COMPARED_PAIRS] == packed_right_NH[at : at + _COMPARED_PAIRS]).mean(axis=1)
            for at in range(0, len(packed_left_NH), _COMPARED_PAIRS)
        ]
    )
    return (agreed - 1 / 256) / (1 - 1 / 256)
