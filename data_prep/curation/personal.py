"""Personal data masked: e-mail addresses, phone numbers, Chinese resident identity numbers, public IP addresses.

A native scan says where a text can hold any; rules that know what stands around decide, so that code, versions, tables,
ids and URLs stay (`addresses.py`, `phones.py`). Full-width forms count as the ASCII characters that they stand for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date

from data_prep.curation.addresses import IPV4, IPV6, email_span, end_of_last, is_ip_address
from data_prep.curation.characters import native
from data_prep.curation.phones import phone_spans
from recipe.base.strict import Section

# one character for one, as `fold` of native/personal.hpp has them
FOLD = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
FOLD |= {0xA0: " ", 0x3000: " "} | dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
_BEFORE, _AFTER = 320, 64  # characters around a candidate that the rules look at

IDENTITY = re.compile(r"(?<![0-9A-Za-z])(?<!\d\.)[1-9]\d{5}([- ]?)\d{8}\1\d{3}[\dXx](?![0-9A-Za-z])", re.A)
OLD_IDENTITY = re.compile(r"(?<![0-9A-Za-z])(?<!\d\.)[1-9]\d{14}(?![0-9A-Za-z]|[-.]\d)", re.A)
_IDENTITY_WORD = re.compile(
    r"身份|证件|(?<!登记)(?<!许可)证号|居民证|[旧老新换]证|[一二]代证|户口|户籍|户主|户号|公民"
    r"|\b(?:(?i:identity|ID (?:card|number|no)|resident card|citizen|hukou|household register)|(?:Chinese|old|national) ID)\b"
)
_OTHER_WORD = re.compile(
    r"(?<!证件)编号|序号|序列|订单|[单卡账帐批货串票]号|流水|条码|代码|交易|支付|快递|税|纳税|执照|注册|登记证|登记号|许可|银行|设备"
    r"|(?<![a-z])(?:imei|imsi|order|serial|account|invoice|tracking|sku|barcode)(?![a-z])",
    re.I,
)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_REGION = re.compile(r"\d\d(?:0[1-9]|[1-6]\d|70|90)(?!00)", re.A)  # GB/T 2260: 01 to 70 and 90, then 01 to 99
# the first two digits, by GB/T 2260: provinces, autonomous regions and cities; 81 to 83 are residence permits
_PROVINCES = {
    *range(11, 16),
    21,
    22,
    23,
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
    83,
}


class Masks(Section):
    """What stands in for each kind; null leaves that kind alone."""

    email: str | None = "email@example.com"  # RFC 2606
    phone: str | None = "[phone]"
    identity: str | None = "[id]"
    ip: str | None = "192.0.2.1"  # RFC 5737


def is_identity(number: str) -> bool:
    """Whether 18 characters are a Chinese resident identity number: province, date, check digit (GB 11643-1999)."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    check = "10X98765432"[sum(w * int(d) for w, d in zip(weights, number, strict=False)) % 11]
    return _is_born(number[:2], number[6:14]) and check == number[17].upper()


def is_old_identity(number: str) -> bool:
    """Whether 15 digits can be an identity number as issued before 1999, which had no check digit."""
    return _is_born(number[:2], "19" + number[6:12])


def _stands_as_identity(text: str, start: int, stop: int) -> bool:
    """Whether 15 digits, which have no check digit, stand where identity numbers do.

    The nearest word before decides. Without any a number of a region stands beside Chinese: 0.9% of the numbers of 15 digits
    have the province, region and date of one (33/90 * 71/100 * 99/100 * 36525/1000000), and few of them stand so.
    """
    before, after = text[max(0, start - 40) : start], text[stop : stop + 24]
    identity, other = end_of_last(_IDENTITY_WORD, before), end_of_last(_OTHER_WORD, before)
    if identity != other:
        return identity > other
    if _IDENTITY_WORD.search(after):
        return True
    return bool(_REGION.match(text, start) and _HAN.search(before[-12:] + after[:12]))


def _is_born(province: str, birthday: str) -> bool:
    try:
        born = date(int(birthday[:4]), int(birthday[4:6]), int(birthday[6:]))
    except ValueError:
        return False
    return int(province) in _PROVINCES and born.year >= 1850


def mask_personal(text: str, masks: Masks, counts: Counter[str]) -> str:
    """The text with every kind masked; `counts` counts them by kind."""
    while spans := personal_spans_of(text, masks):  # what is masked no longer stands beside what was left
        pieces, done = [], 0
        for start, stop, kind in spans:
            counts[kind] += 1
            pieces += [text[done:start], getattr(masks, kind)]
            done = stop
        text = "".join([*pieces, text[done:]])
    return text


def personal_spans_of(text: str, masks: Masks) -> list[tuple[int, int, str]]:
    """(start, stop, kind) of what is to be masked, in order; none overlap."""
    spans: list[tuple[int, int, str]] = []
    for start, stop, kind in sorted(_candidates(text), key=lambda span: (_KINDS.index(span[2]), span[0])):
        if not any(start < b and a < stop for a, b, _ in spans):
            spans.append((start, stop, kind))
    return sorted(span for span in spans if getattr(masks, span[2]) not in (None, text[span[0] : span[1]]))


_KINDS = ("email", "identity", "ip", "phone")  # a number within an address is none of its own


def _candidates(text: str) -> Iterator[tuple[int, int, str]]:
    for kind, start, stop in native.personal_spans(text):
        offset = max(0, start - _BEFORE)
        window = text[offset : stop + _AFTER]
        if not window.isascii():
            window = window.translate(FOLD)
        for a, b, name in _FINDERS[kind](window, start - offset, stop - offset):
            yield offset + a, offset + b, name


def _emails(text: str, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    if span := email_span(text, start):
        yield *span, "email"


def _numbers(text: str, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    for match in IDENTITY.finditer(text, start, stop + 2):  # its X, and what follows
        if is_identity(re.sub("[- ]", "", match[0])):
            yield *match.span(), "identity"
    for match in OLD_IDENTITY.finditer(text, start, stop + 2):
        if is_old_identity(match[0]) and _stands_as_identity(text, *match.span()):
            yield *match.span(), "identity"
    for span in phone_spans(text, start, stop):
        yield *span, "phone"


def _ip_addresses(text: str, start: int, stop: int) -> Iterator[tuple[int, int, str]]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text, start, stop + 2):
            if is_ip_address(text, *match.span()):
                yield *match.span(), "ip"


_FINDERS = (_emails, _numbers, _ip_addresses)
