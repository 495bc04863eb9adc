#!/usr/bin/env python3
"""Write the embedded default corpus: English and Chinese documents from small grammars, with planted defects.

The grammars give each document a topic and a place that its sentences return to, so that a language model
has word order, agreement and context to learn. Exact duplicates, near duplicates and junk are planted, and
listed in planted.json, so that the later jobs' catches can be counted.
"""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.core.following import following_command, is_driven
from data_prep.documents.reading import Document, write_documents
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json

ENGLISH = {
    "topics": {
        "harbour": ["ship", "sailor", "crane", "cargo", "anchor", "lighthouse", "captain", "tide"],
        "library": ["book", "reader", "shelf", "archive", "letter", "scholar", "index", "manuscript"],
        "garden": ["tree", "gardener", "river", "orchard", "seed", "path", "wall", "fountain"],
        "market": ["merchant", "basket", "coin", "spice", "cloth", "buyer", "stall", "scale"],
        "workshop": ["engine", "wheel", "mechanic", "lamp", "furnace", "tool", "design", "apprentice"],
        "hospital": ["doctor", "patient", "nurse", "remedy", "window", "record", "visitor", "corridor"],
        "observatory": ["star", "telescope", "astronomer", "chart", "comet", "dome", "signal", "lens"],
        "railway": ["train", "station", "driver", "bridge", "tunnel", "ticket", "platform", "passenger"],
    },
    "places": ["Ardenne", "Belmora", "Corwick", "Dunholm", "Elstow", "Farrow", "Glenmar", "Harrowgate", "Inverloch", "Kestrel"],
    "verbs": ["watches", "repairs", "describes", "remembers", "follows", "measures", "carries", "protects", "finds", "changes", "studies", "moves"],
    "past": ["was built", "was forgotten", "was opened", "was discovered", "was moved", "was repaired", "was described", "was painted"],
    "adjectives": ["old", "quiet", "bright", "heavy", "narrow", "famous", "broken", "distant", "patient", "hidden", "wooden", "northern"],
    "times": ["in the morning", "after the storm", "during the winter", "before the festival", "at night", "in early spring", "for many years"],
    "links": ["because", "while", "although", "so that", "and"],
    "wheres": ["in the {topic} of {place}", "near {place}", "at the {place} {topic}", "by the {topic}", "outside {place}", "of {place}"],
    "people": ["people who have seen", "those who remember", "everyone who visits", "nobody who knows", "a child that draws", "strangers with"],
    "sayings": ["say that", "believe that", "were told that", "doubt that", "hope that", "write that"],
    "fates": ["is to be the pride of", "will have a place in", "belongs to the people of", "was given to", "has to serve"],
}  # fmt: skip
CHINESE = {
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


def english_sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
    noun = lambda: f"the {rng.choice(words['adjectives'])} {rng.choice(words['topics'][topic])}"  # noqa: E731
    verb, time = rng.choice(words["verbs"]), rng.choice(words["times"])
    form = rng.randrange(5)
    where = rng.choice(words["wheres"]).format(topic=topic, place=place)
    if form == 0:
        sentence = f"{noun()} {where} {verb} {noun()} {time}"
    elif form == 1:
        sentence = f"{time}, {noun()} {verb} {noun()} {rng.choice(words['links'])} {noun()} {rng.choice(words['past'])}"
    elif form == 2:
        sentence = f"{noun()} {where} {rng.choice(words['past'])} {rng.randrange(1700, 2000)} days ago"
    elif form == 3:
        sentence = f"{rng.choice(words['people'])} {noun()} {rng.choice(words['sayings'])} it {verb} {noun()}"
    else:
        sentence = f"with {noun()} and {noun()}, the {topic} {rng.choice(words['fates'])} {place} {time}"
    return sentence[0].upper() + sentence[1:] + "."


def chinese_sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
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


class Grammar:
    """One language's generator of documents and of defective ones."""

    def __init__(self, lang: str, words: dict[str, Any], sentence: Callable[..., str], joint: str):
        self.lang, self.words, self._sentence, self._joint = lang, words, sentence, joint

    def document(self, rng: random.Random) -> str:
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        paragraphs = []
        for _ in range(rng.randint(2, 5)):
            paragraphs.append(
                self._joint.join(self._sentence(rng, self.words, topic, place) for _ in range(rng.randint(3, 7)))
            )
        return "\n\n".join(paragraphs)

    def near_copy(self, rng: random.Random, text: str) -> str:
        """The document with one sentence replaced and a note at the end."""
        sentences = text.split(self._joint) if self._joint else text.split("。")
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        new = self._sentence(rng, self.words, topic, place)
        sentences[rng.randrange(len(sentences))] = new.split(self._joint)[0] if self._joint else new.rstrip("。")
        return (self._joint or "。").join(sentences)

    def junk(self, rng: random.Random) -> tuple[str, str]:
        """(kind, text) of something that curation should refuse."""
        kind = rng.choice(["fragment", "symbols", "repetition", "list", "other_script"])
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        sentence = self._sentence(rng, self.words, topic, place)
        if kind == "fragment":
            return kind, sentence
        if kind == "symbols":
            return kind, "\n".join("### ... # " + sentence[:12] + " # ... ###" for _ in range(30)) + self.document(rng)
        if kind == "repetition":
            return kind, "\n".join([sentence] * 25)
        if kind == "list":
            nouns = [noun for nouns in self.words["topics"].values() for noun in nouns]
            return kind, ", ".join(rng.choice(nouns) for _ in range(120))
        return kind, " ".join(
            rng.choice(["старый", "город", "река", "мост", "дорога", "книга", "вечер"]) for _ in range(120)
        )


GRAMMARS = (
    Grammar("en", ENGLISH, english_sentence, " "),
    Grammar("zh", CHINESE, chinese_sentence, ""),
)


def make_corpus(grammar: Grammar, documents: int, seed: int) -> tuple[list[Document], dict[str, dict[str, str]]]:
    """Documents of one language in random order, and what was planted: id -> kind (and what it copies)."""
    # hash() differs between processes; crc32 does not.
    rng = random.Random(seed * 1_000_003 + zlib.crc32(grammar.lang.encode()))
    made: list[Document] = []
    planted: dict[str, dict[str, str]] = {}

    def add(text: str, **plant: str) -> None:
        identity = f"synthetic/{grammar.lang}/{len(made):06d}"
        made.append({"id": identity, "text": text, "lang": grammar.lang, "source": f"synthetic-{grammar.lang}"})
        if plant:
            planted[identity] = plant

    for _ in range(documents):
        add(grammar.document(rng))
    for _ in range(documents // 20):
        original = made[rng.randrange(documents)]
        add(original["text"].replace("\n\n", "\n\n\n"), kind="exact_duplicate", of=original["id"])
        original = made[rng.randrange(documents)]
        add(grammar.near_copy(rng, original["text"]), kind="near_duplicate", of=original["id"])
    for _ in range(documents // 10):
        kind, text = grammar.junk(rng)
        add(text, kind=f"junk: {kind}")
    rng.shuffle(made)
    return made, planted


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python data_prep/synthetic_corpus.py --output work/raw --documents 2000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, help="a new or empty folder")
    parser.add_argument(
        "--documents",
        type=positive_int,
        default=3000,
        help="documents without defects, in each language (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the generator; another one gives other documents (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.documents < 20:
        raise UserError(
            f"--documents {args.documents} is too few, since defects are planted among them; give at least 20"
        )
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"--output {args.output} exists and is not an empty folder; choose another")
    planted: dict[str, dict[str, str]] = {}
    for grammar in GRAMMARS:
        made, plants = make_corpus(grammar, args.documents, args.seed)
        planted.update(plants)
        half = len(made) // 2
        for part, documents in enumerate((made[:half], made[half:])):
            write_documents(args.output / f"{grammar.lang}-{part:02d}.jsonl.gz", documents)
        print(f"{grammar.lang}: {len(made):,} documents, {len(plants):,} of them planted defects")
    write_json(args.output / "planted.json", planted)
    print(f"corpus -> {args.output}; the planted defects are listed in {args.output / 'planted.json'}")
    if not is_driven(args.output):
        print(f"next: {following_command('synthetic_corpus', args.output)}")


if __name__ == "__main__":
    raise SystemExit(main())
