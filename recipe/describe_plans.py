#!/usr/bin/env python3
"""Print what docs/ and ds_configs/ say of plans, as Markdown tables; or write the shipped ds_configs that the planner chooses."""

from __future__ import annotations

import argparse
import sys

from recipe.base.errors import exit_on_user_error
from recipe.planner.search import shipped
from recipe.planner.search.ds_writer import write
from recipe.planner.tables.design_tables import TABLES

EXAMPLE = """examples:
  python recipe/describe_plans.py scaling              a table of docs/design.md
  python recipe/describe_plans.py --write-ds-configs   after a change of the planner"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("table", nargs="?", choices=TABLES, help=f"one of {', '.join(TABLES)}", metavar="TABLE")
    what.add_argument("--write-ds-configs", action="store_true", help="write every file of ds_configs/ anew")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.table is not None:
        print(TABLES[args.table]())
        return
    for path, config in shipped.files().items():
        write(config, path)
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
