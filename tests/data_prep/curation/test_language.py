"""Identification keeps English and Chinese from titles to books, refuses their neighbours, and its shares are honest."""

from __future__ import annotations

import pytest

from data_prep.curation.language import identify_language, language_shares, leading_language
from data_prep.curation.settings import load_curate_config
from recipe.base.errors import ConfigError

ENGLISH = (
    "The old bridge was closed last winter because two of its stones had come loose. People who work on the other "
    "bank now take the ferry, which is slower but gives them time to read. The council has promised that the repair "
    "will be finished before the summer, when many visitors come to see the castle and the gardens behind it."
)
CHINESE = (
    "去年冬天，因为有两块石头松动，老桥被封闭了。在对岸上班的人现在改坐渡船，虽然慢一些，但可以在路上看看书。"
    "镇政府答应在夏天以前把桥修好，那时会有许多游客来参观城堡和后面的花园。"
)
GERMAN = (
    "Die alte Brücke wurde im letzten Winter gesperrt, weil sich zwei ihrer Steine gelöst hatten. Wer am anderen Ufer "
    "arbeitet, nimmt jetzt die Fähre; sie ist langsamer, aber man kommt endlich einmal zum Lesen. Die Stadt hat "
    "versprochen, dass die Arbeiten vor dem Sommer beendet sind, wenn viele Gäste das Schloss besuchen."
)
CODE = (
    "def load_data(path, batch_size=32):\n    rows = [parse(line) for line in open(path)]\n    mean = sum(rows) / len(rows)\n"
    "    return torch.utils.data.DataLoader([r - mean for r in rows], batch_size=batch_size, shuffle=True)\n\n"
    "net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))\n"
    "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\nfor x, y in load_data('train.csv'):\n"
    "    loss = F.cross_entropy(net(x), y)\n    optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
)

SENTENCES = [
    ("en", "She forgot her umbrella."),
    ("en", "Create a directory"),
    ("en", "Reboot a container."),
    ("en", "Convert a PPM image to an ASCII image"),
    ("en", "Mr. Tanaka and Ms. Nakamura arrived in Osaka on Friday."),
    ("en", "WARNING: DO NOT OPEN THE DOOR WHILE THE TRAIN IS MOVING"),
    ("zh", "她忘了带伞。"),
    ("zh", "请先重启容器。"),
    ("zh", "使用 PyTorch 的 DataLoader 读取数据。"),
    ("zh", "北京大学图书馆开放时间"),
    ("zh", "這座橋去年冬天就關閉了。"),
    ("zh", "國立臺灣大學圖書館開放時間"),
    ("zh", "此命令为 `docker container exec` 的别名。"),
    ("ja", "彼女は傘を忘れた。"),
    ("ja", "コンテナを再起動する"),
    ("ja", "東京都議会議員選挙"),
    ("ja", "国立国会図書館開館時間"),
    ("ja", "東京大学"),
    ("ko", "그녀는 우산을 잊어버렸다."),
    ("ko", "컨테이너를 다시 시작합니다"),
    ("de", "Sie hat ihren Regenschirm vergessen."),
    ("nl", "Zij is haar paraplu vergeten in de trein."),
    ("fr", "Elle a oublié son parapluie."),
    ("es", "Se le olvidó el paraguas en el tren."),
    ("pt", "Ela esqueceu o guarda-chuva no trem."),
    ("it", "Ha dimenticato l'ombrello sul treno."),
    ("ca", "S'ha deixat el paraigua al tren."),
    ("ro", "Și-a uitat umbrela în tren."),
    ("da", "Jeg ved ikke, hvad hun hedder."),
    ("sv", "Hon glömde sitt paraply på tåget."),
    ("pl", "Zapomniała parasola w pociągu."),
    ("fi", "Hän unohti sateenvarjonsa junaan."),
    ("tr", "Şemsiyesini trende unutmuş."),
    ("vi", "Cô ấy để quên ô trên tàu."),
    ("ru", "Она забыла зонт в поезде."),
    ("el", "Ξέχασε την ομπρέλα της στο τρένο."),
    ("ar", "نسيت مظلتها في القطار."),
    ("hi", "वह अपना छाता ट्रेन में भूल गई।"),
    ("th", "เธอลืมร่มไว้บนรถไฟ"),
]


@pytest.mark.parametrize(("language", "sentence"), SENTENCES)
def test_titles_and_sentences(language, sentence):
    identified, share = identify_language(sentence)
    assert (identified, share > 0.9) == (language, True)


@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("zh", CHINESE), ("de", GERMAN)])
@pytest.mark.parametrize("times", [1, 200])
def test_paragraphs_and_books(language, text, times):
    identified, share = identify_language("\n\n".join([text] * times))
    assert (identified, share > 0.95) == (language, True)


@pytest.mark.parametrize(
    "text",
    [
        "Mae'r plant yn chwarae yn yr ardd bob prynhawn, ac mae'r ci yn cysgu o dan y goeden.",
        "Bha a' chlann a' cluich anns a' ghàrradh agus bha an cù na chadal fon chraoibh.",
        "Abantwana badlala engadini ntambama zonke, futhi inja ilala ngaphansi kwesihlahla.",
        "La infanoj ludas en la ĝardeno ĉiun posttagmezon, kaj la hundo dormas sub la arbo.",
        "Anak-anak bermain di kebun setiap sore, dan anjing itu tidur di bawah pohon.",
    ],
    ids=["Welsh", "Scottish Gaelic", "Zulu", "Esperanto", "Indonesian"],
)
def test_a_language_outside_the_model_is_not_taken_for_english(text):
    assert identify_language(text)[0] not in ("en", "zh")


@pytest.mark.parametrize("text", ["", " \n", "12 345,67\n89", "!?!? -- ***", "\0", "\ud800"])
def test_text_without_words_is_unknown(text):
    assert identify_language(text) == ("unknown", 0.0)


@pytest.mark.parametrize("refused", ["\ud800", "\0", "\x01\x1b", "\ufffe\uffff", "\U0010ffff", "\u202e"])
@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("zh", CHINESE)])
def test_characters_that_libraries_refuse_change_nothing(language, text, refused):
    assert identify_language(refused + text[:40] + refused + text[40:] + refused) == identify_language(text)
    assert identify_language(text)[0] == language


@pytest.mark.parametrize("code_first", [False, True])
def test_chinese_prose_around_more_code_is_chinese(code_first):
    parts = [CODE * 3, CHINESE] if code_first else [CHINESE, CODE * 3]
    language, share = identify_language("\n\n".join(parts * 3))
    assert (language, share > 0.9) == ("zh", True)


def test_english_prose_around_code_is_english():
    language, share = identify_language("\n\n".join([ENGLISH, CODE] * 3))
    assert (language, share > 0.9) == ("en", True)


def test_lists_of_identifiers_are_in_no_language():
    identifiers = "".join(f"    Undefined{a}Function{b},\n" for a in "ABCDEFGHI" for b in ("Wrapping", "Parameter"))
    language, share = identify_language(ENGLISH + "\n" + identifiers * 5)
    assert (language, share > 0.9) == ("en", True)


@pytest.mark.parametrize(
    ("larger", "smaller", "times", "separator"),
    [
        (ENGLISH, CHINESE, 1, "\n\n"),
        (ENGLISH, CHINESE, 3, " "),
        (CHINESE, ENGLISH, 2, " "),
        (CHINESE, ENGLISH, 5, "\n\n"),
        (ENGLISH, GERMAN, 2, "\n"),
        (ENGLISH, GERMAN, 4, "\n\n"),
        (GERMAN, ENGLISH, 2, "\n"),
    ],
)
def test_of_two_languages_the_larger_with_its_share(larger, smaller, times, separator):
    language, share = identify_language(separator.join(([larger] * times + [smaller]) * 4))
    assert language == {ENGLISH: "en", CHINESE: "zh", GERMAN: "de"}[larger]
    assert share == pytest.approx(content(larger) * times / (content(larger) * times + content(smaller)), abs=0.1)


def content(text: str) -> float:
    """A Chinese character says what 2.5 letters say."""
    return sum(2.5 if character >= "\u3400" else 1 for character in text if character.isalpha())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The word 学习 means to study, and 工作 means to work.", "en"),
        ("老师说：“Practice makes perfect.”大家都笑了。", "zh"),
    ],
)
def test_quoted_words_leave_a_sentence_in_its_language(text, language):
    assert identify_language(text)[0] == language


def test_a_quotation_in_an_unknown_language_lowers_the_share():
    welsh = "Mae'r plant yn chwarae yn yr ardd bob prynhawn, ac mae'r ci yn cysgu o dan y goeden. " * 4
    assert identify_language("\n".join([ENGLISH, welsh] * 4))[1] == pytest.approx(0.45, abs=0.1)


def test_navigation_and_references_do_not_outweigh_the_body():
    body = "\n".join([CHINESE] * 200)
    text = "\n".join([ENGLISH] * 15 + [body] + [ENGLISH] * 15)
    language, share = identify_language(text)
    assert language == "zh"
    assert share == pytest.approx(content(body) / content(text), abs=0.1)


def test_japanese_quotations_leave_a_long_text_chinese():
    japanese = "去年の冬、石が二つゆるんだので、古い橋は通れなくなりました。"
    assert identify_language("\n".join([CHINESE] * 8 + [japanese]))[0] == "zh"
    assert identify_language("\n".join([CHINESE] + [japanese] * 8))[0] == "ja"


QUOTING = (
    "日语里的“ありがとう”是谢谢的意思，在日常生活中用得很多。如果对长辈说话，则应当说得更加客气一些，在后面再加上几个字。"
    "我们的老师常常提醒大家注意这些区别，因为说错了就会让人觉得没有礼貌。后来大家都学会了怎样在不同的场合使用合适的说法。"
)


@pytest.mark.parametrize("characters", [60, 86, 100, 101, 110])
def test_a_short_chinese_text_that_quotes_japanese_is_chinese_with_its_share(characters):
    language, share = identify_language(QUOTING[:characters])
    assert language == "zh"
    assert share == pytest.approx(1 - 2 * 5 / characters, abs=0.04)  # half of Japanese prose is kana


@pytest.mark.parametrize(
    "text",
    [
        "动画片《魔女の宅急便》下周上映",
        "日本動畫《魔女の宅急便》將於下週在臺北上映。",
        "您喜歡看《進擊の巨人》嗎？我每天都看。",
        "這座橋去年冬天就關閉了の",
        "優の良品專賣店",
        "超好吃の火锅店",
    ],
)
def test_a_kana_or_two_leave_a_chinese_sentence_chinese(text):
    assert identify_language(text)[0] == "zh"


@pytest.mark.parametrize(
    "text",
    [
        "鬼滅の刃",
        "東京都渋谷区の薔薇園",
        "躊躇の理由",
        "平成二十七年度文部科学白書の概要",
        "慶應義塾大学の入学試験",
        "渡邊齋藤両氏の会談",
        "髙島屋の営業時間",
        "草彅剛の新作映画",
        "𠮷野家の牛丼",
        "森鷗外の生涯",
        "鄧小平の生涯",
        "「谢谢」は中国語でありがとうという意味です。",
    ],
)
def test_a_japanese_title_with_few_kana_or_rare_characters_is_japanese(text):
    assert identify_language(text)[0] == "ja"


def test_a_configured_language_that_is_never_identified_is_refused(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: {}\n")
    (tmp_path / "curate.yaml").write_text("languages: {en: rules.yaml, ms: rules.yaml, id: rules.yaml}\n")
    with pytest.raises(ConfigError, match=r"'languages\.id' is none .* am, ar, .*, zh$") as refused:
        load_curate_config(tmp_path / "curate.yaml")
    assert "languages.ms" not in str(refused.value)


def test_shares_of_languages_add_up_and_the_largest_is_the_identified():
    for text in (ENGLISH, f"{ENGLISH}\n\n{CHINESE}", "\n\n".join([ENGLISH, GERMAN, CHINESE])):
        shares = language_shares(text)
        assert sum(shares.values()) == pytest.approx(1)
        assert leading_language(shares) == identify_language(text)
    assert {language for language, share in shares.items() if share > 0.2} == {"en", "de", "zh"}
    assert language_shares("12 345") == {}
