"""A list of hosts, and of hosts with the start of a path, and whether a URL is on it.

URLs of crawls and lines of block lists come in many spellings of one address; both are read the same way here, as
browsers read them (https://url.spec.whatwg.org), without ever raising: what is no URL is on no list.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

# scheme, user and password, host, port, path; query and fragment are left. Browsers take a backslash for a slash. A
# scheme has two slashes behind it, but those of the web: the host of "host:8080" is none.
_URL = re.compile(
    r"(?:(?:https?|ftp):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})?"
    r"(?:[^/\\?#]*@)?(?P<host>\[[^]/?#]*]|[^/\\?#:]*)(?::[^/\\?#]*)?(?P<path>[^?#]*)",
    re.I,
)
_DOTS = str.maketrans("。．｡", "...")  # what IDNA takes for a dot (RFC 3490, 3.1)


class BlockedUrls:
    """Answers for a URL whether its host, a domain above it, or one of these with the start of its path is listed."""

    def __init__(self, lines: Iterable[str]):
        self._entries = {(host.removeprefix("*."), path) for host, path in map(_address, lines)}
        self._labels = sorted({host.count(".") + 1 for host, _ in self._entries})
        self._steps = sorted({path.count("/") for _, path in self._entries})

    def has(self, url: Any) -> bool:
        if not self._entries or not isinstance(url, str):
            return False
        host, path = _address(url)
        labels, steps = host.split("."), path.split("/")
        hosts = [".".join(labels[-count:]) for count in self._labels if count <= len(labels)]
        starts = ["/".join(steps[: count + 1]) for count in self._steps if count < len(steps)]
        return any((host, start) in self._entries for host in hosts for start in starts)


def is_entry(line: str) -> bool:
    return _address(line)[0] != ""


def _address(url: str) -> tuple[str, str]:
    """Host and path in one spelling: `host`, and `/a/b` or nothing."""
    url = re.sub(r"[\t\n\r]", "", url.strip())
    match = _URL.match(url)
    assert match is not None  # every part may be empty
    steps: list[str] = []
    for step in unquote(match["path"].replace("\\", "/")).split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    return _host(match["host"]), unicodedata.normalize("NFC", "".join(f"/{step}" for step in steps))


def _host(host: str) -> str:
    """Lower case, in Unicode, without dots around it and without www."""
    host = unicodedata.normalize("NFKC", unquote(host)).translate(_DOTS).lower().strip(".")
    host = ".".join(_unicode(label) for label in host.split("."))
    bare = host.removeprefix("www.")
    return bare if "." in bare else host  # www.com is a host of its own


def _unicode(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        return unicodedata.normalize("NFKC", label[4:].encode("ascii").decode("punycode")).lower()
    except (UnicodeError, ValueError, OverflowError):  # not punycode
        return label
