"""A file written tensor by tensor is one that the safetensors library reads."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from recipe.huggingface.safetensors_writer import Declared, SafetensorsWriter


def declared(tensors):
    return [Declared(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_library_reads_what_was_written(dtype, tmp_path):
    tensors = {
        "z.last_of_the_alphabet": torch.randn(3, 5).to(dtype),
        "no.rows": torch.empty(0, 4, dtype=dtype),
        "no.columns": torch.empty(4, 0, dtype=dtype),
        "a.cut": torch.randn(6, 4).to(dtype)[::2, 1:3],
        "bias": torch.randn(7),
    }
    writer = SafetensorsWriter(tmp_path / "x.safetensors", declared(tensors))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt"}  # without which transformers refuses a file


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("b", torch.ones(2, 3)), ("a", torch.ones(3, 2)), ("a", torch.ones(2, 3, dtype=torch.bfloat16))],
    ids=["name", "shape", "dtype"],
)
def test_only_the_declared_tensor_is_written(name, tensor, tmp_path):
    writer = SafetensorsWriter(tmp_path / "x", [Declared("a", torch.float32, (2, 3))])
    with pytest.raises(AssertionError, match="dtype=torch"):
        writer.write(name, tensor)


def test_a_file_that_lacks_a_declared_tensor_is_not_closed_as_whole(tmp_path):
    writer = SafetensorsWriter(tmp_path / "x", [Declared("a", torch.float32, (2, 3))])
    with pytest.raises(AssertionError, match="a was declared and not written"):
        writer.close()


def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "x").symlink_to("/dev/full")
    big = torch.ones(1 << 20)
    writer = SafetensorsWriter(tmp_path / "x", [Declared("a", torch.float32, (1 << 20,))])
    with pytest.raises(OSError, match="x") as raised:
        writer.write("a", big)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
