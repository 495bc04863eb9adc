"""Synthetic texts with a fact whose end has to be recalled: retrieval at any length and depth, in English and Chinese.

A needle is a sentence such as "the password of paris: falcon." among unrelated sentences and, as in the multi-key task of
RULER (arXiv 2404.06654), among needles of other cities, so that the city has to be found and not just a password. At the end
the sentence begins again, and its last word is to be predicted. Texts are made of terms: a tokenizer reads them joined, and a
tiny model may have a token for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recipe.base.errors import UserError

Encode = Callable[[str], Sequence[int]]
Predict = Callable[
    [np.ndarray, int], np.ndarray
]  # tokens, and how many last positions -> the likeliest next token at each
NEW, AGAIN = 0.15, 0.8  # shares of a text's sentences in `told_and_asked`: needles that are told, and told again


@dataclass(frozen=True)
class Language:
    """What the texts of a language are made of.

    Args:
        separator: between two terms.
        filler: of each place of an unrelated sentence, its possible terms.
        fact: a needle's terms, where None stands for the key, and the password comes after the last.
        stop: ends a sentence.
    """

    separator: str
    filler: tuple[tuple[str, ...], ...]
    fact: tuple[str | None, ...]
    stop: str
    keys: tuple[str, ...]
    passwords: tuple[str, ...]

    @property
    def terms(self) -> list[str]:
        """All that its texts may hold, each once."""
        places = [*self.filler, tuple(term for term in self.fact if term is not None), self.keys, self.passwords]
        return list(dict.fromkeys([*(term for place in places for term in place), self.stop]))

    def sentence(self, generator: np.random.Generator) -> list[str]:
        """An unrelated one."""
        return [*(place[generator.integers(len(place))] for place in self.filler), self.stop]

    def question(self, key: str) -> list[str]:
        """The beginning of a needle, which asks for its password."""
        return [key if term is None else term for term in self.fact]

    def needle(self, key: str, password: str) -> list[str]:
        return [*self.question(key), password, self.stop]

    def pairs(self, count: int, generator: np.random.Generator) -> list[tuple[str, str]]:
        """As many different keys, each with a password of its own."""
        keys, passwords = (generator.permutation(len(names))[:count] for names in (self.keys, self.passwords))
        return [(self.keys[key], self.passwords[password]) for key, password in zip(keys, passwords, strict=True)]

    def text(self, terms: Sequence[str]) -> str:
        """Terms as a reader and a tokenizer get them; a word begins with its separator, as it does after another."""
        return "".join(term if term == self.stop else self.separator + term for term in terms)


ADJECTIVES = "quiet old green broken tall hidden early narrow gentle bright frozen empty distant heavy simple curious"
NOUNS = "river bridge garden letter window farmer teacher lantern market valley engine painter orchard village captain machine"
VERBS = "watches carries follows repairs remembers crosses paints visits measures protects borrows describes"
CITIES = (
    "paris tokyo cairo lima oslo rome delhi boston kyiv dublin havana seoul nairobi vienna lisbon quito "
    "prague athens madrid berlin hanoi manila warsaw zurich lagos tunis milan dakar sydney denver austin geneva"
)
ANIMALS = (
    "falcon otter tiger rabbit walrus panda spider camel dolphin lizard monkey turtle beaver donkey parrot salmon "
    "eagle wolf zebra koala shark moose goose hornet badger cobra ferret gibbon heron jaguar lemur raven"
)
CHINESE_ADJECTIVES = (
    "安静的 古老的 绿色的 破旧的 高大的 隐蔽的 清晨的 狭窄的 温和的 明亮的 冰冷的 空旷的 遥远的 沉重的 简单的 好奇的"
)
CHINESE_NOUNS = "河流 石桥 花园 信件 窗户 农夫 老师 灯笼 市场 山谷 机器 画家 果园 村庄 船长 商店"
CHINESE_VERBS = "看着 带走 跟随 修理 记得 穿过 描绘 拜访 测量 保护 借用 讲述"
CHINESE_CITIES = (
    "巴黎 东京 开罗 利马 奥斯陆 罗马 德里 波士顿 基辅 都柏林 哈瓦那 首尔 内罗毕 维也纳 里斯本 基多 "
    "布拉格 雅典 马德里 柏林 河内 马尼拉 华沙 苏黎世 拉各斯 突尼斯 米兰 达喀尔 悉尼 丹佛 奥斯汀 日内瓦"
)
CHINESE_ANIMALS = (
    "猎鹰 水獭 老虎 兔子 海象 熊猫 蜘蛛 骆驼 海豚 蜥蜴 猴子 乌龟 河狸 驴子 鹦鹉 鲑鱼 "
    "老鹰 灰狼 斑马 考拉 鲨鱼 驼鹿 大鹅 黄蜂 獾子 眼镜蛇 雪貂 长臂猿 苍鹭 美洲豹 狐猴 乌鸦"
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LANGUAGES = {
    "en": Language(
        separator=" ",
        filler=tuple(map(_words, ("the", ADJECTIVES, NOUNS, VERBS, "the", NOUNS))),
        fact=("the", "password", "of", None),
        stop=".",
        keys=tuple(f"{city}:" for city in _words(CITIES)),
        passwords=_words(ANIMALS),
    ),
    "zh": Language(
        separator="",
        filler=tuple(map(_words, (CHINESE_ADJECTIVES, CHINESE_NOUNS, CHINESE_VERBS, CHINESE_NOUNS))),
        fact=("口令", "，", None),
        stop="。",
        keys=tuple(f"{city}：" for city in _words(CHINESE_CITIES)),
        passwords=_words(CHINESE_ANIMALS),
    ),
}


@dataclass(frozen=True)
class Sample:
    """A text of tokens whose last `answer_tokens` are the needle's password."""

    tokens: np.ndarray
    answer_tokens: int


def needle_sample(
    language: Language, encode: Encode, *, length: int, depth: float, others: int, generator: np.random.Generator
) -> Sample:
    """A text of `length` tokens that asks for a needle.

    Args:
        encode: tokens of a part of a text; `Language.text` makes a part of terms.
        depth: where the needle stands: 0 at the beginning, 1 just before the question.
        others: needles of other keys, anywhere.

    Raises:
        UserError: the needles alone are longer.
    """
    (key, password), *rest = language.pairs(1 + others, generator)
    part = lambda terms: list(encode(language.text(terms)))  # noqa: E731
    question, answer = part(language.question(key)), part([password])
    needle, other_needles = part(language.needle(key, password)), [part(language.needle(*pair)) for pair in rest]
    room = length - len(question) - len(answer) - len(needle) - sum(map(len, other_needles))
    if room < 0:
        raise UserError(f"a needle among {others} others needs {length - room} tokens; raise the length above {length}")
    filler: list[list[int]] = []
    while sum(map(len, filler)) < room:
        filler.append(part(language.sentence(generator)))
    if filler:
        filler[0] = filler[0][sum(map(len, filler)) - room :]  # the text begins within a sentence
    for other in other_needles:
        filler.insert(int(generator.integers(len(filler) + 1)), other)
    filler.insert(round(depth * len(filler)), needle)
    tokens = [token for sentence in filler for token in sentence]
    return Sample(np.array([*tokens, *question, *answer]), len(answer))


def accuracy(predict: Predict, samples: Sequence[Sample]) -> float:
    """Share of samples whose password a greedy decoder would write, every token of it."""
    return sum(recalls(predict, sample) for sample in samples) / len(samples)


def recalls(predict: Predict, sample: Sample) -> bool:
    answer = sample.tokens[-sample.answer_tokens :]
    return bool((predict(sample.tokens[:-1], sample.answer_tokens) == answer).all())


def told_and_asked(
    language: Language, encode: Encode, *, length: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A text to learn recall from: needles that are told, and told again, among unrelated sentences.

    Returns:
        `length` tokens; and which of them end a needle that was told before.
    """
    pairs = iter(language.pairs(len(language.keys), generator))
    told: list[tuple[str, str]] = []
    tokens: list[int] = []
    recalled: list[bool] = []
    while len(tokens) < length:
        kind = generator.random()
        pair = next(pairs, None) if kind < NEW else None
        if pair is not None:
            told.append(pair)
            sentence, asked = language.needle(*pair), False
        elif told and kind < NEW + AGAIN:
            sentence, asked = language.needle(*told[generator.integers(len(told))]), True
        else:
            sentence, asked = language.sentence(generator), False
        ends = [encode(language.text(part)) for part in (sentence[:-2], sentence[-2:-1], sentence[-1:])]
        tokens += [token for end in ends for token in end]
        recalled += [asked and number == 1 for number, end in enumerate(ends) for _ in end]
    return np.array(tokens[:length]), np.array(recalled[:length])
