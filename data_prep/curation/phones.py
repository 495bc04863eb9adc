"""Phone numbers in text, told from tables, versions, ids in URLs and quantities.

Three ways of writing are looked for: international, mainland Chinese, North American. libphonenumber says whether the
numbering plan has such a number (Google's metadata, https://github.com/google/libphonenumber). Service lines (800, 400)
belong to no person and stay. What stands around decides about the rest: behind a word for phones a number is one
however it is written; in a URL or a path, behind a word for ids, or before a unit it is none.
"""

from __future__ import annotations

import re
from itertools import pairwise

import phonenumbers
from phonenumbers import PhoneNumberType

_COUNTRY = r"(?:\(?(?:\+|00|0)?86\)?[- ]{0,2})?"  # of China
_SHAPES = (
    (None, r"(?P<number>(?:\(?\+\(?[1-9]\d{0,2}|00(?=86))\)?(?:[-. ]{0,2}(?:\(\d{1,5}\)|\d{1,12})){1,6})"),
    ("CN", _COUNTRY + r"(?P<number>1[3-9](?:\d{9}|\d([-. ])\d{4}\2\d{4}|\d\d([-. ])\d{3}\3\d{4}))"),
    (
        "CN",
        _COUNTRY
        + r"(?P<number>\(?0[1-9]\d{1,2}(?:\) ?|[-. ]{0,2})(?:\d{7,8}|\d{3,4}[-. ]\d{4}))(?:-\d{1,5}(?![-\d]))?",
    ),
    (  # no place has an area code that ends in 00
        "US",
        r"(?:1[-. ])?(?P<number>(?:\([2-9]\d\d\)[-. ]?[2-9]\d\d[-. ]|(?!\d00)[2-9]\d\d([-. ])[2-9]\d\d\2)\d{4})",
    ),
)
SHAPES = tuple((region, re.compile(rf"(?<!\d){shape}(?!\d)", re.A)) for region, shape in _SHAPES)
ANY_SHAPE = re.compile(r"(?<!\d)(?P<number>\(?(?:\d{2,5}\)?(?:[-. ]?\d{2,5}){1,4}|\d{7,12}))(?!\d)", re.A)
_DATE = re.compile(r"(?:19|20)\d\d([-. ])\d\d?\1\d\d?", re.A)
_SERVICES = frozenset(
    (PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN)
)

# between a word and its number: "no.", "is", quotes and a colon
_LINK = r"(?:号码?|no\.?|numbers?|#|is|\(\w+\))?[\"'*]*\s{0,3}[:=为是]?[\s\"'*]{0,4}"
_MORE = r"(?:\+?[\d() -]{7,20}[,;/、或和]\s?){0,3}"  # numbers of the same list
_LABEL = re.compile(
    r"(?:电话|手机号?|移动电话|座机|固话|传真|热线|致电|拨打|微信号?|联系方式"
    r"|(?<![\u4e00-\u9fff])号码|(?<=[话机系络真线的我你他她])号码"  # and no 中奖号码, 车牌号码
    r"|(?<![a-z])(?:tel|telephone|phone|mobile|cell|cellphone|fax|whatsapp)\.?)\s{0,3}" + _LINK + _MORE + r"\(?\Z",
    re.I,
)
_HINT = re.compile(
    r"电话|手机|座机|固话|传真|热线|致电|拨打|微信|联系方式|号码|(?i:tel|phone|mobile|cell|fax|whatsapp)"
)
_CALL = re.compile(
    r"(?<![a-z])(?:call|ring|dial|reach|phone|tel|telephone|mobile|cell|fax)"
    r"(?:\s+(?:me|us|him|her|them|at|on|now|today|back|number|is))*[\s:.]*\Z",
    re.I,
)
_NEAR = re.compile(
    r"电话|手机|联系|致电|拨打|传真"
    r"|\b(?:phone|tel|telephone|mobile|cell|cellphone|fax|sms|text (?:me|us|him|her|them)|contact|whatsapp|hotline|ring|dial)\b",
    re.I,
)
_WORD = re.compile(
    r"电话|手机|座机|固话|传真|热线|致电|联系|拨打|打给?|(?<![a-z\[<])(?:tel|telephone|phone|fax|call)(?![a-z\]>])",
    re.I,
)
_IDENTIFIER = re.compile(
    r"(?:第|编号|[单票卡账帐货型批证序列水学工考件文]号|代码|条码|序列|流水|QQ群?号?|群号?|备案"
    r"|(?<![a-z])(?:isbn|issn|doi|ids?|uid|pid|order|serial|invoice|tracking|account|item|part|model|reference|ref|ticket"
    r"|issue|patent|sku|upc|ean|imei|iban|cas|cusip|barcode|version|firmware|build|port|seed|timestamp|md5|sha\d*|box|pmid"
    r"|bug|(?<!phone )lines|rows|pages?|pp)|版本|固件|行号|页码)"
    r"\s{0,3}" + _LINK + r"\Z",
    re.I,
)
_COUNT = re.compile(
    r"(?:(?:[数量额值]|总共|共计?|总计)[为是达约有]{0,2}"
    r"|(?<![a-z])(?:param(?:eter)?s?|trainable|tokens|flops|total|count|size|bytes(?:_[a-z]+)?))\s{0,3}"
    + _LINK
    + r"\Z|\w\"\s?:\s?\Z",  # or a number of JSON
    re.I,
)
_LINKED = re.compile(r"(?:://|\bwww\.)[!#-&*+\-./0-9:=?@A-Z_a-z~]*\Z")
_PATH = re.compile(r"(?:^|\s|[\w.~-])(?<!tel)(?<!phone)(?<!mobile)(?<!\d)/[\w.~%=&?#+-]*\Z", re.A | re.I)
_UNIT = re.compile(
    r"\s?(?:[元人次个万亿年月日天件条米克吨秒毫词篇步%‰°]|字节|公里|美元|bytes?\b|[kmg]?i?b\b|[kmc]?m\b|[mn]?s\b|px\b|hz\b|kg\b"
    r"|(?:dollars|people|votes|times|param(?:eter)?s|tokens|flops|rows|lines|words|documents|samples|steps|records)\b)",
    re.I,
)
_JOINED_BEFORE = re.compile(
    r"[\w#$¥€£￥@&\\^`~*%<>=+-]\Z|[\d.][-.:]\Z|(?<!\d{6})\d/\Z|[=<>*/%^+] \Z|\w\[\Z|[\w)] - \Z", re.A
)
_JOINED_AFTER = re.compile(r"\w|[-.:]\d|(?!/\d{7})/\d|\.[a-z]{2,4}\b|[-/][A-Za-z_]|@|\s?[*%<>=^+][\s\w=]", re.A)
_NUMBER_BEFORE = re.compile(r"\d[ \t|,;]{1,3}\Z", re.A)
_NUMBER_AFTER = re.compile(r"[ \t|,;]{1,3}[-+]?\d", re.A)


def phone_spans(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Where phone numbers are among the digits and separators from `start` to `stop`."""
    spans: list[tuple[int, int]] = []
    start = max(0, start - 2)  # a bracket and a plus sign
    shapes = (*SHAPES, ("", ANY_SHAPE)) if _HINT.search(text, max(0, start - 64), stop) else SHAPES
    for region, shape in shapes:
        for match in shape.finditer(text, start, min(len(text), stop + 1)):
            end = _end_of_phone(text, region, match)
            if end and not any(match.start() < b and a < end for a, b in spans):
                spans.append((match.start(), end))
    return sorted(spans)


def _end_of_phone(text: str, region: str | None, match: re.Match[str]) -> int | None:
    """Where the phone number ends that a shape has found; None: it is none."""
    before = text[max(0, match.start() - 256) : match.start()]
    near = before[-64:]
    if (("://" in before or "www." in before) and _LINKED.search(before)) or _IDENTIFIER.search(near):
        return None
    if _HINT.search(near) and _LABEL.search(near):
        return match.end() if _may_be_labelled(match["number"], region) else None
    if region == "" or _JOINED_BEFORE.search(near[-8:]) or ("/" in near and _PATH.search(near)) or _COUNT.search(near):
        return None
    end = _longest_valid(match, region)
    if end is None:
        return None
    after = text[end : end + 16]
    if _JOINED_AFTER.match(after) or _UNIT.match(after) or not _is_written_so(match, near, after):
        return None
    return end


def _may_be_labelled(number: str, region: str | None) -> bool:
    """Whether a number behind a word for phones can be one: long enough, no date, no service line."""
    digits = sum(char.isdigit() for char in number)
    most = 15 if number.startswith("00") else 12
    if region == "" and (not 7 <= digits <= most or _DATE.match(number) or _is_draw(number)):
        return False
    return not any(_type(number, plan) in _SERVICES for plan in ([None] if "+" in number else ["CN", "US"]))


def _is_draw(number: str) -> bool:
    """Whether these are numbers of two digits in ascending order, as lotteries tell them."""
    pairs = number.split(" ")
    return all(len(pair) == 2 for pair in pairs) and all(a < b for a, b in pairwise(pairs))


def _longest_valid(match: re.Match[str], region: str | None) -> int | None:
    """Where the longest number of the plan ends that the match begins with: a table may go on behind it."""
    number = match["number"]
    if region == "US" and number[0] == "(":  # of fiction, often: (555) 123-4567
        return match.end() if _type(number, region) not in _SERVICES else None
    if region is not None:
        return match.end() if _is_personal(number, region) else None
    for last in reversed(list(re.finditer(r"\d+\)?", number, re.A))):
        if _is_personal(number[: last.end()], None):
            return match.start("number") + last.end()
    return match.end() if _is_possible(number) else None


def _is_possible(number: str) -> bool:
    """Whether an international number in groups has the length that its country's have, if no one has got it yet."""
    try:
        parsed = phonenumbers.parse(number, "CN")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_possible_number(parsed) and bool(re.search(r"\d[-. ()]+\d+[-. ()]+\d", number))


def _is_personal(number: str, region: str | None) -> bool:
    return _type(number, region) not in (PhoneNumberType.UNKNOWN, *_SERVICES)


def _type(number: str, region: str | None) -> int:
    try:
        return phonenumbers.number_type(phonenumbers.parse(number, region or "CN"))
    except phonenumbers.NumberParseException:
        return PhoneNumberType.UNKNOWN


def _is_written_so(match: re.Match[str], before: str, after: str) -> bool:
    """Whether the number stands as phone numbers do: those that a table or an id could be need a word or room."""
    written = match[0]
    if written[0] in "+(" or written.startswith("00"):
        return True
    if " " in written and (_NUMBER_BEFORE.search(before) or _NUMBER_AFTER.match(after)):
        return False
    if written.endswith("00000"):  # a quantity
        return False
    if written[0] == "0" and written.isdigit():
        return bool(_WORD.search(before[-32:]))
    if not re.fullmatch(r"(?:1 )?\d{3} \d{3} \d{4}", written) or _CALL.search(before):
        return True
    # no quantity begins with 0
    return written[-4] == "0" or bool(_NEAR.search(before[-40:].rpartition("\n")[2]) or _NEAR.search(after))
