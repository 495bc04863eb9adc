"""What the deepspeed launcher's pdsh makes of its words: the shells of the other hosts read them once more.

DeepSpeed 0.19.8 (`deepspeed/launcher/multinode_runner.py`) joins them with spaces. It puts "..." around an argument with a
space and \\ before its quotes, around an exported value with a character that it does not know, and nothing around the
current folder, Python and the script. So `$`, backticks and backslashes are the remote shell's everywhere, and all else
too where there is no space. pdsh itself puts the host for %h, the user for %u and a number for %n.
"""

from __future__ import annotations

import re
import shlex

_PLAIN_PATH = re.compile(r"[\w@+=:,./-]+")
_ACTIVE_IN_QUOTES = re.compile(r"[\\$`]")


def pdsh_argument(word: str) -> str:
    """The word to give to DeepSpeed, for the script to get `word`."""
    # With a space it comes to stand in DeepSpeed's double quotes, with a \ of DeepSpeed's before each of its own.
    quoted = _ACTIVE_IN_QUOTES.sub(r"\\\g<0>", word) if " " in word else shlex.quote(word)
    return quoted.replace("%", "%%")


def pdsh_value(value: str) -> str:
    """What to write into a .deepspeed_env file, for an environment variable of the ranks to have `value`."""
    return re.sub(r'[\\$`"]', r"\\\g<0>", value).replace("%", "%%")


def is_plain_path(path: object) -> bool:
    """Whether a path means itself to a shell, without quotes."""
    return _PLAIN_PATH.fullmatch(str(path)) is not None
