#!/usr/bin/env python3
"""Evaluate a run's checkpoint or an exported HuggingFace folder: held-out loss, downstream tasks, or recall at length."""

from __future__ import annotations

import argparse
import sys

from recipe.base.errors import exit_on_user_error
from recipe.base.ranks import leave
from recipe.evaluation import held_out_command, needle_command
from recipe.evaluation.downstream import command as downstream_command

COMMANDS = {"held-out": held_out_command, "downstream": downstream_command, "needle": needle_command}
EXAMPLE = "\n".join(
    [held_out_command.EXAMPLE, *downstream_command.EXAMPLE.splitlines()[1:], *needle_command.EXAMPLE.splitlines()[1:]]
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", metavar="{held-out,downstream,needle}")
    of_command = {}
    for name, command in COMMANDS.items():
        of_command[name] = subparsers.add_parser(
            name,
            help=command.DESCRIPTION,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(of_command[name])
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        parser.error(
            "what to evaluate comes first: `recipe/evaluate_model.py held-out ...` for the loss on held-out tokens, "
            "`recipe/evaluate_model.py downstream ...` for tasks of lm-evaluation-harness, "
            "`recipe/evaluate_model.py needle ...` for recall by length and depth"
        )
    args = parser.parse_args(words)
    COMMANDS[args.command].check_arguments(of_command[args.command], args)
    return args


def without_local_rank(words: list[str]) -> list[str]:
    """The arguments without the one that the deepspeed launcher puts before them."""
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--local_rank", type=int)
    return launcher.parse_known_args(words)[1]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    COMMANDS[args.command].run(args)


if __name__ == "__main__":
    leave(main())
