#!/usr/bin/env python3
"""Print what docs/ and ds_configs/ say of plans, as Markdown tables; or write the README's figure, or the shipped ds_configs."""

from __future__ import annotations

import argparse
import sys

from recipe.base.arguments import output_file
from recipe.base.errors import exit_on_user_error
from recipe.base.files import write_text
from recipe.planner.search import shipped
from recipe.planner.search.ds_writer import write
from recipe.planner.tables.design_tables import TABLES as PLAN_TABLES
from recipe.planner.tables.plan_figure import plans_figure
from recipe.scaling.cost.tables import LOSS_TABLES

TABLES = {**PLAN_TABLES, **LOSS_TABLES}

EXAMPLE = """examples:
  python recipe/describe_plans.py scaling                                 a table of docs/design.md
  python recipe/describe_plans.py --write-figure docs/figures/plans.svg   the figure of README.md
  python recipe/describe_plans.py --write-ds-configs                      after a change of the planner"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("table", nargs="?", choices=TABLES, help=f"one of {', '.join(TABLES)}", metavar="TABLE")
    what.add_argument("--write-ds-configs", action="store_true", help="write every file of ds_configs/ anew")
    what.add_argument(
        "--write-figure", type=output_file, metavar="SVG", help="write days and cost of the plans as a figure"
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.table is not None:
        print(TABLES[args.table]())
        return
    if args.write_figure is not None:
        write_text(args.write_figure, plans_figure())
        print(f"wrote {args.write_figure}")
        return
    for path, config in shipped.files().items():
        write(config, path)
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
