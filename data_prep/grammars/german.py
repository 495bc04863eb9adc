"""German words and sentences of the embedded corpus: nouns with their gender, which articles and adjectives follow."""

from __future__ import annotations

import random
from typing import Any

WORDS = {
    "topics": {
        "m Hafen": ["n Schiff", "m Matrose", "m Kran", "f Ladung", "m Anker", "m Leuchtturm", "m Kapitän", "f Flut"],
        "f Bibliothek": ["n Buch", "f Leserin", "n Regal", "n Archiv", "m Brief", "f Gelehrte", "n Verzeichnis", "f Handschrift"],
        "m Garten": ["m Baum", "f Gärtnerin", "m Bach", "f Wiese", "m Samen", "m Weg", "f Mauer", "m Brunnen"],
        "m Markt": ["f Händlerin", "m Korb", "f Münze", "n Gewürz", "n Tuch", "f Käuferin", "m Stand", "f Waage"],
        "f Werkstatt": ["f Maschine", "n Rad", "f Schlosserin", "f Lampe", "m Ofen", "n Werkzeug", "m Entwurf", "m Lehrling"],
        "n Krankenhaus": ["f Ärztin", "f Kranke", "m Pfleger", "n Heilmittel", "n Fenster", "f Akte", "m Besucher", "m Flur"],
        "f Sternwarte": ["m Stern", "n Fernrohr", "f Forscherin", "f Karte", "m Komet", "f Kuppel", "n Signal", "f Linse"],
        "m Bahnhof": ["m Zug", "m Bahnsteig", "f Fahrerin", "f Brücke", "m Tunnel", "f Fahrkarte", "n Gleis", "f Reisende"],
    },
    "places": ["Ahrenfeld", "Birkenau", "Dornheim", "Eschwalde", "Falkenruh", "Grünberg", "Hohenbach", "Lindental", "Moosried", "Steinfurt"],
    "verbs": ["betrachtet", "repariert", "beschreibt", "begleitet", "verfolgt", "misst", "trägt", "schützt", "findet", "verändert", "untersucht", "bewegt"],
    "past": ["gebaut", "vergessen", "geöffnet", "entdeckt", "verlegt", "erneuert", "beschrieben", "gemalt"],
    "adjectives": ["alt", "still", "hell", "schwer", "schmal", "berühmt", "zerbrochen", "fern", "geduldig", "verborgen", "hölzern", "nördlich",
                   "klein", "breit", "fremd", "leer", "bunt", "krumm", "kostbar", "vertraut"],
    "times": ["am Morgen", "nach dem Sturm", "im Winter", "vor dem Fest", "in der Nacht", "im frühen Frühling", "seit vielen Jahren"],
    "links": ["weil", "während", "obwohl", "bevor", "nachdem"],
    "wheres": ["{topic} von {place}", "{topic}", "bei {place}", "aus {place}", "nahe {place}", "vor den Toren von {place}"],
    "people": ["wer {} gesehen hat", "wer {} kennt", "jeder, der {} zeichnet", "niemand, der {} sucht", "ein Kind, das {} malt"],
    "sayings": ["sagt", "glaubt", "hofft", "schreibt", "bezweifelt"],
    "fates": ["machen {place} {time} bekannt", "stehen {time} in {place}", "kommen {time} nach {place}", "fehlen {time} in {place}", "sind {time} der Stolz von {place}"],
}  # fmt: skip
_ARTICLES = {"m": ("der", "den", "im"), "f": ("die", "die", "in der"), "n": ("das", "das", "im")}


def sentence(rng: random.Random, words: dict[str, Any], topic: str, place: str) -> str:
    def noun(case: int) -> str:
        """The nominative (0) or the accusative (1) of a noun with its article and an adjective."""
        gender, name = rng.choice(words["topics"][topic]).split()
        if rng.random() < 0.4:
            return f"{_ARTICLES[gender][case]} {name}"
        return f"{_ARTICLES[gender][case]} {rng.choice(words['adjectives'])}{'en' if (gender, case) == ('m', 1) else 'e'} {name}"

    verb, time = rng.choice(words["verbs"]), rng.choice(words["times"])
    gender, name = topic.split()
    where = rng.choice(words["wheres"]).format(topic=f"{_ARTICLES[gender][2]} {name}", place=place)
    form = rng.randrange(5)
    if form == 0:
        text = f"{noun(0)} {where} {verb} {noun(1)} {time}"
    elif form == 1:
        text = f"{time} {verb} {noun(0)} {noun(1)}, {rng.choice(words['links'])} {noun(0)} {rng.choice(words['past'])} wurde"
    elif form == 2:
        text = f"{noun(0)} {where} wurde vor {rng.randrange(1700, 2000)} Tagen {rng.choice(words['past'])}"
    elif form == 3:
        text = f"{rng.choice(words['people']).format(noun(1))}, {rng.choice(words['sayings'])}, dass {noun(0)} {noun(1)} {verb}"
    else:
        text = f"{noun(0)} und {noun(0)} {rng.choice(words['fates']).format(place=place, time=time)}"
    return text[0].upper() + text[1:] + "."
