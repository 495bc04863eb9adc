"""Lines of block lists are read as they are meant or refused, and an address is found in every spelling."""

from __future__ import annotations

import unicodedata

import pytest

from data_prep.core.command import CONFIGS
from data_prep.curation.blocked_urls import BlockedUrls, is_entry
from data_prep.curation.settings import load_curate_config
from recipe.base.errors import ConfigError


@pytest.mark.parametrize(
    "line",
    [
        "bad.example # spam",
        "bad.example\t#spam",
        "0.0.0.0 bad.example",
        "127.0.0.1\tbad.example",
        "::1 bad.example  # spam, ads",
        "||bad.example^",
        "*.bad.example",
        ".bad.example",
        "//*.bad.example/",
        "\ufeffbad.example\u200b",
        "bad.example:443/",
        "https://bad.example/?",
    ],
)
def test_common_lines_for_a_whole_host_block_it(line):
    assert is_entry(line)
    blocked = BlockedUrls([line])
    assert blocked.has("http://bad.example/")
    assert blocked.has("https://www.a.bad.example/x?y")
    assert not blocked.has("http://fine.example/")
    assert not blocked.has("http://127.0.0.1/")


@pytest.mark.parametrize(
    "line",
    [
        "bad.example/*",
        "*bad.example",
        "bad.*",
        "*",
        '"bad.example"',
        "'bad.example'",
        "“bad.example”",
        "<http://bad.example>",
        "[http://bad.example](spam)",
        "bad.example,spam",
        "bad.example；spam",
        "bad.example spam",
        "bad.example/ads spam",
        "0.0.0.0 bad.example worse.example",
        "bad.example/view?id=3",
        "bad.example?x",
        "bad.example/#top",
        "||bad.example^$third-party",
        "||bad.example/ads^",
        "@@||fine.example^",
        "@@fine.example",
        "|http://bad.example/",
        "! a comment",
        "!bad.example",
        "[Adblock Plus 2.0]",
        "address=/bad.example/",
        "someone@bad.example",
        "https://user:word@bad.example/",
        "bad.example:spam",
        "2001:db8::1",
        "bad..example",
        "/ads",
        "",
        "# bad.example",
    ],
)
def test_a_line_that_means_something_else_is_refused(line):
    assert not is_entry(line)


@pytest.mark.parametrize(
    "line",
    ["bad.example/a,b;c", "bad.example/~user/(x)", "bad.example/a@b", "bücher.example", "l·l.example", "☕.example"],
)
def test_what_addresses_have_is_no_reason_to_refuse_them(line):
    assert BlockedUrls([line]).has(f"http://{line}")


def test_an_address_with_a_mark_that_is_none_of_its_own_is_named(tmp_path):
    rules = (CONFIGS / "curate.yaml").read_text(encoding="utf-8").replace("languages/", f"{CONFIGS}/languages/")
    (tmp_path / "curate.yaml").write_text(rules.replace("blocked_urls: null", "blocked_urls: x.txt"))
    (tmp_path / "x.txt").write_text("# hosts\n0.0.0.0 bad.example # spam\n||worse.example^$popup\n")
    with pytest.raises(ConfigError, match=r"'\|\|worse.example\^\$popup' names no host, or more") as refused:
        load_curate_config(tmp_path / "curate.yaml")
    assert "bad.example" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "\ufeffhttp://bad.example/",
        "\x00http://bad.example/",
        "\x1f \x01http://bad.example/",
        "http://bad.example\x00",
        "\u3000http://bad.example\x00 \x1f",
        "http://ba\xadd.example/",
        "http://bad\u200b.example/",
        "http://bad.exam\u2060ple:80/",
        "http://\ufeffbad.example\ufe0f/",
        "http://ba%C2%ADd.example/",
    ],
    ids=ascii,
)
def test_what_browsers_strip_hides_no_address(url):
    assert BlockedUrls(["bad.example"]).has(url)
    assert BlockedUrls(["bad.example/"]).has(url)
    assert not BlockedUrls(["worse.example"]).has(url)


def test_a_character_that_is_ignored_comes_between_no_letter_and_its_mark():
    assert BlockedUrls(["bücher.example"]).has("http://bu\xad\u0308cher.example/")


@pytest.mark.parametrize("url", ["http://\ud800.example/", "http://bad.example/\ud800", "xn--" + "\ud800"], ids=ascii)
def test_a_lone_surrogate_is_no_crash(url):
    assert BlockedUrls(["bad.example"]).has(url) == ("bad" in url)


def test_only_a_label_that_a_host_can_have_is_decoded():
    """Decoding takes quadratic time."""
    for letters in (59, 60):  # that "xn--" makes 63 and 64 characters; they are punycode of so many U+0080
        blocked = BlockedUrls(["\u0080" * letters + ".example"])
        assert blocked.has(f"http://xn--{'a' * letters}.example/") == (letters == 59)


def test_unicode_orders_no_long_row_of_marks(monkeypatch):
    rows = []
    normalize = unicodedata.normalize
    monkeypatch.setattr(
        "data_prep.curation.cleaning.unicodedata",
        type("Rows", (), {"normalize": lambda form, text: rows.append(len(text)) or normalize(form, text)}),
    )
    marks = "\u0301\u0327" * 10_000
    BlockedUrls(["bad.example"]).has(f"http://a{marks}.example/a{marks}")
    assert max(rows) < 100
