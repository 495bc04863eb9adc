"""The fast encoder gives the reference's ids for every document, and yields to it where it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep import tokenize_corpus
from data_prep.documents.reading import read_documents, write_documents
from data_prep.tokenization import encoder
from data_prep.tokenization.encoder import (
    CHECKED_CHARACTERS,
    EncoderMismatch,
    FastEncoder,
    ReferenceEncoder,
    load_encoder,
)
from data_prep.tokenization.losses import Losses
from data_prep.tokenize_corpus import main, notes
from recipe.base.strict import load_json
from recipe.data.indexed import Shard
from recipe.data.token_folder import tokenizer_facts
from recipe.huggingface.tokenizer_folder import SELF_TEST
from tests.conftest import SHARED, documents_in, needs_shared
from tests.data_prep.curation.test_native import random_texts

TEXTS = [*SELF_TEST, *random_texts(200), "漢" * 5000, "a" * 5000, "\n" * 500, "<|endoftext|><|im_start|>"]


def same(folder, texts) -> bool:
    ids, ends = FastEncoder(folder).encode(texts)
    right, right_ends = ReferenceEncoder(folder).encode(texts)
    return np.array_equal(ids, right) and np.array_equal(ends, right_ends)


def test_both_encoders_agree(prepared):
    assert same(prepared.tokenizer, TEXTS)


@needs_shared
@pytest.mark.slow
def test_both_encoders_agree_on_every_second_real_document(prepared):
    for path in sorted((SHARED / "corpus").glob("*.jsonl.gz")):
        assert same(prepared.tokenizer, [d["text"] for d in read_documents(path, print)][::2]), path


def truncated(content):
    content["truncation"] = {"direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 4}


def padded(content):
    content["padding"] = {
        "strategy": {"Fixed": 512}, "direction": "Left", "pad_to_multiple_of": 8,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip


def begun_by_a_special_token(content):
    eod = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [eod, {"Sequence": {"id": "A", "type_id": 0}}, eod],
        "pair": [eod, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }


def with_added_tokens(content):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = {
        "ship": {"single_word": True},
        " old ": {"lstrip": True, "rstrip": True},
        "é": {"normalized": True},
        "\n": {},
    }
    for number, (text, flags) in enumerate(added.items(), start=len(content["model"]["vocab"])):
        content["added_tokens"].append({"id": number, "content": text, **plain, **flags})


def with_a_blank_before(content):
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def whole_words_first(content):
    content["model"]["ignore_merges"] = True


def lower_case(content):
    content["normalizer"] = {"type": "Lowercase"}


def word_level(content):
    words = ["<unk>", "<|endoftext|>", "The", "old", "ship", "中文"]
    content["model"] = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"}
    content.update(pre_tokenizer={"type": "Whitespace"}, decoder=None, normalizer=None, added_tokens=[])


def unigram(content):
    pieces = [
        ["<unk>", 0.0],
        ["<|endoftext|>", 0.0],
        ["▁", -2.0],
        ["▁the", -3.0],
        *([c, -5.0] for c in "abcdeilnorstuw中文"),
    ]
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content.update(pre_tokenizer=metaspace, decoder=metaspace, normalizer=None, added_tokens=[])


def bytes_for_the_rest(content):
    vocabulary = {
        token: i for i, token in enumerate(["<|endoftext|>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcde"])
    }
    model = {"vocab": vocabulary, "merges": [], "byte_fallback": True, "fuse_unk": True}
    content["model"] = {**content["model"], **model}
    content.update(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, pre_tokenizer=None)
    blank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    content["decoder"] = {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    content["added_tokens"] = []


CHANGES = [
    truncated, padded, begun_by_a_special_token, with_added_tokens, with_a_blank_before, whole_words_first, lower_case,
    word_level, unigram, bytes_for_the_rest,
]  # fmt: skip


def changed(prepared, folder, *changes):
    """A tokenizer folder with something else in its tokenizer.json."""
    content = load_json(prepared.tokenizer / "tokenizer.json")
    for change in changes:
        change(content)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_documents_are_encoded_whole_as_tokenizers_encodes_them(change, prepared, tmp_path):
    content = load_json(changed(prepared, tmp_path, change) / "tokenizer.json")
    plain = Tokenizer.from_str(json.dumps({**content, "truncation": None, "padding": None}))
    plain.encode_special_tokens = True
    right = [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for made in (load_encoder(tmp_path)[0], ReferenceEncoder(tmp_path)):
        ids, ends = made.encode(TEXTS)
        assert [part.tolist() for part in np.split(ids, ends[:-1])] == right, made.name
    assert change not in (truncated, padded) or load_encoder(tmp_path)[0].name == "fastokens"


def random_merges(content):
    content["model"]["dropout"] = 0.1


def unknown_word_missing(content):
    word_level(content)
    content["model"]["unk_token"] = "[UNK]"


def renumbered(content):
    content["added_tokens"].append({**content["added_tokens"][0], "id": 70_000, "content": "<|far|>"})


def no_list_of_added_tokens(content):
    content["added_tokens"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (random_merges, "sets dropout 0.1, which gives a document other tokens at each run; set it null"),
        (unknown_word_missing, "cannot encode a document"),
        (renumbered, "gives '<|far|>' the id 70000, but tokenizers and transformers read it as 1024"),
        (no_list_of_added_tokens, "a list added_tokens (maybe [])"),
        (lambda content: content["model"].update(type="Other"), "is not read by the tokenizers library"),
    ],
)
def test_a_tokenizer_that_would_go_wrong_later_is_refused(change, message, prepared, tmp_path, capsys):
    folder = changed(prepared, tmp_path / "tokenizer", change)
    words = ["--input", prepared.deduped, "--tokenizer", folder, "--output", tmp_path / "out", "--workers", 1]
    assert main([str(w) for w in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_named_token_that_the_vocabulary_lacks_is_refused_before_anything_is_read(prepared, tmp_path, capsys):
    folder = changed(prepared, tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "bos_token": "<s>"}')
    words = ["--input", prepared.deduped, "--tokenizer", folder, "--output", tmp_path / "out", "--workers", 1]
    assert main([str(w) for w in words]) == 2
    assert "bos_token of tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def ordinary_end(content):
    content["added_tokens"][0]["special"] = False


def bytes_of_ascii_only(content):
    model = content["model"]
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t.isascii() or t[0] in "ĠĊĉ"}
    model["merges"] = [m for m in model["merges"] if {*m, "".join(m)} <= model["vocab"].keys()]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] in model["vocab"].values()]


@pytest.mark.parametrize(
    ("change", "losses", "message"),
    [
        (word_level, {"unknown_tokens": {"en": 4, "zh": 1}, "changed": {"en": 1, "zh": 1}}, "4 tokens of en are the tokenizer's unk"),
        (
            unigram,
            {"unknown_tokens": {"en": 6, "zh": 1}, "ends_in_text": {"en": 1}, "changed": {"en": 1, "zh": 1}},
            "1 end-of-document tokens of en come from inside its texts",
        ),
        (ordinary_end, {"ends_in_text": {"en": 1}}, "mark the eos_token special"),
        (bytes_of_ascii_only, {"changed": {"zh": 1}}, "1 of 1 documents of zh that were decoded again came back changed"),
        (lower_case, {"changed": {"en": 1}}, "the tokenizer replaces or drops text"),
        (with_a_blank_before, {}, ""),
        (truncated, {}, ""),
        (bytes_for_the_rest, {}, ""),
    ],
)  # fmt: skip
def test_what_a_tokenizer_loses_of_texts_is_said(change, losses, message, prepared, tmp_path, capsys):
    folder = changed(prepared, tmp_path / "tokenizer", change)
    texts = (("en", "The old ship <|endoftext|> sails"), ("en", "The ship"), ("zh", "中文 青石镇"))
    documents = [{"id": str(i), "text": text, "lang": lang} for i, (lang, text) in enumerate(texts)]
    write_documents(tmp_path / "in.jsonl", documents)
    (tmp_path / "tokenize.yaml").write_text("held_out: 0\n")
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", folder, "--output", tmp_path / "out", "--workers", 1]
    assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml")]) == 0
    counted = load_json(tmp_path / "out" / "manifest.json")["results"]["losses"]
    assert counted.pop("decoded") == {"en": 1, "zh": 1}
    assert {name: found for name, found in counted.items() if found} == losses
    out = capsys.readouterr().out
    assert message in out if message else "unknown" not in out and "changed" not in out


def special_piece(content):
    unigram(content)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": 1, "content": "<|endoftext|>", "special": True, **flags}]


@pytest.mark.parametrize(("change", "piece"), [(special_piece, True), (unigram, True), (ordinary_end, False)])
def test_the_note_on_ends_in_texts_says_what_ends_them(change, piece, prepared, tmp_path):
    reference = ReferenceEncoder(changed(prepared, tmp_path, change))
    eod = reference.vocabulary["<|endoftext|>"]
    assert reference.is_piece(eod) == piece
    (note,) = notes({"fell_back": [], "losses": {"ends_in_text": {"en": 1}}, "eos_is_a_piece": piece}, 0)
    assert ("add_special_tokens" in note) == piece != ("mark the eos_token special" in note)
    if piece:  # what the note says
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.add_special_tokens({"eos_token": "<|document_end|>"})
    else:
        tokenizer = AutoTokenizer.from_pretrained(changed(prepared, tmp_path))
    tokenizer.save_pretrained(tmp_path / "new")
    mended, eod = ReferenceEncoder(tmp_path / "new"), tokenizer_facts(tmp_path / "new")["eod_id"]
    ids, _ = mended.encode([f"The ship {tokenizer.eos_token} sails"])
    assert eod not in ids
    assert not mended.is_piece(eod)


@pytest.mark.parametrize(("size", "decoded"), [(CHECKED_CHARACTERS, 1), (CHECKED_CHARACTERS + 1, 1), (300_000, 1)])
def test_a_document_is_compared_however_long_it_is(size, decoded, prepared, tmp_path):
    reference = ReferenceEncoder(changed(prepared, tmp_path, bytes_of_ascii_only))
    losses = Losses(reference, 0)
    for source, letter in (("zh", "中"), ("en", "a ")):
        text = (letter * size)[:size]
        losses.add([{"id": "1", "text": text}], [source], *reference.encode([text]))
    counts = losses.counts()
    assert counts["decoded"] == {"zh": decoded, "en": decoded}
    assert counts["changed"] == {"zh": 1}


def test_few_characters_of_a_batch_are_compared_and_short_documents_before_long_ones(prepared, monkeypatch):
    reference, seen = ReferenceEncoder(prepared.tokenizer), []
    monkeypatch.setattr(reference, "keeps", lambda text, ids: seen.append(text) or True)
    texts = ["x" * 50_000, "short", "y" * 50_000, "z" * 50_000]
    batch = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    Losses(reference, 0).add(batch, ["a", "a", "b", "c"], *reference.encode(texts))
    assert seen == ["short", "y" * (CHECKED_CHARACTERS - 5)]


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (bytes_of_ascii_only, ["Chinese characters", "kana", "Hangul", "Cyrillic letters", "Arabic letters", "Devanagari", "Thai"]),
        (lower_case, []),
        (bytes_for_the_rest, []),
        (word_level, []),  # has an unknown token, which is counted
    ],
)  # fmt: skip
def test_scripts_that_would_vanish_are_named_at_the_start(change, lost, prepared, tmp_path, capsys):
    folder = changed(prepared, tmp_path / "tokenizer", change)
    assert ReferenceEncoder(folder).lost_scripts() == lost
    words = ["--input", tmp_path / "nothing", "--tokenizer", folder, "--output", tmp_path / "out", "--workers", 1]
    assert main([str(w) for w in words]) == 2
    assert ("has no tokens for " + ", ".join(lost) in capsys.readouterr().out) == bool(lost)


def test_text_that_looks_like_a_special_token_stays_text(prepared):
    for made in (FastEncoder(prepared.tokenizer), ReferenceEncoder(prepared.tokenizer)):
        ids, _ = made.encode(["<|endoftext|> is only text here"])
        assert 0 not in ids


def test_a_tokenizer_that_the_fast_encoder_does_not_read_is_left_to_the_reference(prepared, tmp_path):
    content = load_json(prepared.tokenizer / "tokenizer.json")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"(?<=a)b|[^b]+"}  # Oniguruma's alone
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    made, why = load_encoder(tmp_path)
    assert (made.name, why is None) in {("tokenizers", False), ("fastokens", True)}
    assert same(tmp_path, TEXTS) if why is None else "fastokens" in why or "other ids" in why


class Wrong(FastEncoder):
    """Right in the self test, wrong for one kind of document."""

    def _encode(self, texts):
        ids, ends = super()._encode(texts)
        return (ids[::-1].copy(), ends) if any("wrong" in text for text in texts) else (ids, ends)


@pytest.mark.parametrize("number", range(len(SELF_TEST)))
def test_the_fast_encoder_is_refused_at_its_start_where_it_differs_on_a_text_of_the_self_test(
    number, prepared, monkeypatch
):
    encode = ReferenceEncoder.encode

    def other(self, texts):
        ids, ends = encode(self, texts)
        return (ids + 1, ends) if texts == [SELF_TEST[number]] else (ids, ends)

    monkeypatch.setattr(ReferenceEncoder, "encode", other)
    with pytest.raises(EncoderMismatch, match="other ids for a text that starts with"):
        FastEncoder(prepared.tokenizer)


@pytest.mark.parametrize("batch", [["a wrong one", "right"], ["right", "a wrong one"]])
def test_the_first_document_of_each_batch_is_checked(batch, prepared, monkeypatch):
    encoder, encode = FastEncoder(prepared.tokenizer), ReferenceEncoder.encode
    monkeypatch.setattr(
        ReferenceEncoder, "encode", lambda self, texts: encode(self, [text.replace("wrong", "right") for text in texts])
    )
    if batch[0] == "right":
        encoder.encode(batch)
    else:
        with pytest.raises(EncoderMismatch):
            encoder.encode(batch)


def test_a_part_that_fails_its_check_is_encoded_again_by_the_reference(prepared, tmp_path, monkeypatch, capsys):
    documents = [{"id": str(i), "text": f"right {i} " * 20} for i in range(300)]
    documents.insert(256, {"id": "w", "text": "wrong or right"})
    write_documents(tmp_path / "in.jsonl", documents)
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--workers", 1]
    assert main([str(w) for w in (*words, "--output", tmp_path / "right")]) == 0
    monkeypatch.setattr(encoder, "FastEncoder", Wrong)
    monkeypatch.setattr(tokenize_corpus, "load_encoder", load_encoder.__wrapped__)
    with pytest.raises(EncoderMismatch):
        Wrong(prepared.tokenizer).encode(["wrong"])
    assert main([str(w) for w in (*words, "--output", tmp_path / "fell-back")]) == 0
    assert "encoded by `tokenizers`, slower, since fastokens gave other ids" in capsys.readouterr().out
    one, other = (load_json(tmp_path / name / "manifest.json")["results"]["shards"] for name in ("right", "fell-back"))
    assert one == other


class LateAndLonger(FastEncoder):
    """Three times as many ids, which the check finds with the third batch."""

    def encode(self, texts):
        if any("wrong" in text for text in texts):
            raise EncoderMismatch("other ids")
        ids, ends = self._encode(texts)
        return np.repeat(ids, 3), ends * 3


def test_nothing_is_left_of_what_the_fast_encoder_wrote_of_a_part(prepared, tmp_path, monkeypatch):
    documents = [{"id": str(i), "text": f"right {i} " * 20, "lang": ("en", "zh")[i % 2]} for i in range(100)]
    documents += [{"id": "w", "text": "wrong", "lang": "en"}]
    write_documents(tmp_path / "in.jsonl", documents)
    monkeypatch.setattr(encoder, "FastEncoder", LateAndLonger)
    monkeypatch.setattr(tokenize_corpus, "load_encoder", load_encoder.__wrapped__)
    monkeypatch.setattr(encoder, "BATCH", 10)
    monkeypatch.setattr("data_prep.tokenization.shards.CHUNK_TOKENS", 2000)
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--workers", 1)]) == 0
    shards = load_json(tmp_path / "out" / "manifest.json")["results"]["shards"]
    assert sum(shard["documents"] for shard in shards) == len(documents)


class Refused:
    def __init__(self, folder):
        raise EncoderMismatch("fastokens is not used here")


def test_the_reference_alone_writes_the_same_shards_and_both_what_tokenizers_gives(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "FastEncoder", Refused)
    monkeypatch.setattr(tokenize_corpus, "load_encoder", load_encoder.__wrapped__)
    words = ["--input", prepared.deduped, "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    config = prepared.tokens.parent / "tokenize.yaml"
    assert main([str(w) for w in (*words, "--config", config, "--workers", 1)]) == 0
    by_reference, by_both = (load_json(f / "manifest.json")["results"] for f in (tmp_path / "out", prepared.tokens))
    assert by_reference["shards"] == by_both["shards"]
    assert set(by_reference["fell_back"]) == {"fastokens is not used here"}
    assert by_both["fell_back"] == []
    plain = Tokenizer.from_file(str(prepared.tokenizer / "tokenizer.json"))
    plain.encode_special_tokens = True
    texts = [document["text"] for document in documents_in(prepared.deduped)]
    right = sorted([*plain.encode(text, add_special_tokens=False).ids, 0] for text in texts)
    prefixes = [tmp_path / "out" / shard["prefix"] for shard in by_reference["shards"]]
    assert sorted(d.tolist() for prefix in prefixes for d in Shard(prefix).documents()) == right


def test_shards_do_not_depend_on_files_and_are_bounded_and_shuffled(prepared, tmp_path):
    documents = [{"id": f"d{i:04d}", "text": f"document number {i} of many"} for i in range(600)]
    for part in range(3):
        write_documents(tmp_path / "three" / f"{part}.jsonl.gz", documents[part::3])
    write_documents(tmp_path / "one.jsonl", documents[::-1])
    (tmp_path / "tokenize.yaml").write_text("held_out: 0\nmax_shard_tokens: 1000\n")
    shards = []
    for name in ("one.jsonl", "three"):
        words = ["--input", tmp_path / name, "--tokenizer", prepared.tokenizer, "--output", tmp_path / f"out-{name}"]
        assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
        shards.append(load_json(tmp_path / f"out-{name}" / "manifest.json")["results"]["shards"])
    assert shards[0] == shards[1]
    assert len(shards[0]) > 3
    assert max(s["tokens"] for s in shards[0]) < 1400
    first = [d.tolist() for d in Shard(tmp_path / "out-three" / shards[0][0]["prefix"]).documents()]
    assert first != sorted(first)
