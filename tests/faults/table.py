"""Print what a run of the fault suite reported, as the table of docs/reliability.md.

FAULTS_REPORT=benchmarks/results/faults.jsonl python -m pytest tests/faults -m "faults and not soak"
python tests/faults/table.py benchmarks/results/faults.jsonl
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from recipe.base.files import read_json_lines
from recipe.base.tables import markdown_table


def main() -> None:
    rows = [
        [
            row["fault"],
            shortened(row["detected"]),
            row["then"],
            number(row["seconds"], ".1f"),
            number(row["lost_steps"], "d"),
        ]
        for row in sorted(read_json_lines(Path(sys.argv[1])), key=lambda row: row["fault"])
    ]
    print(markdown_table(["fault", "what is said", "then", "noticed after, s", "steps lost"], rows, left=3))


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def shortened(message: str) -> str:
    """Without the paths of the machine it ran on."""
    return re.sub(r"/\S*/(?=[\w.]+)", "", message).replace("|", "/")[:150]


if __name__ == "__main__":
    main()
