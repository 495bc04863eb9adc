"""fastText's supervised classifier: words and pairs of words, a character a word in Chinese, otherwise its defaults.

Prints the scores of the test rows, CPU seconds of training and MB of text a CPU second as JSON.
"""

import json
import re
import statistics
import sys
import tempfile
import time

import fasttext

HAN = re.compile(r"([\u3400-\u9fff])")


def line(text: str) -> str:
    return " ".join(HAN.sub(r" \1 ", text.lower()).split())


def score(model: fasttext.FastText, text: str) -> float:
    # of the module without its own predict, which asks numpy 1 for an array
    return {label: p for p, label in model.f.predict(line(text) + "\n", 2, 0.0, "strict")}["__label__good"]


if __name__ == "__main__":
    rows = [json.loads(row) for row in open(sys.argv[1], encoding="utf-8")]
    timed_bytes, repeats = int(sys.argv[2]), int(sys.argv[3])
    texts = [row["text"] for row in rows if row["split"] == "test"]
    start = time.process_time()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        for row in rows:
            if row["split"] == "dev":
                file.write(f"__label__{'good' if row['keep'] else 'bad'} {line(row['text'])}\n")
        file.flush()
        # its rate of 0.1 and 5 epochs leave so few documents all in one class
        model = fasttext.train_supervised(file.name, wordNgrams=2, lr=0.5, epoch=25, thread=1, verbose=0)
    train_s = time.process_time() - start
    timed = texts * (timed_bytes // sum(len(text.encode()) for text in texts) + 1)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        for text in timed:
            score(model, text)
        rates.append(sum(len(text.encode()) for text in timed) / 1e6 / (time.process_time() - start))
    scores = [score(model, text) for text in texts]
    print(json.dumps({"scores": scores, "train_s": train_s, "mb_a_s": statistics.median(rates)}))
