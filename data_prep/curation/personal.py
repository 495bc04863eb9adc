"""Personal data masked: e-mail addresses, phone numbers, Chinese resident identity numbers, public IP addresses.

Identity numbers are checked by date and check digit (GB 11643-1999), IP addresses for being public, so that
versions, prices and serial numbers stay. A native scan says first whether a text can hold any.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import cache

from data_prep.curation.characters import native
from recipe.base.strict import Section

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9_][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.A)
IDENTITY = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[\dXx](?![0-9A-Za-z])", re.A)
PHONE = re.compile(
    r"(?<![\d.+-])(?:"
    r"(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}"  # mainland mobile
    r"|(?:\+?86[- ]?)?\(?0\d{2,3}\)?[- ]\d{7,8}"  # mainland fixed line, with its area code
    r"|(?:\+?1[-. ]?)?\(?[2-9]\d{2}\)?[-. ][2-9]\d{2}[-. ]\d{4}"  # North America
    r"|\+\d{1,3}(?:[- ]\d{2,5}){2,4}"  # any country, written internationally
    r")(?![\d-])",
    re.A,
)
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)", re.A)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.A)


class Masks(Section):
    """What stands in for each kind; null leaves that kind alone."""

    email: str | None = "email@example.com"  # RFC 2606
    phone: str | None = "[phone]"
    identity: str | None = "[id]"
    ip: str | None = "192.0.2.1"  # RFC 5737


def is_identity(number: str) -> bool:
    """Whether 18 characters are a Chinese resident identity number: a real date and the right check digit."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    check = "10X98765432"[sum(w * int(d) for w, d in zip(weights, number, strict=False)) % 11]
    return born.year >= 1850 and check == number[17].upper()


def is_public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def mask_personal(text: str, masks: Masks, counts: Counter[str]) -> str:
    """The text with every kind masked; `counts` counts them by kind."""
    pieces, done = [], 0
    for kind, start, stop in sorted(native.personal_spans(text), key=lambda span: span[1]):
        if start < done:  # within what another kind has replaced or kept
            continue
        # one character on each side, which the patterns look at and never take
        before, after = text[max(0, start - 1) : start], text[stop : stop + 1]
        piece = before + text[start:stop] + after
        masked = _mask_piece(piece, _rules(masks)[kind], counts)
        if masked != piece:
            pieces += [text[done:start], masked[len(before) : len(masked) - len(after)]]
            done = stop
    return "".join([*pieces, text[done:]])


def _mask_piece(piece: str, rules: tuple[_Rule, ...], counts: Counter[str]) -> str:
    for name, mask, pattern, accept in rules:
        if mask is None:
            continue

        def replace(match: re.Match[str], name: str = name, mask: str = mask, accept: Accept = accept) -> str:
            if match[0] == mask or not accept(match[0]):
                return match[0]
            counts[name] += 1
            return mask

        piece = pattern.sub(replace, piece)
    return piece


Accept = Callable[[str], bool]
_Rule = tuple[str, "str | None", "re.Pattern[str]", Accept]


def _always(found: str) -> bool:
    return True


@cache
def _rules(masks: Masks) -> tuple[tuple[_Rule, ...], ...]:
    """By the kind of a span; identity numbers come before phones, which would find one inside."""
    return (
        (("email", masks.email, EMAIL, _always),),
        (("identity", masks.identity, IDENTITY, is_identity), ("phone", masks.phone, PHONE, _always)),
        (("ip", masks.ip, IPV4, is_public_ip), ("ip", masks.ip, IPV6, is_public_ip)),
    )
