"""English words and sentences of the embedded corpus."""

from __future__ import annotations

import random
from typing import Any

WORDS = {
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


def sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
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
