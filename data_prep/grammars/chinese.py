"""Chinese words and sentences of the embedded corpus."""

from __future__ import annotations

import random
from typing import Any

WORDS = {
    "topics": {
        "港口": ["轮船", "水手", "吊车", "货物", "船锚", "灯塔", "船长", "潮水"],
        "图书馆": ["书籍", "读者", "书架", "档案", "信件", "学者", "目录", "手稿"],
        "花园": ["树木", "园丁", "河流", "果园", "种子", "小路", "围墙", "喷泉"],
        "集市": ["商人", "篮子", "铜钱", "香料", "布匹", "顾客", "摊位", "秤杆"],
        "作坊": ["机器", "车轮", "工匠", "油灯", "火炉", "工具", "图纸", "学徒"],
        "医院": ["医生", "病人", "护士", "药方", "窗户", "病历", "访客", "走廊"],
        "天文台": ["星星", "望远镜", "观测员", "星图", "彗星", "圆顶", "信号", "镜片"],
        "车站": ["火车", "站台", "司机", "桥梁", "隧道", "车票", "月台", "旅客"],
    },
    "places": ["青石镇", "白水城", "云山县", "长桥村", "金沙湾", "柳林渡", "东湖市", "石门关", "古槐里", "望江楼"],
    "verbs": ["看着", "修理", "描述", "记得", "跟随", "测量", "搬运", "保护", "找到", "改变", "研究", "移动"],
    "past": ["建成的", "被遗忘的", "重新开放的", "被发现的", "搬走的", "修好的", "写下来的", "画出来的"],
    "adjectives": ["古老的", "安静的", "明亮的", "沉重的", "狭窄的", "著名的", "破旧的", "遥远的", "耐心的", "隐蔽的", "木制的", "北方的"],
    "times": ["清晨", "暴雨之后", "整个冬天", "节日之前", "夜里", "初春时节", "许多年来"],
    "links": ["因为", "同时", "虽然", "为了", "而且"],
}  # fmt: skip


def sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
    noun = lambda: rng.choice(words["adjectives"]) + rng.choice(words["topics"][topic])  # noqa: E731
    verb, time = rng.choice(words["verbs"]), rng.choice(words["times"])
    form = rng.randrange(5)
    if form == 0:
        return f"{time}，{place}的{noun()}{verb}{noun()}。"
    if form == 1:
        return f"{noun()}在{topic}里{verb}{noun()}，{rng.choice(words['links'])}{noun()}是{rng.choice(words['past'])}。"
    if form == 2:
        return f"{place}{topic}的{noun()}是{rng.randrange(1700, 2000)}年{rng.choice(words['past'])}。"
    if form == 3:
        return f"见过{noun()}的人都说，它不会{verb}{noun()}了。"
    return f"有了{noun()}和{noun()}，这座{topic}{time}也为{place}所知。"
