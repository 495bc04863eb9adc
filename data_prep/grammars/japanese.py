"""Japanese words and sentences of the embedded corpus."""

from __future__ import annotations

import random
from typing import Any

WORDS = {
    "topics": {
        "港": ["船", "船乗り", "クレーン", "積み荷", "錨", "灯台", "船長", "潮の流れ"],
        "図書館": ["本", "読者", "本棚", "記録", "手紙", "学者", "目録", "写本"],
        "庭": ["木", "庭師", "小川", "果樹園", "種", "小道", "壁", "泉"],
        "市場": ["商人", "かご", "銅貨", "スパイス", "布", "客", "屋台", "はかり"],
        "工場": ["エンジン", "車輪", "職人", "ランプ", "炉", "道具", "図面", "見習い"],
        "病院": ["医者", "患者", "看護師", "薬", "窓", "カルテ", "見舞い客", "廊下"],
        "天文台": ["星", "望遠鏡", "観測者", "星図", "彗星", "ドーム", "信号", "レンズ"],
        "駅": ["列車", "ホーム", "運転士", "橋", "トンネル", "切符", "線路", "乗客"],
    },
    "places": ["青石町", "白水市", "雲山村", "長橋", "金沢浜", "柳ヶ丘", "東湖", "石門", "古木の里", "望江"],
    "verbs": ["見守る", "修理する", "描く", "覚えている", "追いかける", "測る", "運ぶ", "守る", "見つける", "変える", "調べる", "動かす"],
    "past": ["建てられた", "忘れられた", "ふたたび開かれた", "発見された", "移された", "直された", "書き記された", "描かれた"],
    "adjectives": ["古い", "静かな", "明るい", "重い", "細い", "有名な", "壊れた", "遠い", "がまん強い", "隠された", "木でできた", "北の"],
    "times": ["朝早く", "嵐のあと", "冬のあいだ", "祭りの前", "夜", "春のはじめ", "長い年月"],
}  # fmt: skip


def sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
    noun = lambda: rng.choice(words["adjectives"]) + rng.choice(words["topics"][topic])  # noqa: E731
    verb, time, past = rng.choice(words["verbs"]), rng.choice(words["times"]), rng.choice(words["past"])
    form = rng.randrange(5)
    if form == 0:
        return f"{time}、{place}の{noun()}は{noun()}を{verb}。"
    if form == 1:
        return f"{noun()}は{topic}で{noun()}を{verb}が、{noun()}は{past}。"
    if form == 2:
        return f"{place}の{topic}にある{noun()}は、{rng.randrange(1700, 2000)}年に{past}。"
    if form == 3:
        return f"{noun()}を見たことのある人は、それが{noun()}を{verb}のだと言う。"
    return f"{noun()}と{noun()}のおかげで、この{topic}は{time}、{place}の人々に知られるようになった。"
