"""Curation: each rule drops what it is for, keeps plain text, and is counted by language and source."""

from __future__ import annotations

import random
import re
import unicodedata
from typing import Any

import pytest
import yaml

from data_prep.core.command import CONFIGS
from data_prep.curate import curate_documents
from data_prep.curation.blocked_urls import BlockedUrls
from data_prep.curation.characters import native
from data_prep.curation.cleaning import Phrases, normalize
from data_prep.curation.curator import Curator
from data_prep.curation.dense import DensePhrases
from data_prep.curation.kinds import kind_of
from data_prep.curation.language import identify_language
from data_prep.curation.notices import is_prominent, remove_notices, without_notices
from data_prep.curation.rules import Bound, Judge, LanguageRules
from data_prep.curation.settings import CurateConfig, load_curate_config
from data_prep.documents.reading import read_documents, write_documents
from recipe.base.errors import ConfigError, UserError
from recipe.base.strict import load_json
from tests.conftest import SHARED, documents_in, needs_shared
from tests.data_prep.job_server import run_job

CONFIG = load_curate_config(CONFIGS / "curate.yaml")
CURATOR = Curator(CONFIG)
ENGLISH = (
    "Most of the people who lived near the river had seen the boats before, and they knew that the market would "
    "open with the first light. Some of them carried baskets to the square; others waited for their children to "
    "come back from the hills. Nobody wanted to be late, because bread was cheap in the early hours."
)
CHINESE = (
    "住在河边的人大多见过这些船，他们知道集市会在天亮的时候开始。有人提着篮子走到广场，也有人在等孩子们从山上回来。"
    "没有人想迟到，因为清晨的面包最便宜。后来下了一场大雨，石板路上都是水，卖鱼的老人只好把摊子搬到屋檐下面，"
    "一边擦着手，一边和过路的客人说起去年夏天的事情。"
)

# no two pairs of a town and a thing are the same
KEYWORDS = "".join(
    f"{town}{thing}，"
    for town in ["北京", "上海", "广州", "深圳", "杭州", "长沙", "西安", "武汉", "南京", "天津"]
    for thing in ["旅游", "美食", "酒店", "机票", "租车", "导游", "丝绸", "火锅", "茶叶", "瓷器"]
)


def reason(text: str, curator: Curator = CURATOR, **fields) -> str | None:
    return curator.judge({"id": "a", "text": text, **fields}, "files").reason


def changed(**values) -> Curator:
    return Curator(CurateConfig(**{**CONFIG.model_dump(), **values}))


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_plain_text_is_kept_and_labelled(text, language):
    verdict = CURATOR.judge({"id": "a", "text": text}, "files")
    assert verdict.reason is None
    assert verdict.document == {"id": "a", "text": text, "lang": language, "source": "files"}
    assert verdict.confidence > 0.95


# statistic that gives the reason, language, text
EXAMPLES = [
    ("words_low", "en", "A few words of it. They are too few. That is to be seen."),
    ("words_low", "zh", "很短的一句话。"),
    (
        "prose_share_low",
        "en",
        ENGLISH + "\n\n```\n" + "for (i = 0; i < n; ++i) { total += values[i]; }\n" * 200 + "```",
    ),
    ("prose_share_low", "zh", CHINESE + "\n\n| 1 | 2 | 3 |" * 500),
    ("words_high", "en", ENGLISH * 2000),
    ("words_high", "zh", CHINESE * 1500),
    ("mean_word_length_low", "en", "a b c d e f of the. " * 20),
    ("mean_word_length_high", "en", "incomprehensibilities counterrevolutionaries of the. " * 20),
    ("alphabetic_word_share_low", "en", "1234 34567 5678 90123 4321 of the. " * 20),
    ("han_share_low", "zh", CHINESE[:90] + "print(result_of_the_function) " * 20),
    (
        "traditional_share_high",
        "zh",
        "這個時候，漁民們開始準備晚飯，孩子們從學校回來，說著今天是不是發生了有趣的事情。" * 4,
    ),
    ("hash_per_word_high", "en", ENGLISH + " # ... #" * 10),
    ("hash_per_word_high", "zh", CHINESE + "#" * 40),
    ("ellipsis_per_word_high", "en", ENGLISH + " and so..." * 12),
    ("ellipsis_per_word_high", "zh", CHINESE + "水……" * 20),
    ("stop_words_low", "en", "red green blue yellow orange purple. " * 12),
    ("stop_words_low", "zh", "红绿蓝黄橙紫青" * 20),
    (
        "stop_word_share_low",
        "en",
        ENGLISH + "".join(f" Cheap {w} flights, hotels, cars." for w in ENGLISH.split()[::2]) * 9,
    ),
    ("stop_word_share_low", "zh", CHINESE[:28] + KEYWORDS),
    ("mixed_word_share_high", "en", ENGLISH.replace("we", "w@e").replace("ar", "a1r").replace("th", "t!h")),
    ("mojibake_per_word_high", "en", ENGLISH + " Ã© â€œ Ã¨ â€œ."),
    ("bullet_line_share_high", "en", "\n".join("- " + s for s in ENGLISH.split(". ") * 4)),
    ("bullet_line_share_high", "zh", "\n".join("• " + s for s in CHINESE.split("。") * 4)),
    ("ellipsis_line_share_high", "en", "\n".join(s + "..." for s in ENGLISH.replace(";", ".").split(". "))),
    ("ellipsis_line_share_high", "zh", "\n".join(s + "…" for s in CHINESE.split("。"))),
    ("sentences_low", "en", ENGLISH.replace(".", ",").replace(";", ",")),
    ("punctuated_line_share_low", "en", ENGLISH + "\nand then the people of the harbour went home again" * 9),
    ("punctuated_line_share_low", "zh", CHINESE.rstrip("。") + "\n目录" * 12),
    (
        "short_line_share_high",
        "en",
        "\n".join(" ".join(ENGLISH.split()[i : i + 4]) + "." for i in range(0, 56, 4)),
    ),
    (
        "newlines_per_word_high",
        "en",
        "\n\n\n".join([ENGLISH + s for s in ENGLISH.split()[:2]]) + "\n" * 90 + "The end.",
    ),
    ("newlines_per_word_high", "zh", CHINESE + "\n" * 60 + "他们都回家了。"),
    ("letter_share_low", "en", ENGLISH + " ((((((((((((((((((((((((([[[[[[[[[[[[[[[[[[" * 8 + "."),
    ("number_share_high", "zh", CHINESE + "一九1234567890，" * 15 + "。"),
    ("symbol_share_high", "en", ENGLISH + " $+=<>|~^" * 8 + "."),
    ("symbol_share_high", "zh", CHINESE + "$+=<>|~^" * 6 + "。"),
    ("upper_share_high", "en", ENGLISH.upper()),
    ("private_or_replacement_share_high", "en", ENGLISH + " \ufffd" * 3 + "."),
    ("private_or_replacement_share_high", "zh", CHINESE + "\ue123" * 3 + "。"),
    ("duplicate_line_share_high", "en", "\n".join([ENGLISH] * 3)),
    ("duplicate_line_share_high", "zh", "\n".join([CHINESE] * 3)),
    ("top_2gram_share_high", "en", ENGLISH + " buying nowadays" * 18 + "."),
    ("top_2gram_share_high", "zh", CHINESE + "便宜" * 60 + "。"),
    (
        "odd_pair_share_high",
        "en",
        " ".join(sorted(ENGLISH.split(), key=lambda word: word[::-1])) + " the of the and a the." * 2,
    ),
    (
        "name_share_high",
        "en",
        "Larkton is what you want. See Larkton with us, for Larkton has it all. From old Larkton to new Larkton, "
        "nobody knows Larkton as we do. Ask us about Larkton, or come to Larkton when it rains. The inns of Larkton "
        "are full, so call Larkton first. You will like Larkton, and they who live here say that Larkton likes you.",
    ),
    (
        "masked_5gram_share_high",
        "en",
        " ".join(
            f"Go to {town} where all {n} people like {town[::-1].title()} and eat {n + 100} of them."
            for n, town in enumerate(["Ashby", "Otley", "Selby", "Thirsk", "Whitby", "Ripon", "Malton", "Settle"], 1200)
        ),
    ),
    ("duplicate_5gram_share_high", "en", ENGLISH + " They said: " + ENGLISH[:90] + "."),
    ("duplicate_8gram_share_high", "zh", CHINESE + "又一次，" + CHINESE[:80] + "。"),
]


@pytest.mark.parametrize(("message", "language", "text"), EXAMPLES, ids=[f"{r}-{lang}" for r, lang, _ in EXAMPLES])
def test_each_rule_drops_what_it_is_for(message, language, text):
    assert Judge(CONFIG.languages[language]).reason(text) == message


def test_a_kind_of_text_has_rules_of_its_own_in_place_of_those_of_its_language():
    rules = LanguageRules(
        rules={"words": Bound(min=50, source="x"), "sentences": Bound(min=3, source="x")},
        kinds={"verse": {"sentences": None, "words": Bound(min=2, source="x")}},
    )
    judge = Judge(rules)
    assert [judge.reason("A line of it.", kind) for kind in ("prose", "verse", "dialogue")] == [
        "words_low",
        None,
        "words_low",
    ]
    assert judge.reason("One.", "verse") == "words_low"
    assert rules.rules_of("verse").keys() == {"words"}
    assert rules.rules_of("dialogue") == rules.rules


GRAMS = [
    "duplicate_5gram",
    "duplicate_6gram",
    "duplicate_7gram",
    "duplicate_8gram",
    "duplicate_9gram",
    "duplicate_10gram",
]
# of Gopher, table A1 (arXiv 2112.11446): the largest share that a document may have
TABLE_A1 = {
    "duplicate_line_share": 0.30,
    "duplicate_paragraph_share": 0.30,
    "duplicate_line_character_share": 0.20,
    "duplicate_paragraph_character_share": 0.20,
    "top_2gram_share": 0.20,
    "top_3gram_share": 0.18,
    "top_4gram_share": 0.16,
    **{f"{gram}_share": share for gram, share in zip(GRAMS, (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)},
}


def repeating(name: str, plain: str) -> str:
    """A text that repeats itself in the way that a rule is for."""
    if "line" in name:
        return "\n".join([plain, plain, plain])
    if "paragraph" in name:
        return "\n\n".join([plain, plain, plain])
    words, glue = (plain.split(), " ") if plain.isascii() else (list(plain), "")
    return plain + glue + glue.join(words[: int(re.search(r"\d+", name)[0])] * 60)


# repetition that another rule drops first when all are asked
ALONE = [
    (f"{name}_high", lang, repeating(name, plain))
    for lang, plain in (("en", ENGLISH), ("zh", CHINESE))
    for name in CONFIG.languages[lang].rules
    if name in TABLE_A1
]
# pages without an article, by what tells them from prose
ALONE += [
    ("fragment_character_share_high", "zh", "\n".join(f"我市召开第{n}次工作会议并部署下一年的任务" for n in range(9))),
    ("dated_line_share_high", "zh", "\n".join(f"第{n}次工作会议召开 2023-12-1{n}" for n in range(9))),
    ("duplicate_line_start_share_high", "zh", "\n".join(f"型号：62{n} 库存：{n}" for n in range(9))),
    ("separators_per_word_high", "zh", "首页·新闻·体育·娱乐·财经·科技"),
    ("exclamations_per_sentence_high", "zh", "今天就有好礼！！！我们在这里等你！来了就不会走。"),
    ("han_gaps_per_word_high", "zh", "王小明 李大华 张二强 刘伟 陈军 杨磊"),
    ("long_numbers_per_word_high", "zh", "打这些电话：13800138000、13900139000。"),
]


@pytest.mark.parametrize(
    ("message", "language", "text"), [*EXAMPLES, *ALONE], ids=[f"{r}-{lang}" for r, lang, _ in [*EXAMPLES, *ALONE]]
)
def test_each_rule_drops_what_it_is_for_by_itself(message, language, text):
    rules, name = CONFIG.languages[language], message.rpartition("_")[0]
    judge = Judge(rules.model_copy(update={"rules": {name: rules.rules[name]}}))
    assert judge.reason(text) == message
    assert judge.reason({"en": ENGLISH, "zh": CHINESE}[language]) is None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_rule_has_an_example_in_each_direction(language):
    asked = {
        f"{name}_{direction}"
        for name, bound in CONFIG.languages[language].rules.items()
        for direction, limit in (("low", bound.min), ("high", bound.max))
        if limit is not None
    }
    assert asked == {rule for rule, lang, _ in [*EXAMPLES, *ALONE] if lang == language}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rules_from_the_table_of_gopher_have_its_values(language):
    rules = {name: bound for name, bound in CONFIG.languages[language].rules.items() if "table A1" in bound.source}
    assert len(rules) >= 7
    for name, bound in rules.items():
        own = "FineWeb" not in bound.source and language == "zh" and "gram" in name and "duplicate" in name
        assert own or bound.max == TABLE_A1[name], name


def test_a_bound_itself_passes():
    judge = Judge(LanguageRules(rules={"words": Bound(min=5, max=5, source="x")}))
    assert [judge.reason("word " * n) for n in (4, 5, 6)] == ["words_low", None, "words_high"]


def test_every_threshold_has_a_source():
    for rules in CONFIG.languages.values():
        assert all(bound.source for bound in rules.rules.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Большинство людей у реки видели лодки. " * 10}, "other_language"),
        ({"text": "今日はとても良い天気ですね。みんなで公園に行きましょう。" * 8}, "other_language"),
        ({"text": "Der alte Mann ging mit seinem Hund durch den Wald und sah die Vögel. " * 8}, "other_language"),
        ({"text": "12345 " * 50}, "other_language"),
        ({"text": ENGLISH, "lang": "zh"}, "language_mismatch"),
        ({"text": ENGLISH, "lang": "en"}, None),
        ({"text": CHINESE, "lang": "cmn_Hani"}, None),
        ({"text": ENGLISH, "lang": ["en"]}, None),
        ({"text": ENGLISH, "lang": {"code": "zh"}}, None),
        ({"text": ENGLISH, "lang": 7}, None),
        ({"text": ENGLISH, "lang": None, "source": ["a"], "url": {"x": 1}}, None),
        ({"text": "x" * 5_000_001, "lang": ["en"]}, "too_large"),
    ],
)
def test_the_language_is_detected_and_must_agree_with_the_label(fields, message):
    assert reason(**fields) == message


def test_a_document_of_two_languages_goes_where_neither_has_the_share_that_is_asked_for():
    russian = (
        "Большинство людей, которые жили у реки, видели эти лодки раньше и знали, что рынок откроется утром. Одни несли "
        "корзины на площадь, другие ждали, когда их дети вернутся с холмов. Никто не хотел опоздать, потому что хлеб рано "
        "стоил дешевле всего."
    )
    text = f"{russian}\n{CHINESE}"
    language, share = identify_language(text)
    assert language == "zh"
    assert 0.5 < share < 0.65
    for asked, message in ((0.0, None), (share, None), (share + 0.01, "mixed_language"), (1.0, "mixed_language")):
        assert reason(text, changed(min_language_share=asked)) == message, asked
    assert reason(f"{text}\n{ENGLISH}") == "mixed_language"  # half of it, as shipped


@needs_shared
def test_languages_of_real_documents():
    wrong = total = 0
    for path in (SHARED / "corpus").glob("*.jsonl.gz"):
        for number, document in enumerate(read_documents(path, print)):
            if number < 100 and len(document["text"]) > 500:
                total += 1
                wrong += identify_language(document["text"])[0] != document["lang"]
    assert total > 500
    assert wrong / total < 0.03  # pages that are code, or English under a Chinese label


def test_text_is_repaired_composed_and_cleaned():
    assert normalize("e\u0301a\r\nb \x00\n\n\n\nc\n") == "éa\nb\n\nc"
    assert normalize("the cafÃ© said â€œyesâ€\x9d") == "the café said “yes”"
    assert normalize("ä¸\xadæ–‡ is a language") == "中文 is a language"
    assert normalize("“quoted” café, ça: 中文") == "“quoted” café, ça: 中文"


@pytest.mark.parametrize("char", "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r", ids=ascii)
def test_what_separates_lines_ends_lines(char):
    assert normalize(f"page one{char}page two{char}{char}{char}{char}three{char}") == "page one\npage two\n\nthree"


def test_removing_a_character_joins_no_words():
    assert normalize("one\x1ftwo\tthree") == "one two\tthree"
    assert normalize("don\x92t \x93quote\x94 a\x97b") == "don’t “quote” a—b"  # Windows-1252 read as Latin-1
    assert normalize("w\x00o\x00r\x00d\x00") == "word"  # UTF-16 read as Latin-1


@pytest.mark.parametrize(
    "char", "\xad\u061c\u200b\u200e\u200f\u202a\u202e\u2060\u2063\u2066\u2069\ufeff\ufffe\ufdd0", ids=ascii
)
def test_what_renders_as_nothing_goes(char):
    assert normalize(f"a wo{char}rd e{char}\u0301 {char}\n{char}\n\n\nb") == "a word é\n\nb"


def test_what_changes_its_neighbours_stays():
    text = "👩\u200d👩\u200d👧 ❤\ufe0f می\u200cخواهم क्\u200dष 葛\U000e0100 🏴\U000e0067\U000e0062\U000e007f"
    assert normalize(text) == text
    # no word is what such a character makes of its neighbours
    assert reason(ENGLISH.replace("e", "e\u200d")) is None


def test_language_is_identified_whatever_characters_a_text_has():
    for start in range(0, 0x110000, 0x800):
        if not 0xD800 <= start < 0xE000:
            text = normalize(ENGLISH + "".join(map(chr, range(start, start + 0x800))) + ENGLISH)
            assert 0 <= identify_language(text)[1] <= 1
            assert unicodedata.normalize("NFC", text) == text
            assert not [char for char in text if ord(char) & 0xFFFE == 0xFFFE or "\ufdd0" <= char <= "\ufdef"]
    for char in ("\x01", "\x9f", "\ufffe", "\uffff", "\U0001ffff", "\U0010fffe", "\ufdd0", "\ufdef", "\x1c", "\x0b"):
        assert identify_language(normalize(ENGLISH.replace(" ", " " + char)))[0] == "en", ascii(char)


def test_normalising_again_changes_nothing():
    rng = random.Random(5)
    alphabet = "ae\u0301 \n\r\f\x1f\xad\u200d\u2028\ufeff漢\t\x00"
    for _ in range(300):
        once = normalize("".join(rng.choice(alphabet) for _ in range(60)))
        assert normalize(once) == once


def test_a_lone_surrogate_is_a_character_that_was_decoded_wrongly():
    assert normalize("a\ud800b \ud83d\ude42") == "a\ufffdb 🙂"


def test_a_notice_goes_and_a_document_phrase_takes_all():
    notice = "\nPlease ENABLE JavaScript to go on.\n"
    verdict = CURATOR.judge({"id": "a", "text": ENGLISH + notice + ENGLISH.replace("river", "lake")}, "x")
    assert "JavaScript" not in verdict.document["text"]
    assert (verdict.lines_dropped, verdict.sentences_dropped) == (1, 0)
    assert reason(ENGLISH + " Lorem ipsum dolor.") == "document_phrase"
    assert "扫码关注" not in CURATOR.judge({"id": "a", "text": CHINESE + "\n扫码关注我们\n"}, "x").document["text"]


PHRASES = {name: Phrases(rules.lines.phrases) for name, rules in CONFIG.languages.items()}


def language_of(text: str) -> str:
    return "zh" if any("\u4e00" <= char <= "\u9fff" for char in text) else "en"


def cleaned(text: str) -> tuple[str, int, int]:
    return without_notices(text, PHRASES[language_of(text)].find(text))


# notices that go out of a paragraph
NOTICES = [
    (ENGLISH, " All rights reserved.", ""),
    (ENGLISH, " This website uses cookies to improve your experience.", " The end."),
    (CHINESE, "版权所有，未经许可不得转载。", ""),
    (CHINESE, "（责任编辑：张三）", "后来雨停了。"),
    (CHINESE, "上一篇：春天的集市 下一篇：夏天的雨", ""),
    (CHINESE, "免责声明：本文只代表作者本人的观点，与本网站没有任何关系，请读者自行判断。", "后来雨停了。"),
]


@pytest.mark.parametrize(("before", "notice", "after"), NOTICES, ids=[notice[:12] for _, notice, _ in NOTICES])
def test_a_notice_in_a_paragraph_goes_alone(before, notice, after):
    for text, expected in (
        (before + notice + after, (before + after, 0, 1)),
        (f"{before}\n{notice.strip()}\n{after.strip()}", (f"{before}\n{after.strip()}", 1, 0)),
    ):
        rest, lines, sentences = cleaned(text)
        assert (rest.rstrip(), lines, sentences) == (expected[0].rstrip(), *expected[1:])


@pytest.mark.parametrize(
    "mention",
    [
        "The treaty says that all rights reserved by the parties are to be set out in the annex.",
        "A web server uses cookies to remember who you are.",
        'The last page of the novel has "All Rights Reserved" on it.',
        "如果您对我们的产品有任何的疑问，欢迎拨打客服热线与我们联系，我们将在第一时间为您解答。",
        "版权所有者有权要求侵权人停止侵害，并且赔偿损失。",
        "书的最后一页写着“版权所有”四个字。",
    ],
)
def test_a_paragraph_that_mentions_a_phrase_stays_whole(mention):
    text = f"{mention} {ENGLISH if mention.isascii() else CHINESE}"
    assert cleaned(text) == (text, 0, 0)
    assert CURATOR.judge({"id": "a", "text": text}, "x")[:2] == (
        {"id": "a", "text": text, "lang": "en" if mention.isascii() else "zh", "source": "x"},
        None,
    )


def test_lines_and_sentences_are_taken_apart_exactly():
    phrases = Phrases(["x", "yy"])
    long = "a. " * 50
    for text, expected in (
        ("one\ntwo x x\nthree", ("one\nthree", 1, 0)),
        ("x\nyy", ("", 2, 0)),
        (f"x. {long}yy.", (long, 0, 2)),
        (f"{long}\nx\n\n{long}x! {long}", (f"{long}\n\n{long}{long}", 1, 1)),
        (f"İ {long}x. {long}", (f"İ {long}{long}", 0, 1)),
        (f"{long}3.x", (long, 0, 1)),
        (f"{long}'x'.", (f"{long}'x'.", 0, 0)),
    ):
        assert without_notices(text, phrases.find(text)) == expected, text


MENTIONS = [
    "## Cookie policy",
    "Early browsers had no limit on the use of cookies by advertisers.",
    "Flask uses cookies for sessions.",
    "How does a session work if the client uses cookies?",
    "The bakery uses cookies in its famous cheesecake crust.",
    "The tribe ceded the land, with all rights reserved to fishing in the lake.",
    "The phrase 'all rights reserved' has had no legal meaning since 2000.",
    "Tor users who enable JavaScript can be tracked by their screen size.",
    "How to enable JavaScript in Firefox",
    "Our paper measures how often visitors accept all cookies.",
    "The plugin requires JavaScript to draw its charts.",
    "Your cookie policy should name each cookie, its purpose and how long it lives.",
    "See the [cookie policy](https://example.org) of the newspaper that the committee had reviewed.",
    "他曾任责任编辑。",
    "责任编辑的职责",
    "于是他拨打了客服热线。",
    "版权所有人有权起诉。",
    "如何办理ICP备案？",
    "网站备案就是ICP备案。",
    "公网安备由公安机关负责办理。",
    "学生应当阅读原文。",
    "许多商家让顾客扫码关注以后才给打折。",
    "法院认为，未经授权不得转载的声明并不能免除被告的责任。",
    "“版权所有，翻印必究”是书籍常见的字样。",
]


@pytest.mark.parametrize("mention", MENTIONS)
def test_a_sentence_that_mentions_a_phrase_stays_wherever_it_stands(mention):
    base = ENGLISH if mention.isascii() else CHINESE
    for text in (mention, f"{base}\n{mention}\n{base}", f"{base} {mention} {base}", f"{mention} {base}"):
        assert cleaned(text) == (text, 0, 0)


STANDING_NOTICES = [
    "This site uses cookies from Google to deliver its services and to analyze traffic.",
    "We use cookies to improve your experience; by continuing you are agreeing to our use of cookies.",
    "This website uses cookies to ensure you get the best experience on our website.",
    "By continuing to use this website you agree to our Cookie Policy.",
    "Copyright © 2024 Example Inc. All rights reserved.",
    "© 1998-2023 The Daily Harbour. All rights reserved.",
    "You need to enable JavaScript to run this app.",
    "This app requires JavaScript to function properly.",
    "Accept all cookies!",
    "If you liked this post, share this on Facebook.",
    "版权所有：青石镇人民政府办公室  主办：青石镇信息中心  技术支持：某某科技有限公司  网站标识码：1234567890",
    "责任编辑：李四 审核：王五 来源：新华网 校对：钱七 发布时间：2024年1月1日",
    "来源：新华社 责任编辑:郑洁",
    "【责任编辑：张三】",
    "更多精彩内容请扫码关注我们的微信公众号“青石镇生活”，每天为您推送最新最有趣的本地资讯。",
    "粤ICP备2021012345号-2 粤公网安备 44010602000123号",
    "版权所有 © 2019 某某大学",
    "上一篇：春天来了 下一篇：夏天来了",
    "相关阅读：青石镇召开会议 青石镇举办运动会 青石镇表彰先进",
    "本文版权归作者所有，转载请注明出处。",
    "如有任何问题请拨打全国统一客服热线400-123-4567，我们将竭诚为您服务。",
    "免责声明：本文仅供参考，不构成任何投资建议。",
]


@pytest.mark.parametrize("notice", STANDING_NOTICES)
def test_a_notice_goes_alone_wherever_it_stands(notice):
    base = CHINESE if language_of(notice) == "zh" else ENGLISH
    for text, rest in (
        (notice, ""),
        (f"{base}\n{notice}\n{base}", f"{base}\n{base}"),
        (f"{base} {notice} {base}", f"{base} {base}"),
        (f"{notice} {base}", base),
        (f"{base} {notice}", base),
    ):
        assert cleaned(text)[0].rstrip() == rest


def test_removing_notices_again_changes_nothing():
    rng = random.Random(3)
    sentences = [*MENTIONS, *STANDING_NOTICES, "后来雨停了。", "他说：", "请点击", "The end. ", *'“”"…\n( (']
    for _ in range(500):
        text = " ".join(rng.choices(sentences, k=8))
        for phrases in PHRASES.values():
            once = remove_notices(text, phrases)[0]
            assert remove_notices(once, phrases) == (once, 0, 0)


def test_a_text_that_mentions_a_document_phrase_stays():
    news = CHINESE + "警方昨日宣布，在一次行动中捣毁了一个非法的六合彩赌博窝点，抓获了十二名嫌疑人。"
    assert reason(news) is None
    assert reason(CHINESE + "六合彩开奖。") == "document_phrase"
    assert (
        reason(CHINESE + "他说" + "今天的六合彩和明天的百家乐以及后天的时时彩都在这里等着所有的客人们来" + "。")
        == "document_phrase"
    )
    assert reason(CHINESE + "锟斤拷锟斤拷锟斤拷的人。") == "document_phrase"


def test_a_long_text_that_shows_a_filler_stays():
    text = ENGLISH * 4 + "\n\nLorem ipsum dolor."
    assert not is_prominent(text, Phrases(["lorem ipsum dolor"]).find(text))


@pytest.mark.parametrize(
    "text",
    [
        "初学编程的人在屏幕上看到“烫烫烫烫烫”这样的一串字，就知道自己忘记给变量赋值了，这是编译器填充的。",
        "警方捣毁六合彩赌博窝点\n" + CHINESE,
        "百家乐是一种起源于意大利的纸牌游戏，十五世纪传入法国，成为贵族之间流行的消遣。十九世纪以后，百家乐传到英国和美洲，"
        "规则也有了一些变化。研究概率论的学者常常用百家乐作为例子，说明独立事件和条件概率之间的区别。" + CHINESE,
        "Designers use lorem ipsum to show a page. Printers took lorem ipsum from Cicero; lorem ipsum is old. "
        + ENGLISH,
    ],
)
def test_a_text_about_a_document_phrase_is_not_of_it(text):
    language = language_of(text)
    assert not is_prominent(text, Phrases(CONFIG.languages[language].document_phrases).find(text))


PAGES = [
    ("zh", "本站新到高仿名表，厂家直销，货到付款，假一赔十，量大从优，欢迎来电咨询！" + "本店的手表质量很好，我们的服务也很好。" * 3),
    ("en", "Act now! This limited time special offer has free shipping and a free trial. Order now, satisfaction guaranteed. "
     "It is the best that you can have, and you will not be sorry that you came to us for it, as many have told us."),
]  # fmt: skip


@pytest.mark.parametrize(("language", "page"), PAGES, ids=["zh", "en"])
def test_a_page_of_advertisements_goes_where_one_phrase_of_them_stays(language, page):
    rules = CONFIG.languages[language]
    dense, plain = DensePhrases(rules), {"en": ENGLISH, "zh": CHINESE}[language]
    assert dense.are_dense(page)
    assert not dense.are_dense(plain)
    for phrase in [*rules.dense_phrases[:40], *rules.strong_phrases[:40]]:
        assert reason(f"{plain} {phrase} {plain[:40]}") is None, phrase


def dense_phrases(text: str, **rules: Any) -> bool:
    return DensePhrases(LanguageRules(rules={}, dense_phrases=["甲乙", "丙丁", "戊己", "庚辛"], **rules)).are_dense(
        text
    )


def test_two_strong_phrases_count_as_four_others():
    strong = {"strong_phrases": ["天地", "玄黄"]}
    assert dense_phrases("甲乙，丙丁，戊己，庚辛。")
    assert not dense_phrases("甲乙，丙丁，戊己，甲乙。")
    assert dense_phrases("天地，玄黄。", **strong)
    assert not dense_phrases("天地，甲乙，天地。", **strong)
    assert not dense_phrases("天地，玄黄。" + CHINESE * 20, **strong)
    assert not dense_phrases("他说“天地”，又说“玄黄”。", **strong)


def test_patterns_count_beside_phrases_and_not_alone():
    patterns = {"dense_patterns": [r"\d{8}", "！！", "[￥¥]"]}
    assert dense_phrases("甲乙，丙丁！！电话 12345678。", **patterns)
    assert not dense_phrases("甲乙！！电话 12345678，￥5。", **patterns)


GOOD_ARTICLE = (
    "本报讯 昨日上午，市人民医院新院区正式启用，首日接诊患者一千二百余人次。新院区位于城东，设有床位八百张。院长介绍，搬迁工作"
    "历时两周，急诊没有中断过一天。记者在门诊大厅看到，挂号窗口前排起了不长的队伍，志愿者正在指导老人使用自助机。家住附近的"
    "陈女士说，以前看病要坐四十分钟公交，现在走路就到了。老院区将改造为康复中心，预计明年底投入使用。"
)


def test_an_article_with_the_footer_of_its_site_stays():
    footer = "责任编辑：李四\n相关阅读：我市医疗资源布局调整\n分享到：微信 微博 QQ空间\n联系我们 关于我们 版权所有"
    assert reason(f"{GOOD_ARTICLE}\n{footer}") is None
    assert reason(f"{footer}\n隐私政策 用户协议 网站地图 返回顶部\n{GOOD_ARTICLE[:40]}") is not None


VERSE = (
    "山中小记\n\n清晨的雾还没有散，\n小路上没有一个人；\n我听见溪水在石头下面，\n慢慢地说着去年的春天。\n\n"
    "午后的阳光落在窗台，\n旧书的纸页微微发黄；\n有人在院子里晒着新茶，\n风把茶香送到很远的地方。"
)
DIALOGUE = "“你来了。”\n“我来了。”\n“你为什么要来？”\n他看着远处的山，很久没有说话。\n“这里的风景和十年前一样。”\n" + (
    "“人却不一样了。”\n“你还是不肯说实话。”\n“实话有时候比谎话更伤人，所以我不说。”\n“走吧，我送你回去，天色已经晚了。”\n她没有回答，只是跟在他的后面慢慢地走。"
)
KINDS = [
    ("verse", VERSE),
    ("dialogue", DIALOGUE),
    ("dialogue", "\n".join(["Alice: Where did you go?", "Bob: I went to the market with them."] * 3)),
    ("code", CHINESE + "\n\n```python\n" + "for name in names:\n    print(name)\n" * 4 + "```\n\n" + CHINESE[:40]),
    ("list", "\n".join(f"{i}. {s}." for i, s in enumerate(ENGLISH.replace(";", ".").split(". ")))),
    ("prose", ENGLISH),
    ("prose", CHINESE),
    ("prose", "首页\n新闻中心\n产品展示\n联系我们\n在线留言\n关于"),
]


@pytest.mark.parametrize(("kind", "text"), KINDS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(KINDS)])
def test_the_layout_tells_the_kind_of_a_text(kind, text):
    assert kind_of(text, language_of(text)) == kind


@pytest.mark.parametrize("text", [VERSE, DIALOGUE, KINDS[3][1]], ids=["verse", "dialogue", "code"])
def test_a_good_text_of_a_kind_stays_whole_with_its_kind(text):
    verdict = CURATOR.judge({"id": "a", "text": text}, "x")
    assert (verdict.reason, verdict.document["text"]) == (None, text)
    assert verdict.document["kind"] == kind_of(text, "zh")


def test_half_width_marks_of_chinese_are_widened_and_counted():
    typed = CHINESE.replace("，", ",").replace("。", ".")
    verdict = CURATOR.judge({"id": "a", "text": typed}, "x")
    assert (verdict.reason, verdict.document["text"]) == (None, CHINESE)
    assert verdict.marks_widened == sum(char in "，。" for char in CHINESE)


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("他说,你好.", "他说，你好。"),
        ("准确率达98%,优于 A, B 和 C.", "准确率达98%，优于 A, B 和 C."),
        ("比例是3:1.5,时间12:30", "比例是3:1.5，时间12:30"),
        ("见 https://a.org/x,y?z=1 的说明. 好", "见 https://a.org/x,y?z=1 的说明。好"),
        ("用 `甲,乙.` 表示", "用 `甲,乙.` 表示"),
        ("```\n甲,乙.\n```", "```\n甲,乙.\n```"),
        ("一.总则", "一.总则"),
        ("等等...", "等等..."),
        ("そうです.でも,カタカナ!", "そうです。でも，カタカナ！"),
    ],
    ids=["sentence", "latin", "numbers", "address", "quoted_code", "fence", "heading", "ellipsis", "kana"],
)
def test_marks_are_widened_where_chinese_or_japanese_is_written(text, wide):
    assert native.widen_punctuation(text)[0] == wide


def test_an_abstract_of_one_line_needs_no_final_stop():
    assert reason(CHINESE.rstrip("。")) is None
    assert reason(CHINESE.replace("。", "，").rstrip("，")) is None


def test_words_with_a_letter_are_alphabetic_wherever_it_stands():
    assert reason("1st 2nd 3D 4K 10k 800m of the race. " * 2 + ENGLISH) is None


def test_phrases_are_found_as_whole_words_when_asked():
    assert Phrases(["art", "坏词"], whole_words=True).find("start art, art. 好坏词好") == [(6, 9), (11, 14), (17, 19)]
    assert Phrases(["art"]).find("start ART") == [(2, 5), (6, 9)]
    assert Phrases(["cafe\u0301"]).find("a café") == [(2, 6)]
    assert Phrases([]).find("x") == []


def test_blocked_words_and_urls_come_from_files(tmp_path):
    (tmp_path / "languages").mkdir()
    for name in (
        "curate.yaml",
        *(f"languages/zh{end}" for end in (".yaml", "_dense_phrases.txt", "_strong_phrases.txt")),
        *(f"languages/en{end}" for end in ("_dense_phrases.txt", "_strong_phrases.txt")),
    ):
        (tmp_path / name).write_text((CONFIGS / name).read_text(encoding="utf-8"), encoding="utf-8")
    english = yaml.safe_load((CONFIGS / "languages" / "en.yaml").read_text(encoding="utf-8"))
    (tmp_path / "languages" / "en.yaml").write_text(yaml.safe_dump({**english, "blocked_words": "bad.txt"}))
    (tmp_path / "languages" / "bad.txt").write_text("# a comment\nbasket\nsecond best\n")
    shipped = yaml.safe_load((tmp_path / "curate.yaml").read_text(encoding="utf-8"))
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump({**shipped, "blocked_urls": "hosts.txt"}))
    (tmp_path / "hosts.txt").write_text("spam.example\nfine.example/ads\n")
    curator = Curator(load_curate_config(tmp_path / "curate.yaml"))
    assert reason(ENGLISH.replace("baskets", "a basket"), curator) == "blocked_words"
    assert reason(ENGLISH, curator) is None  # baskets is another word
    for url, message in (
        ("https://www.spam.example/page?x=1", "blocked_url"),
        ("http://spam.example:80/", "blocked_url"),
        ("https://notspam.example/", None),
        ("https://fine.example/ads/1", "blocked_url"),
        ("https://fine.example/adsorption", None),
        ("https://fine.example/", None),
    ):
        assert reason(ENGLISH, curator, url=url) == message, url


@pytest.mark.parametrize(
    ("line", "hits", "misses"),
    [
        (
            "bad.example",
            "http://bad.example?x=1|bad.example./path|BAD.example:8080|//bad.example|https://u:p@bad.example/|"
            "bad.example#f|www.bad.example|http://a.b.bad.example.:80/x?y|http:/bad.example|http:\\\\bad.example\\x|"
            "bad%2eexample|bad。example|bad.example/?to=http://fine.example|ftp://bad.example| http://bad.example ",
            "notbad.example|bad.example.org|http://fine.example/bad.example|http://fine.example/?u=//bad.example|"
            "http://fine.example#@bad.example|example|http://[bad.example|http://[::1|://|",
        ),
        ("https://www.Bad.example./", "bad.example|http://x.bad.example/y", "www.example"),
        (
            "bad.example/ads/",
            "bad.example/ads|bad.example//ads?x|bad.example/%61ds/1|x.bad.example/b/../ads/",
            "bad.example/adsorption|bad.example/|bad.example/x/ads|bad.example/ads/../fine",
        ),
        ("bücher.example", "http://xn--bcher-kva.example|BÜCHER.example|bu\u0308cher.example", "bucher.example"),
        ("xn--bcher-kva.example/été", "http://bücher.example/%C3%A9t%C3%A9/1", "bücher.example/ete"),
        ("www.com", "http://www.com|a.www.com", "fine.com"),
        ("*.bad.example", "a.bad.example", "abad.example"),
        ("[2001:db8::1]", "http://[2001:db8::1]:80/x", "http://[2001:db8::2]/"),
    ],
)
def test_an_address_is_found_in_every_spelling(line, hits, misses):
    blocked = BlockedUrls([line])
    assert [url for url in hits.split("|") if not blocked.has(url)] == []
    assert [url for url in misses.split("|") if blocked.has(url)] == []


def test_a_line_without_a_host_is_no_block_list(tmp_path):
    shipped = yaml.safe_load((CONFIGS / "curate.yaml").read_text(encoding="utf-8"))
    languages = {name: str(CONFIGS / file) for name, file in shipped["languages"].items()}
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump({**shipped, "languages": languages, "blocked_urls": "x.txt"}))
    (tmp_path / "x.txt").write_text("\ufeffhttp://bad.example/\n", encoding="utf-8")
    assert reason(ENGLISH, Curator(load_curate_config(tmp_path / "curate.yaml")), url="bad.example/x") == "blocked_url"
    (tmp_path / "x.txt").write_text("bad.example\n/ads\n")
    with pytest.raises(ConfigError, match="'/ads' names no host"):
        load_curate_config(tmp_path / "curate.yaml")


def length_score(text: str, lang: str) -> float:
    return len(text) / 1000


def test_a_quality_function_scores_and_drops():
    quality = {"function": "tests.data_prep.test_curate:length_score", "min": 0.2}
    verdict = changed(quality=quality).judge({"id": "a", "text": ENGLISH}, "x")
    assert verdict.document["quality"] == len(ENGLISH) / 1000
    assert reason(CHINESE, changed(quality=quality)) == "quality_low"
    with pytest.raises(UserError, match="cannot be imported"):
        changed(quality={"function": "nowhere:score", "min": 0})


def test_a_text_too_large_is_dropped_unread():
    assert reason("x" * 5_000_001) == "too_large"


@pytest.mark.parametrize(("characters", "message"), [(len(ENGLISH) - 1, "too_large"), (len(ENGLISH), None)])
def test_the_largest_size_is_in_characters(characters, message):
    assert reason(ENGLISH, changed(max_characters=characters)) == message


@pytest.mark.parametrize(("words", "message"), [(0, "blocked_words"), (1, "blocked_words"), (2, None)])
def test_as_many_blocked_words_stay_as_is_allowed(words, message):
    values = CONFIG.model_dump()
    values["languages"]["en"]["max_blocked_words"] = words
    values["blocked_words"] = {"en": ["baskets", "bread"]}
    assert reason(ENGLISH, Curator(CurateConfig(**values))) == message


def test_lines_of_few_words_and_of_long_ones_go_when_asked():
    values = CONFIG.model_dump()
    values["languages"]["en"]["lines"].update(min_words=3, max_word_length=20)
    lines = ["two words", "now three words", "a word of " + "x" * 20, "a word of " + "x" * 21]
    verdict = Curator(CurateConfig(**values)).judge({"id": "a", "text": "\n".join([ENGLISH, *lines])}, "x")
    assert verdict.document["text"].split("\n")[1:] == lines[1:3]
    assert verdict.lines_dropped == 2


def test_the_numbers_of_a_run_are_those_of_the_documents_that_stay(tmp_path):
    documents = [
        ENGLISH + "\nAll rights reserved.\nWe use cookies.\n",
        ENGLISH + " All rights reserved.",
        CHINESE + "\n扫码关注我们\n他们说那家店的电话是13800138000，或13900139000。",
        "Too short, that is to say. All rights reserved.",
    ]
    curated = curate_documents(
        [{"id": str(number), "text": text} for number, text in enumerate(documents)],
        0,
        config=CONFIG,
        output=tmp_path,
        source="web",
    )
    numbers = curated["numbers"]
    assert numbers["lines_dropped"] == {"en": 2, "zh": 1}
    assert numbers["sentences_dropped"] == {"en": 1, "zh": 0}
    assert numbers["masked"] == {"en": {}, "zh": {"phone": 2}}
    assert numbers["log2_characters"] == {"en": {"9": 2}, "zh": {"8": 1}}  # 256 to 511 characters, 128 to 255
    assert {lang: sum(shares.values()) for lang, shares in numbers["confidence"].items()} == {"en": 3, "zh": 1}
    groups = {lang: curated["groups"][lang]["web"] for lang in ("en", "zh")}
    assert [groups["en"][key] for key in ("in", "out", "dropped")] == [3, 2, {"words_low": 1}]
    assert groups["en"]["bytes_in"] == sum(len(documents[number].encode()) for number in (0, 1, 3))
    assert groups["en"]["bytes_dropped"] == {"words_low": len(documents[3])}
    assert groups["zh"]["bytes_in"] == len(documents[2].encode())
    kept = documents_in(tmp_path)
    for lang in ("en", "zh"):
        assert groups[lang]["bytes_out"] == sum(len(d["text"].encode()) for d in kept if d["lang"] == lang)


def test_traditional_characters_are_simplified_when_asked():
    values = CONFIG.model_dump()
    values["languages"]["zh"]["simplify"] = True
    verdict = Curator(CurateConfig(**values)).judge(
        {"id": "a", "text": CHINESE + "這個時候，漁民們開始準備晚飯。"}, "x"
    )
    assert verdict.reason is None
    assert verdict.document["text"].endswith("这个时候，渔民们开始准备晚饭。")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"wrods": {"min": 1, "source": "x"}}}, "unknown statistic 'wrods'; did you mean 'words'?"),
        ({"rules": {}, "kinds": {"verse": {"wrods": None}}}, "kinds.verse.wrods: unknown statistic 'wrods'"),
        ({"rules": {}, "kinds": {"verse": {"words": {"source": "x"}}}}, "kinds.verse.words has neither min nor max"),
        ({"rules": {}, "kinds": {"verses": {}}}, "kinds.verses: unknown kind of text 'verses'; did you mean 'verse'?"),
        ({"rules": {}, "kinds": {"prose": {}}}, "kinds.prose: unknown kind of text 'prose'"),
        ({"rules": {"words": {"min": 9, "max": 5, "source": "x"}}}, "rules.words has a min above its max"),
        ({"rules": {"words": {"source": "x"}}}, "rules.words has neither min nor max"),
        ({"rules": {"words": {"min": 1}}}, "'rules.words.source' is missing"),
        ({"rules": {}, "stop_words": ["因为"]}, "has several Han characters or kana"),
    ],
)
def test_mistakes_in_the_rules_of_a_language_are_named(tmp_path, change, message):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(change, allow_unicode=True), encoding="utf-8")
    (tmp_path / "curate.yaml").write_text("languages: {en: x.yaml}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        load_curate_config(tmp_path / "curate.yaml")
    assert message in str(caught.value)


def test_counts_and_samples_of_the_dropped_are_kept_for_reading(tmp_path):
    write_documents(
        tmp_path / "web.jsonl",
        [{"id": "1", "text": ENGLISH + " Write to a.b@c.org."}, {"id": "2", "text": CHINESE}]
        + [{"id": str(i), "text": f"Too short, that is to say, of the kind {i}."} for i in range(3, 30)],
    )
    done = run_job("data_prep/curate.py", "--input", tmp_path / "web.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "curate: 29 documents in, 2 kept" in done.stdout
    manifest = load_json(tmp_path / "out" / "manifest.json")
    counts = manifest["counts"]
    assert counts["dropped"] == {"words_low": 27}
    english = counts["groups"]["en"]["web"]
    assert (english["in"], english["out"], english["dropped"]) == (28, 1, {"words_low": 27})
    assert english["bytes_in"] - english["bytes_dropped"]["words_low"] == len(
        (ENGLISH + " Write to a.b@c.org.").encode()
    )
    assert counts["groups"]["zh"]["web"]["bytes_out"] == len(CHINESE.encode())
    assert manifest["results"]["masked"]["en"] == {"email": 1}
    dropped = list(read_documents(tmp_path / "out" / "dropped" / "00000.jsonl.zst", print))
    assert len(dropped) == CONFIG.dropped_samples
    assert (dropped[0]["id"], dropped[0]["dropped"]) == ("3", "words_low")


@needs_shared
def test_most_of_a_real_corpus_of_prose_is_kept(tmp_path):
    done = run_job(
        "data_prep/curate.py", "--input", SHARED / "corpus" / "en_peps.jsonl.gz", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["out"] > 0.9 * counts["in"]
