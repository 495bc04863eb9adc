"""A safetensors file that is written tensor by tensor, so that only one of them need be in memory.

Format (https://github.com/huggingface/safetensors#format): the header's length as 8 little-endian bytes, the header as JSON,
then the tensors' bytes without gaps. The header comes first, so names, types and shapes are declared before the first tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}  # those that models are trained in
ALIGNMENT = 8  # of the tensors' bytes, to which the header is filled up with blanks, as the library does


class Declared(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Takes the declared tensors in their order.

    Raises:
        OSError: from every method, with the file's name: the disk is full, for one.
    """

    def __init__(self, path: Path, tensors: Iterable[Declared]):
        self.path, self._left = path, list(tensors)[::-1]
        self._handle = open(path, "wb")
        self._write(_header(self._left[::-1]))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        declared = self._left.pop()
        assert declared == (name, tensor.dtype, tuple(tensor.shape)), (declared, name, tensor.dtype, tensor.shape)
        if tensor.numel():
            self._write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        """All is written: have it on the disk, readable by whom the umask lets read."""
        assert not self._left, f"{self._left[-1].name} was declared and not written"
        try:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise _named(error, self.path) from error
        self._handle.close()

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._handle.write(data)
        except OSError as error:
            raise _named(error, self.path) from error


def _named(error: OSError, path: Path) -> OSError:
    """A failed write does not say of which file."""
    return OSError(error.errno, error.strerror, str(path))


def _header(tensors: Iterable[Declared]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return struct.pack("<Q", len(content)) + content
