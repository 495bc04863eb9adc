"""scikit-learn: hashed n-grams of 2 to 4 characters and of 1 to 2 words, and logistic regression with balanced classes.

Prints the scores of the test rows, CPU seconds of training and MB of text a CPU second as JSON.
"""

import json
import statistics
import sys
import time

from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

WORD = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+"

if __name__ == "__main__":
    rows = [json.loads(row) for row in open(sys.argv[1], encoding="utf-8")]
    timed_bytes, repeats = int(sys.argv[2]), int(sys.argv[3])
    learnt = [row for row in rows if row["split"] == "dev"]
    texts = [row["text"] for row in rows if row["split"] == "test"]
    start = time.process_time()
    characters = HashingVectorizer(analyzer="char", ngram_range=(2, 4), n_features=2**18, lowercase=False)
    words = HashingVectorizer(ngram_range=(1, 2), n_features=2**18, token_pattern=WORD)
    classifier = LogisticRegression(C=100, class_weight="balanced", max_iter=1000)
    model = make_pipeline(make_union(characters, words), classifier)
    model.fit([row["text"] for row in learnt], [row["keep"] for row in learnt])
    train_s = time.process_time() - start
    timed = texts * (timed_bytes // sum(len(text.encode()) for text in texts) + 1)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        model.predict_proba(timed)
        rates.append(sum(len(text.encode()) for text in timed) / 1e6 / (time.process_time() - start))
    scores = model.predict_proba(texts)[:, 1].tolist()
    print(json.dumps({"scores": scores, "train_s": train_s, "mb_a_s": statistics.median(rates)}))
