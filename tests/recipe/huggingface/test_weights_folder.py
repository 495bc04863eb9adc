"""A folder of safetensors is read by its headers, and refused where its files contradict each other."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from recipe.base.errors import UserError
from recipe.huggingface.weights_folder import SafetensorsFolder

FIRST, SECOND = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, {"c": torch.zeros(5, dtype=torch.bfloat16)}
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"weight_map": {"a": FILES[0], "b": FILES[0], "c": FILES[1]}}


def written(folder, index=INDEX, first=FIRST, second=SECOND):
    for file, tensors in zip(FILES, (first, second), strict=True):
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_tensors_of_all_files_by_their_names(tmp_path):
    save_file({"x": torch.ones(1)}, written(tmp_path) / "consolidated.safetensors")  # Mistral's, the same weights again
    tensors = SafetensorsFolder(tmp_path)
    assert tensors.names == {"a", "b", "c"}
    assert torch.equal(tensors("a"), FIRST["a"])
    assert (tensors.headers["c"].dtype, tensors.headers["c"].shape) == ("BF16", (5,))


def test_matrices_are_compared_a_few_rows_at_a_time(tmp_path):
    a = torch.arange(20.0).view(10, 2)
    other = a.clone()
    other[9, 1] = 0
    save_file({"a": a, "same": a.clone(), "other": other, "shorter": a[:9].clone()}, tmp_path / "model.safetensors")
    tensors = SafetensorsFolder(tmp_path)
    assert [tensors.same_values("a", name, rows=4) for name in ("same", "other", "shorter")] == [True, False, False]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"index": {"weight_map": {**INDEX["weight_map"], "d": FILES[1]}}}, f"{FILES[1]} has no tensor 'd', which"),
        ({"second": {**SECOND, "a": FIRST["a"]}}, f"both {FILES[0]} and {FILES[1]} hold the tensor 'a'"),
        ({"second": {**SECOND, "d": torch.ones(1)}}, f"{FILES[1]} holds the tensor 'd', which"),
        ({"index": {"weight_map": {"a": FILES[0], "b": FILES[0]}}}, f"holds {FILES[1]}, which is not among"),
        ({"index": {"weight_map": {**INDEX["weight_map"], "c": "model-3.safetensors"}}}, "lacks model-3.safetensors"),
        ({"index": {"weight_map": {}}}, "has no weight_map"),
        ({"index": []}, "has no weight_map"),
        ({"index": {"weight_map": {"a": 1}}}, "has no weight_map"),
    ],
)
def test_files_that_contradict_the_index_are_refused(values, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        SafetensorsFolder(written(tmp_path, **values))


def test_files_beside_the_model_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        SafetensorsFolder(tmp_path)
    save_file(FIRST, written(tmp_path) / "model.safetensors")  # which transformers would take instead of the index
    with pytest.raises(UserError, match=r"holds model\.safetensors, which is not among"):
        SafetensorsFolder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file(FIRST, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"holds adapter_model\.safetensors"):
        SafetensorsFolder(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / FILES[0]).write_bytes((tmp_path / FILES[0]).read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{FILES[0]} cannot be read"):
        SafetensorsFolder(tmp_path)
