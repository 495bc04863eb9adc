"""Personal data as datatrove, Presidio and scrubadub find it, with their own rules and no language model.

Presidio's recognizer of phone numbers gets the region CN beside its defaults; the others run with their defaults.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import scrubadub
from datatrove.pipeline.formatters import PIIFormatter
from presidio_analyzer.predefined_recognizers import EmailRecognizer, IpRecognizer, PhoneRecognizer

Span = tuple[int, int, str]


def datatrove() -> Callable[[str], Iterator[Span]]:
    formatter = PIIFormatter()
    replacers = {"email": formatter.emails_replacer, "ip": formatter.ip_replacer}

    def spans(text: str) -> Iterator[Span]:
        for kind, replacer in replacers.items():
            for match in replacer.regex.finditer(text):
                if replacer.validator is None or replacer.validator(match[0]):
                    yield match.start(), match.end(), kind

    return spans


def presidio() -> Callable[[str], Iterator[Span]]:
    regions = (*PhoneRecognizer.DEFAULT_SUPPORTED_REGIONS, "CN")
    recognizers = {
        ("email", "EMAIL_ADDRESS"): EmailRecognizer(),
        ("phone", "PHONE_NUMBER"): PhoneRecognizer(supported_regions=regions),
        ("ip", "IP_ADDRESS"): IpRecognizer(),
    }

    def spans(text: str) -> Iterator[Span]:
        for (kind, entity), recognizer in recognizers.items():
            for result in recognizer.analyze(text, [entity]):
                yield result.start, result.end, kind

    return spans


def scrubadub_defaults() -> Callable[[str], Iterator[Span]]:
    scrubber = scrubadub.Scrubber()

    def spans(text: str) -> Iterator[Span]:
        for filth in scrubber.iter_filth(text):
            if filth.type in ("email", "phone"):
                yield filth.beg, filth.end, filth.type

    return spans


TOOLS = {"datatrove": datatrove, "presidio": presidio, "scrubadub": scrubadub_defaults}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    cases = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    found = {}
    for name, make in TOOLS.items():
        spans = make()
        found[name] = {case["id"]: sorted(set(spans(case["text"]))) for case in cases}
    print(json.dumps(found))
