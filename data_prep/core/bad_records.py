"""Records of the input without usable text: set aside up to a limit, then the stage stops."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from data_prep.documents.reading import BadRecord
from recipe.base.errors import UserError
from recipe.base.files import write_json

WHAT_TO_DO = "correct the input and choose another --output, or raise --max-bad"


class BadRecords:
    """Sets the records of one part of the input aside that have no usable text, up to the stage's limit.

    Raises:
        UserError: from a call, at the first record beyond the limit.
    """

    def __init__(self, path: Path, number: int, output: Path, max_bad: int):
        self._path, self._max_bad = path, max_bad
        self._aside = output / "bad_records" / f"{number:05d}.json"
        self._records: list[BadRecord] = []

    def __call__(self, record: BadRecord) -> None:
        self._records.append(record)
        if len(self._records) > self._max_bad:
            self.write()
            raise UserError(
                f"{self._path} record {record.record}: {record.reason}; {len(self._records)} of its records have no usable "
                f"text, more than --max-bad {self._max_bad} allows; they are in {self._aside}; {WHAT_TO_DO}"
            )

    def __len__(self) -> int:
        return len(self._records)

    def write(self) -> None:
        if self._records:
            write_json(self._aside, [asdict(record) for record in self._records])
        else:
            self._aside.unlink(missing_ok=True)  # of an attempt before, when the input had some
