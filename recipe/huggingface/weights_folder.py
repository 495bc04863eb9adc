"""Tensors of a HuggingFace folder by their names, whose headers are all read before one tensor is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from recipe.base.errors import UserError
from recipe.base.strict import load_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ANOTHER_LAYOUT = "consolidated"  # files of Mistral's own layout, which hold the same weights once more
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of a tensor.

    Args:
        dtype: as the format names it, such as "BF16".
    """

    file: str
    dtype: str
    shape: tuple[int, ...]


class SafetensorsFolder:
    """Tensors of a folder by their names.

    Raises:
        UserError: it holds no safetensors, or files that contradict each other.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.headers: dict[str, Header] = {}
        listed = self._listed()
        for file in sorted(set(listed.values())):
            self._read_headers(file, {name for name, of in listed.items() if of == file})
        self._check_other_files(set(listed.values()) or {SINGLE})

    @property
    def names(self) -> set[str]:
        return set(self.headers)

    def __call__(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / self.headers[name].file, "pt") as handle:
            return handle.get_tensor(name)

    def same_values(self, name: str, other: str, rows: int = 4096) -> bool:
        """Whether two matrices are equal, `rows` rows at a time."""
        first, second = self.headers[name], self.headers[other]
        if first.shape != second.shape:
            return False
        with safe_open(self.folder / first.file, "pt") as a, safe_open(self.folder / second.file, "pt") as b:
            first_rows, second_rows = a.get_slice(name), b.get_slice(other)
            starts = range(0, first.shape[0], rows)
            return all(torch.equal(first_rows[at : at + rows], second_rows[at : at + rows]) for at in starts)

    def _listed(self) -> dict[str, str]:
        """Each tensor's file by the index, which a folder of one file may lack."""
        if not (self.folder / INDEX).exists():
            if not (self.folder / SINGLE).exists():
                raise UserError(
                    f"--model {self.folder} holds no {SINGLE}; give a HuggingFace folder in that format, as save_pretrained of "
                    "transformers writes it"
                )
            return dict.fromkeys(self._names_of(SINGLE), SINGLE)
        index = load_json(self.folder / INDEX)
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
            raise UserError(f"{self.folder / INDEX} has no weight_map of tensors and files; fetch it again")
        missing = sorted({file for file in listed.values() if not (self.folder / file).exists()})
        if missing:
            raise UserError(f"--model {self.folder} lacks {missing[0]}; fetch the whole folder")
        return listed

    def _read_headers(self, file: str, listed: set[str]) -> None:
        names = self._names_of(file)
        if absent := sorted(listed - names):
            raise UserError(
                f"--model {self.folder}: {file} has no tensor '{absent[0]}', which {INDEX} says it holds; fetch both again"
            )
        for name in sorted(names & set(self.headers)):
            raise UserError(
                f"--model {self.folder}: both {self.headers[name].file} and {file} hold the tensor '{name}'; keep one"
            )
        if more := sorted(names - listed):
            raise UserError(
                f"--model {self.folder}: {file} holds the tensor '{more[0]}', which {INDEX} says it does not; fetch both again"
            )
        with safe_open(self.folder / file, "pt") as handle:
            for name in sorted(names):
                header = handle.get_slice(name)
                self.headers[name] = Header(file, header.get_dtype(), tuple(header.get_shape()))

    def _names_of(self, file: str) -> set[str]:
        try:
            with safe_open(self.folder / file, "pt") as handle:
                return set(handle.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / file} cannot be read: {error}; fetch it again") from None

    def _check_other_files(self, read: set[str]) -> None:
        there = {path.name for path in self.folder.glob("*.safetensors") if not path.name.startswith(ANOTHER_LAYOUT)}
        if others := sorted(there - read):
            raise UserError(
                f"--model {self.folder} holds {others[0]}, which is not among the model's files; move it away if it is not of the "
                "model, or merge it (an adapter) and save the model again"
            )
