"""Duplicates: what is planted is found, nothing else is, and the result depends on the documents alone."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import xxhash
import zstandard

from data_prep import dedup
from data_prep.core import shuffle as shuffle
from data_prep.core.shuffle import Shuffle, column
from data_prep.curation import repeated_lines
from data_prep.dedup import DedupConfig, main, notes_on_ranking, repeated_ids
from data_prep.deduplication import signatures
from data_prep.deduplication.components import find_components
from data_prep.deduplication.links import pairs_in_bands
from data_prep.deduplication.minhash import MinHash, pack, similarity
from data_prep.documents.reading import Part, write_documents
from recipe.base.strict import load_json
from tests.conftest import SHARED, documents_in, needs_shared, run_python
from tests.data_prep.curation import reference
from tests.data_prep.job_server import run_job


def run(tmp_path, documents, name="out", files=1, config=None, against=()):
    source = tmp_path / f"{name}-in"
    for part in range(files):
        write_documents(source / f"{part}.jsonl", documents[part::files])
    words = ["--input", source, "--output", tmp_path / name, "--workers", 1]
    words += ["--config", config] if config else []
    words += [word for folder in against for word in ("--against", folder)]
    assert main([str(word) for word in words]) == 0
    return documents_in(tmp_path / name)


def read_clusters(stage):
    """The clusters that a run reports; each is a line."""
    with zstandard.open(stage / "clusters" / "00000.jsonl.zst", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def document(identity: str, text: str) -> dict[str, str]:
    return {"id": identity, "text": text, "lang": "en"}


WORDS = [f"word{i}" for i in range(300)]
TEXT = " ".join(WORDS)
GOLDEN_SIGNATURE = [284667828, 592814575, 413829617, 511549921]
GOLDEN_SHIPPED = "29ee39c00c140b1c6900f1082336416e"  # of the 256 minima of TEXT
GOLDEN_BANDS = [[17639885852077745562, 13089215753531853141]]


def test_exact_and_near_duplicates_go_and_the_longest_stays(tmp_path):
    near = TEXT.replace("word150", "other") + " tail"
    unrelated = " ".join(reversed(WORDS))
    kept = run(
        tmp_path, [document("b", TEXT), document("a", TEXT.upper()), document("c", near), document("d", unrelated)]
    )
    assert [d["id"] for d in kept] == ["c", "d"]
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["dropped"] == {"near_duplicate": 2}
    (cluster,) = read_clusters(tmp_path / "out")
    assert cluster["kept"] == "c"
    assert sorted(cluster["dropped"]) == [["a", "near_duplicate"], ["b", "near_duplicate"]]


def test_clusters_and_bytes_are_counted_by_size_language_and_fate(tmp_path):
    texts = [" ".join(f"{name}{i}" for i in range(100)) for name in "abcd"]
    sizes = (2, 2, 3, 1)
    documents = [
        {"id": f"{t}-{copy}", "text": text, "lang": ("en", "zh")[t % 2], "source": "web"}
        for t, (text, size) in enumerate(zip(texts, sizes, strict=True))
        for copy in range(size)
    ]
    assert len(run(tmp_path, documents)) == 4
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert (counts["clusters"], counts["clusters_by_size"]) == (3, {"2": 2, "3": 1})
    size = {lang: len(texts[0]) for lang in ("en", "zh")}
    assert counts["groups"]["en"]["web"] == {
        "in": 5, "out": 2, "dropped": {"exact_duplicate": 3},
        "bytes_in": 5 * size["en"], "bytes_out": 2 * size["en"], "bytes_dropped": {"exact_duplicate": 3 * size["en"]},
    }  # fmt: skip
    assert [counts["groups"]["zh"]["web"][key] for key in ("in", "out")] == [3, 2]


@pytest.mark.parametrize(("threshold", "stay"), [(0.5, 1), (0.7, 1), (0.9, 2)])
def test_documents_less_alike_than_the_threshold_stay(threshold, stay, tmp_path):
    config = tmp_path / "dedup.yaml"
    config.write_text(f"threshold: {threshold}\nbands: 64\nrows: 4\n")
    documents = [document("a", TEXT), document("b", " ".join(WORDS[:240]))]  # 236 of 296 5-grams: Jaccard 0.8
    assert len(run(tmp_path, documents, config=config)) == stay


def test_of_equally_long_ones_the_smallest_id_stays(tmp_path):
    kept = run(tmp_path, [document("b", TEXT), document("a", TEXT.upper()), document("c", TEXT)])
    assert [d["id"] for d in kept] == ["a"]
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["dropped"] == {"exact_duplicate": 2}


def test_short_different_texts_are_no_duplicates(tmp_path):
    assert len(run(tmp_path, [document(str(i), f"only {i}") for i in range(50)])) == 50


def test_the_result_depends_on_the_documents_alone(prepared, tmp_path):
    documents = documents_in(prepared.curated)
    one = {d["id"] for d in run(tmp_path, documents, "one", files=1)}
    many = {d["id"] for d in run(tmp_path, documents[::-1], "many", files=5)}
    assert one == many


def test_planted_duplicates_are_caught_and_nothing_else(prepared):
    planted = load_json(prepared.raw / "planted.json")
    curated = {d["id"] for d in documents_in(prepared.curated)}
    kept = {d["id"] for d in documents_in(prepared.deduped)}
    pairs = {(i, p["of"]) for i, p in planted.items() if "of" in p and {i, p["of"]} <= curated}
    caught = sum(not ({i, of} <= kept) for i, of in pairs)
    assert caught / len(pairs) > 0.9
    assert curated - kept <= {identity for pair in pairs for identity in pair}


@pytest.mark.parametrize("text", [TEXT, "河边的人大多见过这些船，他们知道集市会在天亮的时候开始。" * 3])
def test_signatures_estimate_the_jaccard_similarity_of_5_grams(text):
    minhash = MinHash(ngram=5, bands=128, rows=8, seed=1)
    other = text[: len(text) * 3 // 4]
    left, right = set(minhash.shingles(text).tolist()), set(minhash.shingles(other).tolist())
    exact = len(left & right) / len(left | right)
    signatures = np.stack([minhash.signature(text), minhash.signature(other)])
    assert (signatures[0] == signatures[1]).mean() == pytest.approx(exact, abs=0.06)
    packed = pack(signatures)
    assert similarity(packed[:1], packed[1:])[0] == pytest.approx(exact, abs=0.06)


def test_unrelated_signatures_have_no_similarity():
    minhash = MinHash(ngram=5, bands=32, rows=8, seed=1)
    texts = [" ".join(f"{name}{i}" for i in range(200)) for name in "abcdefghij"]
    packed = pack(np.stack([minhash.signature(text) for text in texts]))
    assert np.abs(similarity(packed[:-1], packed[1:])).max() < 0.05


def test_han_characters_are_tokens_and_other_words_stay_whole():
    minhash = MinHash(ngram=1, bands=1, rows=1, seed=1)
    assert minhash.shingles("用 Python 写").size == 3
    assert sorted(minhash.shingles("用Python写").tolist()) == sorted(minhash.shingles("写 python 用").tolist())


def test_signatures_stay_the_same_from_version_to_version():
    """A new crawl is compared with signatures that are years old."""
    minhash = MinHash(ngram=5, bands=2, rows=2, seed=1)
    signature = minhash.signature("The old ship, 清晨的船长 don't wait for Émile's lantern.")
    assert signature.tolist() == GOLDEN_SIGNATURE
    assert minhash.band_keys(signature[None]).tolist() == GOLDEN_BANDS


def test_each_of_the_shipped_hash_functions_stays_the_same():
    """Multiply-shift needs odd multipliers, of which half of those drawn are not."""
    minima = MinHash(ngram=5, bands=32, rows=8, seed=1).signature(TEXT)
    assert minima.shape == (256,)
    assert xxhash.xxh3_128_hexdigest(minima.astype("<u4").tobytes()) == GOLDEN_SHIPPED


def test_every_document_of_a_bucket_is_compared_with_its_neighbour_and_with_the_first():
    rows = {"key": pa.array([7] * 4 + [9], pa.uint64()), "exact": pa.array([1, 2, 3, 3, 1], pa.uint64())}
    table = pa.table({**rows, "document": pa.array([10, 30, 20, 40, 50], pa.uint64())})
    left, right = pairs_in_bands(table)
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(10, 20), (10, 30), (20, 30)]


def test_documents_meet_where_a_band_agrees_and_nowhere_else():
    minhash = MinHash(ngram=5, bands=4, rows=4, seed=1)
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 1 << 32, (3, 16), dtype=np.uint32)
    signatures[1, 4:8] = signatures[0, 4:8]
    signatures[2, :4] = signatures[0, 4:8]  # the same rows in another band
    keys = minhash.band_keys(signatures)
    assert (keys[0] == keys[1]).tolist() == [False, True, False, False]
    assert not np.isin(keys[2], keys[0]).any()


def random_edges(seed: int, nodes: int, number: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, nodes, (number, 2)).astype(np.uint64)


@pytest.mark.parametrize(
    "edges",
    [
        np.zeros((0, 2), np.uint64),
        np.array([[1, 2], [3, 4], [2, 3]], np.uint64),
        np.stack([np.arange(500), np.arange(1, 501)], axis=1).astype(np.uint64),  # a long path
        np.stack([np.full(300, 150), np.arange(300)], axis=1).astype(np.uint64),  # a star
        *(random_edges(seed, 400, number) for seed, number in enumerate((50, 200, 1000))),
    ],
)
@pytest.mark.parametrize("partition_bytes", [None, 2000])
def test_components_equal_union_find_in_one_partition_and_in_many(edges, partition_bytes, tmp_path, monkeypatch):
    if partition_bytes:
        monkeypatch.setattr(shuffle, "PARTITION_BYTES", partition_bytes)
    both = np.concatenate((edges, edges[:, ::-1]))
    graph = Shuffle(tmp_path / "edges")
    graph.write(0, shuffle.scatter(both[:, 0]), {"node": both[:, 0], "other": both[:, 1]})
    run = lambda name, function, tasks, workers: [function(task, i) for i, task in enumerate(tasks)]  # noqa: E731
    found, parts = find_components(run, graph, lambda name: Shuffle(tmp_path / name))
    assert (graph.partitions() > 1) == (partition_bytes is not None and len(edges) > 20)
    root = list(range(501))
    for part in range(parts):
        table = found.read(part, parts)
        for node, other in zip(column(table, "node").tolist(), column(table, "other").tolist(), strict=True):
            root[node] = min(root[node], other)
    assert root == reference.star_components(501, edges.tolist())


def test_many_partitions_give_what_one_gives(prepared, tmp_path, monkeypatch):
    documents = documents_in(prepared.curated)
    one = {d["id"] for d in run(tmp_path, documents, "one")}
    monkeypatch.setattr(shuffle, "PARTITION_BYTES", 30_000)
    monkeypatch.setattr(shuffle, "FAN_IN", 2)
    monkeypatch.setattr(signatures, "CHUNK_DOCUMENTS", 37)
    many = {d["id"] for d in run(tmp_path, documents, "many", files=3)}
    tasks = tmp_path / "many" / "tasks"
    assert len(list((tasks / "candidates").iterdir())) > 5
    assert {"merge-bands-1", "merge-bands-2", "merge-pairs-1", "merge-ids-1"} <= {p.name for p in tasks.iterdir()}
    assert one == many


def test_the_signatures_of_a_part_are_opened_a_few_times_however_many_ranges_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "PARTITION_BYTES", 6_000)
    opened = Counter()
    original = signatures.read_table
    monkeypatch.setattr(signatures, "read_table", lambda path: (opened.update([path.name]), original(path))[1])
    texts = [" ".join(f"{number}-{word}" for word in range(100)) for number in range(40)]
    documents = [document(f"{number}{end}", text + end) for end in ("", " tail") for number, text in enumerate(texts)]
    assert len(run(tmp_path, documents, files=20)) == 40
    assert len(list((tmp_path / "out" / "tasks" / "candidates").iterdir())) > 10
    assert len(opened) == 20
    assert max(opened.values()) <= 8  # phases that read them; twice where a part has more pairs than memory


def test_the_source_of_higher_priority_stays_then_the_better_then_the_longer(tmp_path):
    config = tmp_path / "dedup.yaml"
    config.write_text("priority: [books, web]\nquality_field: score\n")
    texts = {"a": TEXT + " longest of all", "b": TEXT, "c": TEXT + " tail"}
    documents = [
        {"id": "a", "text": texts["a"], "source": "other"},
        {"id": "b", "text": texts["b"], "source": "web", "score": 0.9},
        {"id": "c", "text": texts["c"], "source": "web", "score": 0.1},
    ]
    keep = lambda name, documents: [d["id"] for d in run(tmp_path, documents, name, config=config)]  # noqa: E731
    assert keep("web", documents) == ["b"]
    assert keep("books", [*documents, {"id": "d", "text": TEXT, "source": "books"}]) == ["d"]
    assert keep("equal", [{**d, "source": "web", "score": 0.5} for d in documents]) == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "0.9", True, [1], 10**400])
def test_a_quality_that_is_no_finite_number_ranks_as_0_and_is_told(value, tmp_path, capsys):
    documents = [{**document("a", TEXT), "quality": value}, {**document("b", TEXT), "quality": 0.1}]
    output = tmp_path / "signed"
    result = signatures.sign_part(
        enumerate(documents), 0, minhash=(5, 2, 2, 1), ranking=signatures.Ranking((), "quality"), output=output
    )
    assert (result["ranked"], result["unranked"]) == (1, 1)
    assert column(signatures.Catalog(output).part(0)[0], "quality").tolist() == [0.0, 0.1]
    (note,) = notes_on_ranking(DedupConfig(), [result], {"web"})
    assert note == "documents whose 'quality' is no finite number: 1; they rank as with 0"


def test_a_ranking_by_what_no_document_has_is_told(tmp_path, capsys):
    config = tmp_path / "dedup.yaml"
    config.write_text("priority: [books, wbe]\nquality_field: score\n")
    run(tmp_path, [{**document("a", TEXT), "source": "books"}, {**document("b", "b"), "source": "web"}], config=config)
    told = capsys.readouterr().out
    assert "no document has the source 'wbe' of priority" in told
    assert "'web'" in told
    assert "'books'" not in told
    assert "no document has the quality_field 'score'" in told
    run(tmp_path, [document("a", TEXT)], "plain")
    assert "note" not in capsys.readouterr().out


def test_documents_without_words_are_duplicates_where_they_are_equal_alone(tmp_path):
    texts = ["∑∏∫√" * 9, "😀😃😄" * 9, "░▒▓█" * 9, "+-*/=" * 9, "+-*/=" * 10, "...", "。！？" * 9, "😀😃😄" * 9]
    old = [document(str(number), text) for number, text in enumerate(texts[:3])]
    kept = run(tmp_path, [*old, *(document(str(number), text) for number, text in enumerate(texts[3:], 3))])
    assert [d["id"] for d in kept] == [str(number) for number in range(7)]
    run(tmp_path, old, "old")
    new = [document("new", "♔♕♖♗" * 9), document("again", texts[0])]
    assert [d["id"] for d in run(tmp_path, new, "new", against=[tmp_path / "old"])] == ["new"]


@pytest.mark.parametrize("words", ["Fig 1", "a", "one two three four", "图一二三"])
def test_documents_of_fewer_words_than_an_ngram_are_duplicates_where_they_are_equal_alone(words, tmp_path):
    texts = [f"{words} {symbols * 30}" for symbols in ("∑∏∫√", "░▒▓█", "+-*/", "+-*/")]
    kept = run(tmp_path, [document(str(number), text) for number, text in enumerate(texts)])
    assert [d["id"] for d in kept] == ["0", "1", "2"]


def test_the_fewest_words_that_are_compared_are_those_of_one_ngram(tmp_path):
    kept = run(tmp_path, [document("a", "one two three four five"), document("b", "One, two: three, four, five!")])
    assert [d["id"] for d in kept] == ["b"]


def test_parts_of_many_older_runs_have_numbers_of_their_own(tmp_path):
    folders = [tmp_path / str(number) for number in range(20)]
    for number, folder in enumerate(folders):
        for part in range(3):
            path = signatures.signature_path(folder, part, 0)
            signatures.write_table(path, pa.table({"record": pa.array([number], pa.uint64())}))
    catalog = signatures.Catalog(folders[0], tuple(folders[1:]))
    numbers = catalog.numbers()
    assert len(set(numbers)) == 60
    assert max(numbers) < 1 << (64 - signatures.RECORD_BITS)
    assert [column(catalog.part(number)[0], "record")[0] for number in numbers] == [n // 3 for n in range(60)]


def test_an_old_corpus_stays_and_new_documents_yield(tmp_path):
    old = [document("z", TEXT), document("y", TEXT + " x"), document("o", " ".join(reversed(WORDS)))]
    kept_old = run(tmp_path, old, "old")
    assert [d["id"] for d in kept_old] == ["y", "o"]
    new = [document("a", TEXT + " much longer than the old one"), document("b", "new " * 3 + " ".join(WORDS[::2]))]
    kept = run(tmp_path, new, "new", against=[tmp_path / "old"])
    assert [d["id"] for d in kept] == ["b"]
    third = run(tmp_path, [*new, *old], "third", against=[tmp_path / "old", tmp_path / "new"])
    assert third == []


def test_what_went_of_an_older_run_is_read_from_its_merged_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "PARTITION_BYTES", 3_000)
    monkeypatch.setattr(dedup, "DROPS_FILES", 1)
    texts = [" ".join(f"{number}-{word}" for word in range(100)) for number in range(30)]
    old = [document(f"{number}{end}", text + end) for end in ("", " tail") for number, text in enumerate(texts)]
    kept = {d["id"] for d in run(tmp_path, old, "old", files=5)}
    assert len(kept) == 30
    assert (tmp_path / "old" / "drops" / "merged-1").is_dir()
    catalog = signatures.Catalog(tmp_path / "new", (tmp_path / "old",))
    went = set()
    for number in catalog.numbers():
        (table,) = catalog.part(number)
        identities = dict(zip(column(table, "record").tolist(), table["id"].to_pylist(), strict=True))
        went |= {identities[record] for record in column(catalog.drops(number), "record").tolist()}
    assert went == {d["id"] for d in old} - kept
    assert run(tmp_path, old, "new", files=3, against=[tmp_path / "old"]) == []


def test_an_older_run_of_other_parameters_is_refused(tmp_path, capsys):
    run(tmp_path, [document("a", TEXT)], "old")
    config = tmp_path / "dedup.yaml"
    config.write_text("ngram: 4\n")
    words = ["--input", tmp_path / "old-in", "--output", tmp_path / "new", "--config", config]
    assert main([*map(str, words), "--against", str(tmp_path / "old")]) == 2
    assert "was signed with other ngram" in capsys.readouterr().err
    assert main([*map(str, words), "--against", str(tmp_path)]) == 2
    assert "is not the output of a finished dedup.py" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_lines_that_many_documents_have_go_when_asked(tmp_path):
    config = tmp_path / "dedup.yaml"
    config.write_text("repeated_lines: {min_documents: 3, min_characters: 10}\n")
    own = [" ".join(f"{name}{i}" for i in range(60)) for name in "abc"]
    documents = [document(str(i), f"Home | About | Contact\n{text}\nshort\n") for i, text in enumerate(own)]
    documents.append(document("menu", "home | about |  Contact"))
    kept = run(tmp_path, documents, config=config)
    assert [d["text"] for d in kept] == [f"{text}\nshort" for text in own]
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert (counts["in"], counts["out"], counts["dropped"]) == (4, 3, {"repeated_lines": 1})
    assert counts["repeated_lines"] == {"documents": 4, "lines": 4}


@pytest.mark.parametrize(
    ("documents", "characters", "stays"), [(2, 10, True), (3, 10, False), (4, 10, False), (3, 24, True), (3, 23, False)]
)
def test_a_line_goes_from_the_number_of_documents_and_characters_on_that_is_asked_for(
    documents, characters, stays, tmp_path
):
    config = tmp_path / "dedup.yaml"
    config.write_text(f"repeated_lines: {{min_documents: 3, min_characters: {characters}}}\n")
    line = "Home | About | Contact."
    own = [" ".join(f"{name}{i}" for i in range(60)) for name in "abcd"[:documents]]
    texts = [
        d["text"] for d in run(tmp_path, [document(str(i), f"{line}\n{t}") for i, t in enumerate(own)], config=config)
    ]
    assert texts == [f"{line}\n{text}" if stays else text for text in own]


def test_repeated_lines_of_many_ranges_are_in_one_file_and_a_number_that_is_not_finite_is_no_obstacle(tmp_path):
    shared = "\n".join(f"a line that two have {number}" for number in range(60))
    lines = "".join(f'{{"id": "{i}", "text": {json.dumps(f"only {i}" + chr(10) + shared)}, "x": NaN}}\n' for i in "ab")
    (tmp_path / "in.jsonl").write_text(lines)
    counted, joined = Shuffle(tmp_path / "lines"), tmp_path / "joined.npy"
    settings = repeated_lines.RepeatedLines(min_documents=2, min_characters=5)
    labels = pa.table({"record": pa.array([0, 1], pa.uint64())})
    fate = lambda number: (labels, np.full(2, -1, np.int8))  # noqa: E731
    repeated_lines.count_lines(Part(tmp_path / "in.jsonl"), 0, config=settings, target=counted, fate=fate)
    for i in range(7):
        repeated_lines.find_repeated(
            i, i, config=settings, source=counted, partitions=7, target=tmp_path / "ranges"
        )  # fmt: skip
    repeated_lines.join_repeated(7, 0, source=tmp_path / "ranges", target=joined)
    hashes = np.load(joined)
    assert hashes.size == 60
    assert (hashes[1:] > hashes[:-1]).all()
    changed = Counter()
    lines_filter = repeated_lines.LineFilter(joined)
    assert [lines_filter.apply(line.encode(), changed)["text"] for line in lines.splitlines()] == ["only a", "only b"]
    assert changed == {"lines": 120, "documents": 2}


def test_hashes_of_lines_wait_in_bounded_number(tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_lines, "_CHUNK_LINES", 1000)
    text = lambda number: "\n".join(f"line {number} {line}" for line in range(150))  # noqa: E731
    write_documents(tmp_path / "in.jsonl", [document(str(number), text(number)) for number in range(2000)])
    labels = pa.table({"record": pa.array(np.arange(2000), pa.uint64())})
    target, settings = Shuffle(tmp_path / "lines"), repeated_lines.RepeatedLines(min_documents=2, min_characters=1)
    part, fate = Part(tmp_path / "in.jsonl"), lambda number: (labels, np.full(2000, -1, np.int8))
    repeated_lines.count_lines(part, 0, config=settings, target=target, fate=fate)
    sizes = [shuffle.read_table(path).num_rows for path in target.folder.iterdir()]
    assert max(sizes) <= 1150
    assert sum(sizes) == 300_000


def test_an_id_that_two_kept_documents_share_is_told_and_neither_is_lost(tmp_path, capsys):
    kept = run(tmp_path, [document("a", TEXT), document("a", " ".join(reversed(WORDS))), document("b", "only b")])
    assert len(kept) == 3
    assert "2 kept documents have the id of another kept document" in capsys.readouterr().out
    assert load_json(tmp_path / "out" / "manifest.json")["results"]["repeated_ids"] == ["a"]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_ids_that_repeat_are_counted_alike_in_tables_of_any_size(rows, tmp_path, monkeypatch):
    ids = ["hot"] * 40 + [f"one-{i}" for i in range(9)] + ["two"] * 2 + ["three"] * 3
    source = Shuffle(tmp_path / "ids")
    for number in range(3):  # of several files
        part = ids[number::3]
        source.write(
            number, np.array([xxhash.xxh3_64_intdigest(i.encode()) for i in part], np.uint64), {"id": pa.array(part)}
        )
    monkeypatch.setattr(shuffle, "_rows_of", lambda *_: rows)
    assert max(table.num_rows for table in source.tables(0, 1)) <= max(rows, 3)
    monkeypatch.setattr(source, "read", None)  # which would hold all documents of an id
    assert repeated_ids(0, 0, source=source, partitions=1) == {"repeated": 45, "examples": ["hot", "three", "two"]}


@needs_shared
def test_planted_near_duplicates_of_real_text(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in (SHARED / "near_duplicates").glob("documents-*.jsonl.gz"):
        (source / path.name).symlink_to(path)
    done = run_job("data_prep/dedup.py", "--input", source, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (tmp_path / "kept").write_text("\n".join(d["id"] for d in documents_in(tmp_path / "out")))
    score = json.loads(run_python(SHARED / "near_duplicates" / "score.py", tmp_path / "kept").stdout)
    assert score["precision"] >= 0.995
    assert score["recall_J"]["0.8"] >= 0.995
    assert score["recall_J"]["0.9"] == 1.0
    assert score["false_removals"]["boilerplate"] == 0
