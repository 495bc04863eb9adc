"""Tokenizer and packed shards: nothing of a document is lost, and held-out documents are kept apart."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep.documents.reading import write_documents
from data_prep.mix import main as mix
from data_prep.tokenization.held_out import few_held_out, is_far_off, is_held_out
from data_prep.tokenization.shards import source_name
from data_prep.tokenize_corpus import main, notes, notes_of_few
from data_prep.train_tokenizer import TokenizerConfig, train, write_folder
from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json
from recipe.data.indexed import Shard, ShardWriter
from recipe.data.token_folder import TokenFolder, tokenizer_identity
from tests.conftest import documents_in

TEXTS = [
    "The old ship, don't you see?  Two  blanks,\ttabs\n\n\nand 2026 lines.",
    "清晨，青石镇的船长看着潮水。Python 代码：\n    return x[1:]  # 注释",
    "mixed中文English混排123 ¿ña? 🙂👩‍👩‍👧 \u200b end",
    "<|endoftext|> is only text here",
]


@pytest.fixture(scope="module", params=["single", "triple"])
def tokenizer(request, tmp_path_factory):
    """A trained tokenizer as transformers loads it, and its config."""
    config = TokenizerConfig(
        vocab_size=600,
        digits=request.param,
        extra_special_tokens=["<|im_start|>"],
        reserved_tokens=3,
        sample_bytes=10**6,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    write_folder(train(iter(TEXTS * 3), config), config, folder)
    return AutoTokenizer.from_pretrained(folder), config


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = train(iter(TEXTS * 3), tokenizer[1])
    assert again.to_str() == tokenizer[0].backend_tokenizer.to_str()


def test_every_text_comes_back_byte_for_byte(tokenizer):
    for text in TEXTS:
        ids = tokenizer[0].encode(text, split_special_tokens=True)
        assert tokenizer[0].decode(ids) == text


def test_digits_are_split_as_configured(tokenizer):
    pieces = [p for p, _ in tokenizer[0].backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")]
    assert pieces == (list("12345") if tokenizer[1].digits == "single" else ["123", "45"])


def test_text_is_composed_to_nfc(tokenizer):
    assert tokenizer[0].encode("e\u0301") == tokenizer[0].encode("é")


def test_special_and_reserved_tokens_come_first(tokenizer):
    assert tokenizer[0].convert_ids_to_tokens(range(6)) == tokenizer[1].special_tokens
    assert tokenizer[0].eos_token_id == 0
    assert tokenizer[0].pad_token_id == 1


def test_a_vocabulary_too_small_or_a_repeated_special_token_is_refused():
    config = TokenizerConfig(vocab_size=257, extra_special_tokens=["<|pad|>"], sample_bytes=1)
    assert len(config.problems()) == 2


def test_shards_hold_every_document_once_as_transformers_tokenizes_it(prepared):
    hf = AutoTokenizer.from_pretrained(prepared.tokenizer)
    manifest = load_json(prepared.tokens / "manifest.json")
    expected: dict[str, list[list[int]]] = {}
    for document in documents_in(prepared.deduped):
        split = "held_out" if is_held_out(document["id"], 0.05) else "train"
        ids = [*hf.encode(document["text"], add_special_tokens=False, split_special_tokens=True), hf.eos_token_id]
        expected.setdefault(f"{split}/{document['lang']}", []).append(ids)
    found: dict[str, list[list[int]]] = {}
    for entry in manifest["results"]["shards"]:
        shard = Shard(prepared.tokens / entry["prefix"])
        documents = [d.tolist() for d in shard.documents()]
        assert (len(documents), sum(map(len, documents))) == (entry["documents"], entry["tokens"])
        found.setdefault(f"{entry['split']}/{entry['source']}", []).extend(documents)
        assert entry["sha256"][".bin"] == sha256(prepared.tokens / f"{entry['prefix']}.bin")
    for documents in (*found.values(), *expected.values()):
        documents.sort()
    assert found == expected
    assert set(found) == {"train/en", "train/zh", "held_out/en", "held_out/zh"}


def test_megatrons_reader_gives_the_documents_back(prepared):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    hf = AutoTokenizer.from_pretrained(prepared.tokenizer)
    texts = {d["text"] for d in documents_in(prepared.deduped)}
    read = set()
    for entry in load_json(prepared.tokens / "manifest.json")["results"]["shards"]:
        dataset = IndexedDataset(str(prepared.tokens / entry["prefix"]))
        for i in range(len(dataset)):
            assert dataset[i][-1] == hf.eos_token_id
            read.add(hf.decode(dataset[i][:-1]))
    assert read == texts


def test_the_manifest_counts_text_bytes_for_bits_per_byte(prepared):
    sources = TokenFolder(prepared.tokens).sources("held_out")
    assert [source.name for source in sources] == ["en", "zh"]
    for source in sources:
        held = [d for d in documents_in(prepared.deduped) if d["lang"] == source.name and is_held_out(d["id"], 0.05)]
        assert source.text_bytes == sum(len(d["text"].encode()) for d in held)


def test_tokens_are_counted_by_source_split_and_licence(prepared, tmp_path):
    documents = [
        {"id": "a", "text": "The old ship", "lang": "en", "source": "web", "license": "CC0"},
        {"id": "b", "text": "清晨的船长看着潮水", "lang": "zh", "source": "web"},
        {"id": "c", "text": "The ship of the harbour is old", "lang": "en", "source": "web"},
        {
            "id": "d",
            "text": "The people by the river and the old harbour of the ship",
            "lang": "en",
            "source": "books",
            "license": "CC0",
        },
    ]
    write_documents(tmp_path / "in.jsonl", documents)
    hf = AutoTokenizer.from_pretrained(prepared.tokenizer)
    tokens = [len(hf.encode(d["text"], add_special_tokens=False)) + 1 for d in documents]
    assert len(set(tokens)) == 4
    a, b, c, d = tokens
    for source_by, licenses in (
        ("lang", {"en": {"CC0": a + d, "not stated": c}, "zh": {"not stated": b}}),
        ("source", {"books": {"CC0": d}, "web": {"CC0": a, "not stated": b + c}}),
        ("both", {"en-books": {"CC0": d}, "en-web": {"CC0": a, "not stated": c}, "zh-web": {"not stated": b}}),
    ):
        (tmp_path / "tokenize.yaml").write_text(f"source_by: {source_by}\nheld_out: 0\n")
        words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--output", tmp_path / source_by]
        assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
        manifest = load_json(tmp_path / source_by / "manifest.json")
        assert manifest["results"]["licenses"] == licenses
        totals = manifest["counts"]["totals"]["train"]
        assert {name: total["tokens"] for name, total in totals.items()} == {
            name: sum(by_license.values()) for name, by_license in licenses.items()
        }
        assert sum(total["documents"] for total in totals.values()) == 4
        assert sum(total["text_bytes"] for total in totals.values()) == sum(len(d["text"].encode()) for d in documents)


@pytest.mark.parametrize(
    ("source_by", "bilingual", "names"),
    [
        ("lang", "language", {"en", "zh"}),
        ("lang", "apart", {"en", "zh", "bilingual"}),
        ("lang", "label", {"en", "zh", "bilingual-parallel", "bilingual-glossary"}),
        ("source", "apart", {"web", "bilingual-web"}),
        ("both", "label", {"en-web", "zh-web", "bilingual-parallel-web", "bilingual-glossary-web"}),
    ],
    ids=["with-their-language", "apart", "by-label", "apart-by-source", "by-label-and-source"],
)
def test_documents_that_join_two_languages_can_be_sources_of_their_own(source_by, bilingual, names):
    documents = [
        {"lang": "en"}, {"lang": "zh"}, {"lang": "en", "bilingual": "parallel"}, {"lang": "zh", "bilingual": "glossary"}
    ]  # fmt: skip
    assert {source_name({**document, "source": "web"}, source_by, bilingual) for document in documents} == names


def test_a_few_bilingual_documents_are_a_source_that_the_mixture_weights(prepared, tmp_path, capsys):
    documents = [{"id": f"e{i}", "text": f"The old ship {i}", "lang": "en"} for i in range(40)]
    documents += [{"id": f"b{i}", "text": f"ship {i}\n船 {i}", "lang": "en", "bilingual": "parallel"} for i in range(3)]
    write_documents(tmp_path / "in.jsonl", documents)
    (tmp_path / "tokenize.yaml").write_text("bilingual: apart\nheld_out: 0.2\n")
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
    assert "bilingual" in load_json(tmp_path / "out" / "manifest.json")["counts"]["totals"]["train"]
    shares = []
    for factor in (1, 2):
        capsys.readouterr()
        assert (
            mix(["--tokens", str(tmp_path / "out"), "--run-tokens", "1e6", "--set", f"factors={{bilingual: {factor}}}"])
            == 0
        )
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("bilingual "))
        shares.append(float(row.split()[2].rstrip("%")) / 100)
    assert shares[1] / (1 - shares[1]) == pytest.approx(2 * shares[0] / (1 - shares[0]), rel=0.01)


def test_the_share_held_out_is_the_one_asked_for():
    ids = [f"doc-{i}" for i in range(20_000)]
    assert np.mean([is_held_out(i, 0.05) for i in ids]) == pytest.approx(0.05, abs=0.005)
    assert not any(is_held_out(i, 0.0) for i in ids)
    assert {i for i in ids if is_held_out(i, 0.01)} < {i for i in ids if is_held_out(i, 0.05)}


@pytest.mark.parametrize(
    ("held_out", "documents", "share", "far"),
    [
        (0, 12_000, 0.005, True),
        (12_000, 12_000, 0.005, True),
        (400, 12_000, 0.005, True),
        (0, 12_000, 0.0, False),
        (60, 12_000, 0.005, False),
        (21, 12_000, 0.005, False),
        (179, 12_000, 0.005, False),
        (0, 1000, 0.005, False),  # distinct ids give it once in 150
        (0, 999, 0.9, False),  # too few to say it of
        (100, 1000, 0.9, True),
        (10**6, 10**6, 0.9, False),  # within a factor of 3
    ],
)
def test_a_held_out_share_that_distinct_ids_would_not_give_is_far_off(held_out, documents, share, far):
    assert is_far_off(held_out, documents, share) == far


def test_documents_that_share_an_id_are_named_when_none_of_them_is_held_out(prepared, tmp_path, capsys):
    documents = [{"id": "export-2026", "text": f"ship {i}", "lang": "en"} for i in range(1100)]
    documents += [{"id": str(i), "text": f"船 {i}", "lang": "zh"} for i in range(1100)]
    write_documents(tmp_path / "in.jsonl", documents)
    (tmp_path / "tokenize.yaml").write_text("held_out: 0.05\n")
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
    held = 1100 * is_held_out("export-2026", 0.05)
    results = load_json(tmp_path / "out" / "manifest.json")["results"]
    assert results["held_out_far_off"] == {"en": {"documents": 1100, "held_out": held}}
    out = capsys.readouterr().out
    assert f"note: {held:,} of 1,100 documents of en are held out, 5.00% were asked for: all documents of one id" in out
    assert "documents of zh are" not in out


@pytest.mark.parametrize(
    ("documents", "held_out", "ids", "share", "advice"),
    [
        (2000, 0, 30, 0.005, "give each an id of its own"),
        (2000, 40, 30, 0.02, "give each an id of its own"),
        (1000, 0, 1000, 0.001, "raise held_out"),
        (1000, 0, 1000, 0.0, None),
        (999, 0, 30, 0.005, None),
        (2000, 10, 1900, 0.005, None),
        (10_000, 0, 30, 0.005, None),  # is far off, which has a note of its own
    ],
)
def test_a_source_of_which_chance_holds_out_is_told(documents, held_out, ids, share, advice):
    totals = {"train": {"en": {"documents": documents - held_out}}, "held_out": {"en": {"documents": held_out}}}
    few = few_held_out(totals, {"en": ids}, share)
    assert few == ({"en": {"documents": documents, "held_out": held_out, "ids": ids}} if advice else {})
    sentences = list(notes({"fell_back": [], "few_held_out": few}, share))
    assert [s.startswith(f"{held_out} of {documents:,} documents of en are held out") for s in sentences] == [
        True
    ] * len(few)
    assert not advice or advice in sentences[0]


def test_sources_too_small_to_hold_out_a_document_are_named_once():
    totals = {
        "train": {"en": {"documents": 6}, "zh": {"documents": 7}, "fr": {"documents": 2000}},
        "held_out": {"zh": {"documents": 1}},
    }
    told = {"few_held_out": {"fr": {"documents": 2000, "held_out": 0, "ids": 30}}}
    (note,) = notes_of_few(told, totals, 0.005)
    assert note.startswith("no document of en is held out (held_out is 0.005): ")
    assert list(notes_of_few(told, totals, 0.0)) == []


def test_ids_are_counted_over_the_parts_of_the_input(prepared, tmp_path, capsys):
    for name in ("a", "b"):
        few = [{"id": f"f{i % 7}", "text": f"ship {name} {i}", "lang": "en"} for i in range(550)]
        write_documents(tmp_path / "in" / f"{name}.jsonl", few)
    (tmp_path / "tokenize.yaml").write_text("held_out: 0.002\n")
    words = ["--input", tmp_path / "in", "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
    assert "0 of 1,100 documents of en are held out, 0.20% were asked for: they have about 7 different ids" in (
        capsys.readouterr().out
    )


def test_long_names_of_sources_stay_apart_and_fit_in_the_name_of_a_folder():
    langs = ["x" * 300, "x" * 301, "语" * 300, "语" * 299, "x" * 100, "y" * 101]
    names = [source_name({"lang": lang}, "lang") for lang in langs]
    assert len(set(names)) == len(langs)
    assert max(len(name.encode()) for name in names) <= 100
    assert [name[:5] for name in names[:3]] == ["xxxxx", "xxxxx", "语" * 5]
    assert names[4] == langs[4]


@pytest.mark.parametrize(("by", "name"), [("lang", "en"), ("source", "my_web_2026"), ("both", "en-my_web_2026")])
def test_sources_are_named_safely(by, name):
    assert source_name({"lang": "en", "source": "../my/web 2026"}, by) == name


def test_a_folder_without_a_tokenizer_is_refused(prepared, tmp_path, capsys):
    words = ["--input", prepared.deduped, "--tokenizer", tmp_path, "--output", tmp_path / "out"]
    assert main([str(w) for w in words]) == 2
    assert "holds no tokenizer.json" in capsys.readouterr().err
    words[words.index("--tokenizer") + 1] = prepared.tokenizer / "tokenizer.json"
    assert main([str(w) for w in words]) == 2
    assert "tokenizer.json is a file; give the folder that it is in" in capsys.readouterr().err


def test_a_token_folder_that_does_not_match_its_manifest_is_refused(prepared, tmp_path):
    import shutil

    copy = tmp_path / "tokens"
    shutil.copytree(prepared.tokens, copy)
    first = load_json(copy / "manifest.json")["results"]["shards"][0]
    path = copy / f"{first['prefix']}.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="tokenize it again"):
        TokenFolder(copy).sources(first["split"])
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        TokenFolder(tmp_path)


@pytest.mark.parametrize("change", [{"stage": "dedup"}, {"results": {}}, {"results": {"tokenizer": {}, "shards": []}}])
def test_a_manifest_of_another_job_or_form_is_refused(change, prepared, tmp_path):
    manifest = load_json(prepared.tokens / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(
        UserError, match=r"manifest\.json (is not of tokenize_corpus\.py|lacks what tokenize_corpus\.py)"
    ):
        TokenFolder(tmp_path)


def test_checksums_that_are_not_the_manifests_are_refused(prepared, tmp_path):
    """Another shard of the same size, put there with its own sums."""
    shutil.copytree(prepared.tokens, tmp_path / "tokens")
    first = load_json(tmp_path / "tokens" / "manifest.json")["results"]["shards"][0]
    shard = Shard(tmp_path / "tokens" / first["prefix"])
    writer = ShardWriter(tmp_path / "tokens" / first["prefix"], shard.dtype)
    for length in shard.lengths:
        writer.add_document(np.zeros(length, dtype=shard.dtype))
    writer.close()
    with pytest.raises(UserError, match=r"\.sums is not the one that .* lists"):
        TokenFolder(tmp_path / "tokens").sources(first["split"])


def test_a_tokenizer_is_known_by_its_special_tokens_too(prepared, tmp_path):
    shutil.copytree(prepared.tokenizer, tmp_path / "tokenizer")
    before = tokenizer_identity(tmp_path / "tokenizer")
    assert before == tokenizer_identity(prepared.tokenizer)
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = load_json(path)
    # As an object, the way that transformers writes some of them, a token is the same.
    path.write_text(json.dumps({**config, "eos_token": {"content": config["eos_token"], "special": True}}))
    assert tokenizer_identity(tmp_path / "tokenizer") == before
    path.write_text(json.dumps({**config, "additional_special_tokens": ["<|tool|>"]}))
    assert tokenizer_identity(tmp_path / "tokenizer") != before
    path.write_text(json.dumps(config))
    for name, content in (
        ("special_tokens_map.json", {"eos_token": "<|im_end|>"}),
        ("added_tokens.json", {"<|x|>": 7}),
    ):
        (tmp_path / "tokenizer" / name).write_text(json.dumps(content))
        assert tokenizer_identity(tmp_path / "tokenizer") != before
        (tmp_path / "tokenizer" / name).unlink()
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    eod_id = tokenizer_identity(tmp_path / "tokenizer")["eod_id"]
    assert eod_id == AutoTokenizer.from_pretrained(tmp_path / "tokenizer").eos_token_id != before["eod_id"]
