"""A list of hosts, and of hosts with the start of a path, and whether a URL is on it.

URLs of crawls and lines of block lists come in many spellings of one address; both are read the same way here, as
browsers read them (https://url.spec.whatwg.org), without ever raising: what is no URL is on no list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from data_prep.curation.cleaning import compose

# scheme, user and password, host, port, path; query and fragment are left. Browsers take a backslash for a slash. A
# scheme has two slashes behind it, but those of the web: the host of "host:8080" is none.
_URL = re.compile(
    r"(?:(?:https?|ftp):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})?"
    r"(?:[^/\\?#]*@)?(?P<host>\[[^]/?#]*]|[^/\\?#:]*)(?P<port>:[^/\\?#]*)?(?P<path>[^?#]*)",
    re.I,
)
# Around a URL: controls and blanks, which browsers strip, and what copying leaves. In a host: what UTS #46 ignores.
_UNSEEN = "\xad\u034f\u180b\u180c\u180d\u180f\u200b\u2060\u2064\ufeff" + "".join(map(chr, range(0xFE00, 0xFE10)))
_AROUND = _UNSEEN + "".join(chr(code) for code in range(0x3001) if code <= 0x20 or chr(code).isspace())
_IGNORED = dict.fromkeys(map(ord, _UNSEEN))
_MAX_LABEL = 63  # characters between two dots of a host (RFC 1035, 2.3.4); decoding punycode takes quadratic time
_DOTS = str.maketrans("。．｡", "...")  # what IDNA takes for a dot (RFC 3490, 3.1)


class BlockedUrls:
    """Answers for a URL whether its host, a domain above it, or one of these with the start of its path is listed."""

    def __init__(self, lines: Iterable[str]):
        self._entries = set(map(_address_of_line, lines))
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


def _address_of_line(line: str) -> tuple[str, str]:
    entry = _entry(line)
    if entry is None:
        raise ValueError(f"{line!r} is no host or host/path")
    return entry


def is_entry(line: str) -> bool:
    """Whether a line of a block list says all it means with a host, or a host and the start of a path."""
    return _entry(line) is not None


# Read beside hosts and URLs: a comment behind them, a line of a hosts file, and an Adblock rule for a whole host.
_COMMENT = re.compile(r"\s+#.*")
_HOSTS_FILE = re.compile(r"(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+")
_ADBLOCK = re.compile(r"\|\|([^/^|]+)\^")
_SUBDOMAINS = re.compile(r"((?:https?:)?//)?\*\.", re.I)
# What a line with a pattern, a query, a list, quotes, a user or options has; a path may have most of it.
_MORE = re.compile(r"[\s*^|]|[?#].|^[^/\\]*@|//[^/\\]*@", re.S)
_IN_NO_HOST = re.compile(r"[\s\0-,/:-@\[-^`{-\x7f“”‘’«»‹›、]|\.\.")
_IPV6 = re.compile(r"\[[0-9a-f:.]+]")
_PORT = re.compile(r":[0-9]*")


def _entry(line: str) -> tuple[str, str] | None:
    """Host and path of a line; None where the line means something else, or more."""
    line = _COMMENT.sub("", line.strip(_AROUND))
    if prefix := _HOSTS_FILE.match(line):
        line = line[prefix.end() :]
    elif rule := _ADBLOCK.fullmatch(line):
        line = rule[1]
    if prefix := _SUBDOMAINS.match(line):
        line = (prefix[1] or "") + line[prefix.end() :]
    match = _URL.match(line)
    assert match is not None  # every part may be empty
    host, path = _address(line)
    is_host = host != "" and (_IPV6.fullmatch(host) or not _IN_NO_HOST.search(host))
    return (host, path) if is_host and _PORT.fullmatch(match["port"] or ":") and not _MORE.search(line) else None


def _address(url: str) -> tuple[str, str]:
    """Host and path in one spelling: `host`, and `/a/b` or nothing."""
    url = url.encode("utf-8", "replace").decode()  # lone surrogates are no characters
    url = re.sub(r"[\t\n\r]", "", url.strip(_AROUND))
    match = _URL.match(url)
    assert match is not None  # every part may be empty
    steps: list[str] = []
    for step in unquote(match["path"].replace("\\", "/")).split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    return _host(match["host"]), compose("".join(f"/{step}" for step in steps))


def _host(host: str) -> str:
    """Lower case, in Unicode, without dots around it and without www."""
    host = compose(unquote(host).translate(_IGNORED), "NFKC").translate(_DOTS).lower().strip(".")
    host = ".".join(_unicode(label) for label in host.split("."))
    bare = host.removeprefix("www.")
    return bare if "." in bare else host  # www.com is a host of its own


def _unicode(label: str) -> str:
    if not label.startswith("xn--") or len(label) > _MAX_LABEL:
        return label
    try:
        return compose(label[4:].encode("ascii").decode("punycode"), "NFKC").lower()
    except (UnicodeError, ValueError, OverflowError):  # not punycode
        return label
