"""Personal data is masked, and what only looks like it stays."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from data_prep.curation.characters import native
from data_prep.curation.personal import FOLD, Masks, is_identity, mask_personal, personal_spans_of


def mask(text: str, **masks) -> tuple[str, Counter]:
    counts: Counter[str] = Counter()
    return mask_personal(text, Masks(**masks), counts), counts


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a.b+c@mail.example.org, please", "write to email@example.com, please"),
        ("邮箱zhang_san@qq.com。", "邮箱email@example.com。"),
        ("电话13800138000，或+86 139-1234-5678", "电话[phone]，或[phone]"),
        ("tel 010-62781234, (0571) 87951234", "tel [phone], [phone]"),
        ("call (415) 555-2671 or +1-415-555-2671", "call [phone] or [phone]"),
        ("London +44 20 7946 0958.", "London [phone]."),
        ("身份证11010519491231002X号", "身份证[id]号"),
        ("server 8.8.8.8, 2001:4860:4860::8888", "server 192.0.2.1, 192.0.2.1"),
        ("Mail:...ann.li@mail.example.net", "Mail:...email@example.com"),
        ("See bo@mail.example.net.Then go", "See email@example.com.Then go"),
        ("邮箱ｗａｎｇ＠mail.example.net。", "邮箱email@example.com。"),
        ("d'arcy@mail.example.net or 'al@mail.example.net'", "email@example.com or 'email@example.com'"),
        ("传真02087651234，电话０１０－６２７８１２３４", "传真[phone]，电话[phone]"),
        ("电话：62781234、62781235", "电话：[phone]、[phone]"),
        ("(+86)13800138000/13900139000", "[phone]/[phone]"),
        ("call me at 415 555 2671, fax 312.555.0188", "call me at [phone], fax [phone]"),
        ("tel. 0044 20 7946 0958, 010—62781234", "tel. [phone], [phone]"),
        ("旧身份证号110105491231002，新110105 19491231 002X", "旧身份证号[id]，新[id]"),
        ("http://93.184.216.34:80/ and [2606:4700:4700::1111]:53", "http://192.0.2.1:80/ and [192.0.2.1]:53"),
        ("login ip=1.12.1.9 from 93.184.216.0/24", "login ip=192.0.2.1 from 192.0.2.1/24"),
    ],
)
def test_personal_data_is_masked(text, masked):
    found, counts = mask(text)
    assert found == masked
    assert counts.total() > 0


@pytest.mark.parametrize("prefix", ["130", "145", "150", "166", "170", "180", "190"])
@pytest.mark.parametrize("form", ["{}12345678", "+86 {} 1234 5678", "86{}12345678", "{}-1234-5678"])
def test_mobile_numbers_of_every_carrier_are_masked(prefix, form):
    assert mask(f"call {form.format(prefix)}, please") == ("call [phone], please", Counter(phone=1))


@pytest.mark.parametrize("prefix", ["10", "11", "12", "16", "23"])
def test_other_numbers_of_eleven_digits_stay(prefix):
    assert mask(f"number {prefix}012345678")[1] == Counter()


@pytest.mark.parametrize(
    "text",
    [
        "user@host and @mention, a@b",
        "110105194912310021 has the wrong check digit",
        "pi is 3.14159265358979, and 1234567890123 is a number",
        "ISBN 978-7-115-12345-6 of 2026-11-24, 20261124103000",
        "192.168.0.1, 10.0.0.1, 127.0.0.1, 999.1.1.1, v1.2.3.4, 1.2.3.4.5",
        "at 12:30:45, std::vector::size, ::",
        "already email@example.com and 192.0.2.1",
        "sizes 224 512 1024 and 128 256 5120 of the phone",
        "x[::2], y[1::3], z[2000::25:2], ns::beef::dead, fe80::1, aa:bb:cc:dd:ee:ff",
        "icon@2x.png, getty@tty1.service, q@k.transpose(0), react@18.2.0, pi@box.local",
        "git@host.example.com:a/b.git, ssh://me@host.example.com/x, scp f pi@host.example.com:",
        "https://example.net/p/19269451950?id=13812345678 /user/13812345678 img_13812345678.jpg",
        "订单号：13812345678，QQ群：1391234567，文件13812345678字节，第13812345678号",
        "x = 13812345678; y[13812345678], 0x13812345678, 13800000000",
        "800-555-0199, 客服热线400-810-1234",
        "| 212 555 1420 | 303 555 1230 |",
        "pkg==1.2.3.4, Chrome/12.0.4.8, § 3.2.1.4, version 9.8.7.100, 4.3.2.1 背景, 2.5.4.3",
        "224.0.0.251, 255.255.255.255, 2001:db8::1",
        "IMEI 352099001761481, 编号110105491231002",
        "",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert mask(text) == (text, Counter())


def test_text_around_what_is_masked_is_untouched_wherever_it_stands():
    text = "13800138000 x@y.org 漢字x@y.org,13800138000"
    assert mask(text)[0] == "[phone] email@example.com 漢字email@example.com,[phone]"
    assert mask(text)[1] == {"phone": 2, "email": 2}


def test_a_kind_can_be_left_alone():
    assert mask("x@y.org 13800138000", email=None, phone="<tel>")[0] == "x@y.org <tel>"


@pytest.mark.parametrize(
    ("number", "valid"),
    [
        ("11010519491231002X", True),
        ("11010519491231002x", True),
        ("110105194912310021", False),
        ("11010519491331002X", False),
        ("440524188001010014", True),
    ],
)
def test_identity_numbers_have_a_date_and_a_check_digit(number, valid):
    assert is_identity(number) == valid


PIECES = [
    "13800138000",
    "139 1234 5678",
    "415 555 2671",
    "010-62781234",
    "02087651234",
    "a.b@mail.example.net",
    "8.8.8.8",
    "1.12.1.9",
    "电话",
    "call",
    " tel ",
    "：",
    ", ",
    " ",
    "/",
    "[",
    "]",
    "::",
    "2606:4700:4700::1111",
    "11010519491231002X",
    "110105491231002",
    "身份证",
    "１３８",
    "＠",
    "id=",
    "https://a.b/",
    "\n",
    ".",
    "-",
    "+86 ",
    "年",
]


@pytest.mark.parametrize("seed", range(20))
def test_masked_text_holds_nothing_more_to_mask(seed):
    draw = random.Random(seed)
    for _ in range(50):
        masked = mask("".join(draw.choices(PIECES, k=12)))[0]
        assert mask(masked) == (masked, Counter())


def test_spans_are_in_order_apart_and_of_kinds_that_are_masked():
    text = "13800138000@mail.example.net 身份证11010519491231002X 8.8.8.8 is a server"
    assert personal_spans_of(text, Masks(ip=None)) == [(0, 28, "email"), (32, 50, "identity")]


def plain_scan(text: str) -> list[tuple[int, int, int]]:
    """What native.personal_spans finds, by patterns."""
    text = text.translate(FOLD)
    mail = [(0, match.start(), match.end()) for match in re.finditer("@", text)]
    runs = re.finditer(r"[0-9](?:[-+ .()]*[0-9])*", text)
    numbers = [(1, *run.span()) for run in runs if sum(char.isdigit() for char in run[0]) >= 7]
    runs = re.finditer(r"[0-9][0-9A-Fa-f.:]*", text)
    dotted = r"(?=(?:.*\.){3})(?=(?:.*[0-9]){4})|.*::|(?:.*:){7}"
    return sorted(mail + numbers + [(2, *run.span()) for run in runs if re.match(dotted, run[0])])


@pytest.mark.parametrize("seed", range(20))
def test_the_native_scan_finds_what_the_patterns_find(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices([*"0123456789abF.:-+() x@漢é\u3000１：．＠", *PIECES], k=400))
    assert sorted(native.personal_spans(text)) == plain_scan(text)
