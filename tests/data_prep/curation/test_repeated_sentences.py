"""Sentences end where a reader would end them, and a paragraph says each long one once."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from data_prep.core.command import CONFIGS
from data_prep.curation.characters import native
from data_prep.curation.curator import Curator
from data_prep.curation.repeated_sentences import drop_repeated_sentences
from data_prep.curation.settings import load_curate_config
from tests.data_prep.curation import reference_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("First. Two! Three? Four… Five", ["First. ", "Two! ", "Three? ", "Four… ", "Five"]),
        ("甲。乙！丙？丁；戊，己……庚", ["甲。", "乙！", "丙？", "丁；", "戊，己……", "庚"]),
        ("他说：“走吧。”我走了。", ["他说：“走吧。”", "我走了。"]),
        ('He said: "Come." (I went.) Then', ['He said: "Come." ', "(I went.) ", "Then"]),
        ("Dr. Hu and J. Doe paid 3.5 at a.com? yes e.g. now.", ["Dr. Hu and J. Doe paid 3.5 at a.com? yes e.g. now."]),
        ("Wait!!! What?! 真的吗?是的.对", ["Wait!!! ", "What?! ", "真的吗?", "是的.", "对"]),
        ("Title\n\n  a line\r\nand more", ["Title\n\n  ", "a line\r\n", "and more"]),
        ("مرحبا؟ نعم. لا", ["مرحبا؟ ", "نعم. ", "لا"]),
        ("यह है। वह है", ["यह है। ", "वह है"]),
        ("  ", []),
    ],
    ids=["latin", "han", "quotes", "latin_quotes", "no_ends", "mixed", "lines", "arabic", "devanagari", "blank"],
)
def test_sentences_start_where_the_one_before_ends(text, sentences):
    starts = native.sentence_starts(text).tolist()
    assert [text[start:stop] for start, stop in pairwise([*starts, len(text)])] == sentences


@pytest.mark.parametrize("seed", range(5))
def test_sentences_are_those_of_the_plain_definition(seed):
    text = "".join(random.Random(seed).choices('aBxyzDr\u00e9中カ1.。!！?…;；"”)’ \n\u200b\t\u0301', k=3000))
    assert native.sentence_starts(text).tolist() == reference_sentences.sentence_starts(text)


LONG = "今天的天气非常好适合出门。"


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        (f"{LONG}我们去公园。{LONG}{LONG}玩得很开心。", f"{LONG}我们去公园。玩得很开心。", 2),
        (f"{LONG}\n{LONG}", f"{LONG}\n{LONG}", 0),
        ("我不信！我不信！我不信！真的真的。", "我不信！我不信！我不信！真的真的。", 0),
        ("I was here before. I was here before.  \nSo.", "I was here before.\nSo.", 1),
        ("I was here before. I was here Before.", "I was here before. I was here Before.", 0),
    ],
    ids=["copies", "paragraphs", "short", "end_of_line", "different"],
)
def test_later_copies_of_a_sentence_go_within_a_paragraph(text, kept, dropped):
    assert drop_repeated_sentences(text, 10) == (kept, dropped)


def judged(text: str):
    return Curator(load_curate_config(CONFIGS / "curate.yaml")).judge({"id": "a", "text": text}, "web")


STORY = (
    "老街的尽头有一家修表的小店，店主姓周，今年已经七十多岁了。他的父亲也是修表的，工具还是那时候留下来的。"
    "附近的孩子放学以后喜欢趴在窗边看他干活，他从来不赶他们走。{}后来街道要拆迁，邻居们都劝他早点搬家。"
    "他说等最后一块表修好了再走，于是又在那里待了整整一个冬天。"
)


def test_a_kept_document_of_prose_says_a_sentence_once_and_the_copies_are_counted():
    again = "他的父亲也是修表的，工具还是那时候留下来的。"
    verdict = judged(STORY.format(again))
    assert (verdict.reason, verdict.sentences_dropped) == (None, 1)
    assert verdict.document["text"] == STORY.format("")


def test_a_document_of_repetition_does_not_escape_its_rules():
    assert judged(LONG * 40).reason is not None


def test_verse_keeps_its_refrain():
    refrain = "河水慢慢地流啊，流过我的家门！河水慢慢地流啊，流过我的家门！"
    verses = ["春天我坐在门前的石头上，听你唱一首歌。", "夏天我坐在门前的柳树下，看你摇一只船。", "秋天我坐在门前的草垛旁，等你寄一封信。",
              "冬天我坐在门前的灯光里，想你说的话语。", "又一年我坐在门前的石头，没有人再唱歌。", "又一年我坐在门前的柳树，没有人再摇船。"]  # fmt: skip
    verdict = judged("\n".join([*verses[:3], refrain, *verses[3:]]))
    assert verdict.document.get("kind") == "verse"
    assert verdict.document["text"].count("流过我的家门") == 2
