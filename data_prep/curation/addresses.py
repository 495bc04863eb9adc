"""E-mail and IP addresses in text, told from code, file names, versions and section numbers."""

from __future__ import annotations

import ipaddress
import re
from functools import cache

from publicsuffixlist import PublicSuffixList

_LOCAL_BACKWARDS = re.compile(r"(?:[\w%+'-]|(?<=[\w%+-])\.(?!\.)){0,63}\w", re.A)
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_DENSITY = re.compile(r"\d+(?:\.\d+)?x\.")  # icon@2x.png, a picture for a screen of twice the density
_USER_INFO = re.compile(r"://[^\s/@]*\Z")  # https://user:password@host
_REMOTE_COMMAND = re.compile(r"\b(?:ssh|scp|sftp|rsync|mosh|ssh-copy-id)\s[^\n|;]*\Z")
_CODE_BEHIND = re.compile(r"[@\[]|\((?=[\x00-\x7f]|\Z)")  # a call; brackets with Chinese are a remark
_REMOTE_PATH = re.compile(
    r":[~\w.-]*/|:[\w.-]+\.git\b|:~|:\d+/| ~?[\w./-]*\][#$]", re.A
)  # git@host:path, [root@host ~]#

IPV4 = re.compile(r"(?<![\w.-])(?<!\d[:=/])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w|-[A-Za-z])", re.A)
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.A)
_VERSION = re.compile(
    r"(?:\b(?:v|ver|versions?|releases?|build|rev|revision|firmware|driver|kernel|section|sections|sect?|chapter|clause|"
    r"article|appendix|tables?|figures?|fig|theorem|lemma|rule|item|oid|rfc)\.?\s*[:#]?\s*|[A-Za-z]/|[=<>~^]=?\s*|[§第图表章节]\s*|"
    r"版本号?\s*[:为是到]?\s*)\Z",
    re.I,
)
_ASSIGNED = re.compile(r"\b(?:ip|addr|address|host|server|client|src|dst|peer|remote)\w*\s*=\s*\Z", re.I)
_ADDRESS_WORD = re.compile(
    r"\b(?:ip|ipv4|dns|host|hosts|hostname|server|servers|name-?servers?|address|addresses|addr|gateway|proxy|proxies|ping|"
    r"client|peer|node|resolver|resolvers|traceroute|curl|telnet|users?|edits?)\b|地址|服务器|主机|域名|网关|节点|解析|代理|用户|://",
    re.I,
)
# Linux 2.4 and 2.6 have versions of four numbers (kernel.org/pub/linux/kernel), as 2.6.32.71
_KERNEL = re.compile(r"2\.[46]\.\d\d?\.\d+", re.A)
_VERSION_NEAR = re.compile(
    r"\b(?:linux|kernels?|versions?|releases?|firmware|drivers?|patch(?:es)?|upgrad\w+|stable|longterm|changelog|uname)\b"
    r"|内核|版本|固件|驱动|升级|补丁",
    re.I,
)
_LARGEST_MAJOR = 20  # of versions that only a word some way before tells from an address
_HEADING = re.compile(r"(?:^|\n)[ \t#*>-]*\Z")


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False, only_icann=True)


@cache
def _is_top_level(label: str) -> bool:
    return _suffixes().publicsuffix(label) is not None


def end_of_last(word: re.Pattern[str], text: str) -> int:
    """Where the last of the words ends; -1: there is none."""
    return max((match.end() for match in word.finditer(text)), default=-1)


def email_span(text: str, at: int) -> tuple[int, int] | None:
    """The address around the @ at `at`, if its domain ends with a top-level domain that exists and it is no login."""
    local = _LOCAL_BACKWARDS.match(text[max(0, at - 64) : at][::-1])
    domain = _DOMAIN.match(text, at + 1)
    if not local or not domain or _DENSITY.match(text, at + 1):
        return None
    start, stop = at - local.end(), domain.end()
    while not _is_domain(name := text[at + 1 : stop]):
        if "." not in name:
            return None
        stop = at + 1 + name.rindex(".")
    if (text[start - 1 : start] in ("@", "%", "}", "$", "*") and start) or _CODE_BEHIND.match(text, stop):
        return None
    if _is_login(text[max(0, start - 120) : start]) or _REMOTE_PATH.match(text, stop):
        return None
    return _without_quote(text, start, stop), stop


def _is_login(before: str) -> bool:
    """Whether what stands before makes a user at a host of an address: in a URL, or for a command."""
    return ("://" in before and _USER_INFO.search(before) is not None) or _REMOTE_COMMAND.search(before) is not None


def _is_domain(name: str) -> bool:
    """Whether a top-level domain ends it, in the case of the rest: the last of `example.org.Please` begins a sentence."""
    labels = name.split(".")
    sentence = labels[-1][:1].isupper() and labels[-2:-1] != [] and labels[-2].islower()
    numbers = len(labels) > 2 and labels[0].isdigit() and labels[1].isdigit()  # a version
    return len(labels) > 1 and not sentence and not numbers and _is_top_level(labels[-1].lower())


def _without_quote(text: str, start: int, stop: int) -> int:
    """Where the address starts behind a quote mark that is not an apostrophe: it closes after the address."""
    quote = text.rfind("'", start, stop)
    return quote + 1 if quote >= 0 and text[stop : stop + 1] == "'" else start


def is_ip_address(text: str, start: int, stop: int) -> bool:
    """Whether numbers that are written as an IP address are one, and a public one."""
    number = text[start:stop]
    try:
        address = ipaddress.ip_address(number)
    except ValueError:
        return False
    before, after = text[max(0, start - 48) : start], text[stop : stop + 8]
    public = address.is_global and not address.is_multicast
    return public and (_is_ipv6(number, before) if ":" in number else _is_ipv4(number, before, after))


def _is_ipv6(number: str, before: str) -> bool:
    """Public addresses lie in 2000::/3 (RFC 4291); a[2000::2] is a slice."""
    slices = re.search(r"[\w)\]]\[\Z", before)
    return not slices and len([group for group in number.split(":") if group]) >= 3


def _is_ipv4(number: str, before: str, after: str) -> bool:
    """Versions and section numbers are told by the word before; small numbers need a word of addresses."""
    if _ASSIGNED.search(before):
        return True
    if _VERSION.search(before):
        return False
    line = before.rpartition("\n")[2]
    if _KERNEL.fullmatch(number):
        return _ADDRESS_WORD.search(line[-20:]) is not None
    numbers = [int(part) for part in number.split(".")]
    if numbers[0] <= _LARGEST_MAJOR and end_of_last(_VERSION_NEAR, line) > end_of_last(_ADDRESS_WORD, line):
        return False
    if max(numbers) >= 64:
        return True
    if _HEADING.search(before) and re.match(r"[.．]? *[^\W\d]", after):
        return bool(re.match(r"\s+[a-z]\w*\.", after))  # a line of a hosts file
    return bool(_ADDRESS_WORD.search(line) or re.match(r":\d{2,5}\b", after))
