"""Personal data is masked, and what only looks like it stays."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.curation.personal import Masks, is_identity, mask_personal


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
    ],
)
def test_personal_data_is_masked(text, masked):
    found, counts = mask(text)
    assert found == masked
    assert counts.total() > 0


@pytest.mark.parametrize("prefix", ["13", "14", "15", "16", "17", "18", "19"])
@pytest.mark.parametrize("form", ["{}012345678", "+86 {}0 1234 5678", "86{}012345678", "{}0-1234-5678"])
def test_mobile_numbers_of_every_carrier_are_masked(prefix, form):
    assert mask(f"call {form.format(prefix)}, please") == ("call [phone], please", Counter(phone=1))


@pytest.mark.parametrize("prefix", ["10", "11", "12", "23"])
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
