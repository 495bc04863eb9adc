"""Shards of Megatron and GPT-NeoX: every document comes in with its tokens, and what is no shard of tokens is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep import import_shards, report
from data_prep.import_shards import main
from data_prep.tokenization import foreign_documents, foreign_shards
from recipe import train
from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.data.indexed import Shard
from recipe.data.loader import BatchOrder
from recipe.data.mixture import Stretch
from recipe.data.token_folder import TokenFolder
from tests.conftest import documents_in
from tests.data_prep.test_jobs import contents

Documents = Sequence[Sequence[Sequence[int]]]  # of sequences of tokens
# Of GPT-NeoX, megatron/data/indexed_dataset.py: the codes of its mmap indices, and those that forks have beside them.
CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float32": 6, "float64": 7, "uint16": 8, "uint32": 9, "uint64": 10}  # fmt: skip
SMALL: Documents = [[[5, 6, 7], [8]], [[9, 10]], [], [[11], [], [12, 13, 14]], [[]], [[15]]]
JOINED = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14], [15]]


def write_neox(prefix: Path, documents: Documents, dtype: str = "uint16") -> Path:
    """Bytes as MMapIndexedDatasetBuilder of GPT-NeoX lays them."""
    sequences = [np.array(sequence, dtype) for document in documents for sequence in document]
    lengths = np.array([sequence.size for sequence in sequences], "<i4")
    ends = np.cumsum([len(document) for document in documents])
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype]))
        index.write(struct.pack("<QQ", len(sequences), len(documents) + 1))
        index.write(lengths.tobytes())
        index.write((np.cumsum([0, *lengths])[: len(sequences)] * np.dtype(dtype).itemsize).astype("<i8").tobytes())
        index.write(np.array([0, *ends], "<i8").tobytes())
    return prefix


def write_megatron(prefix: Path, documents: Documents, dtype: str = "uint16", **options: Any) -> Path:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", getattr(np, dtype), **options)
    for document in documents:
        tokens = [token for sequence in document for token in sequence]
        modes = {"modes": [0] * len(document)} if options else {}
        builder.add_document(np.array(tokens), [len(sequence) for sequence in document], **modes)
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture
def bring_in(prepared, tmp_path):
    """Runs the job on shards, and gives its exit code and its output folder."""

    def run(*shards: Path, output: str = "out", tokenizer: Path | None = None, more: Sequence[object] = (), **config):
        path = tmp_path / f"{output}.yaml"
        path.write_text(json.dumps({"check_tokenizer": False, **config}))  # few ids here are those of a text
        words = [*(word for shard in shards for word in ("--input", shard)), "--output", tmp_path / output]
        words += ["--tokenizer", tokenizer or prepared.tokenizer, "--config", path, "--workers", 1, *more]
        return main([str(word) for word in words]), tmp_path / output

    return run


def read_back(output: Path, split: str = "train") -> dict[str, list[list[int]]]:
    """The documents of each source, sorted."""
    sources = TokenFolder(output).sources(split)
    return {s.name: sorted(d.tolist() for shard in s.shards for d in shard.documents()) for s in sources}


def all_documents(output: Path) -> list[list[int]]:
    return sorted(
        d for split in ("train", "held_out") for documents in read_back(output, split).values() for d in documents
    )


def results_of(output: Path) -> dict[str, Any]:
    return load_json(output / "manifest.json")["results"]


@pytest.fixture(scope="module")
def encoded(prepared) -> dict[str, list[int]]:
    """Tokens of each of the corpus' documents."""
    hf = AutoTokenizer.from_pretrained(prepared.tokenizer)
    texts = sorted({d["text"] for d in documents_in(prepared.deduped)})
    return {text: hf.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts}


@pytest.fixture(scope="module")
def of_megatron(tmp_path_factory):
    """The folder of shards that Megatron's own writer has made; importing it costs ten seconds."""
    folder = tmp_path_factory.mktemp("megatron")
    for dtype in ("uint16", "int32", "int64"):
        (folder / dtype).mkdir()
        write_megatron(folder / dtype / "text_sentence", SMALL, dtype)
    write_megatron(folder / "images", SMALL, multimodal=True)
    return folder


@pytest.mark.xdist_group("of_megatron")
@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_documents_of_several_sequences_come_from_megatrons_own_writer(dtype, bring_in, of_megatron):
    code, output = bring_in(of_megatron / dtype / "text_sentence", held_out=0)
    assert code == 0
    eod = TokenFolder(output).tokenizer["eod_id"]
    assert read_back(output) == {"text_sentence": sorted([*d, eod] for d in JOINED)}
    manifest = load_json(output / "manifest.json")
    assert (manifest["counts"]["in"], manifest["counts"]["out"], manifest["counts"]["dropped"]) == (6, 4, {"empty": 2})
    assert (manifest["results"]["sequences"], manifest["results"]["empty_sequences"]) == (8, 2)
    shard = Shard(output / manifest["results"]["shards"][0]["prefix"])
    assert shard.dtype == np.dtype("<u2")  # as tokenize_corpus.py has it for this vocabulary
    assert manifest["results"]["licenses"] == {"text_sentence": {"not stated": 15}}


@pytest.mark.parametrize("dtype", [name for name in CODES if "float" not in name])
def test_every_dtype_of_ids_is_read(dtype, bring_in, tmp_path):
    code, output = bring_in(write_neox(tmp_path / "neox", SMALL, dtype), held_out=0)
    assert code == 0
    assert [document[:-1] for document in all_documents(output)] == JOINED
    assert results_of(output)["dtypes"] == {dtype: 1}


@pytest.mark.xdist_group("of_megatron")
def test_a_multimodal_dataset_is_refused_as_such(bring_in, of_megatron, capsys):
    code, output = bring_in(of_megatron / "images")
    assert (code, output.exists()) == (2, False)
    assert "images.idx is of a multimodal dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("with_end", "note"),
    [
        ((), "none of 4 documents of a ended in the eos_token of the tokenizer; 4 got it"),
        ((0, 2), "2 of 4 documents of a ended in the eos_token of the tokenizer; 2 got it"),
        ((0, 1, 2, 3), None),
    ],
)
def test_documents_get_the_end_that_they_lack(with_end, note, bring_in, prepared, tmp_path, capsys):
    eod = load_json(prepared.tokens / "manifest.json")["results"]["tokenizer"]["eod_id"]
    documents = [[document, [eod]] if i in with_end else [document] for i, document in enumerate(JOINED)]
    code, output = bring_in(write_neox(tmp_path / "a", [*documents, [[eod]]]), held_out=0)
    assert code == 0
    assert all_documents(output) == sorted([*document, eod] for document in JOINED)
    counts = results_of(output)["documents"]["a"]
    assert (counts["ended"], counts["appended"]) == (len(with_end), 4 - len(with_end))
    assert load_json(output / "manifest.json")["counts"]["dropped"] == {"empty": 1}
    out = capsys.readouterr().out
    assert note in out if note else "eos_token" not in out


def test_another_end_and_ends_inside_of_documents_are_told(bring_in, prepared, tmp_path, capsys):
    facts = load_json(prepared.tokens / "manifest.json")["results"]["tokenizer"]
    eod, other = facts["eod_id"], facts["pad_id"]
    code, output = bring_in(write_neox(tmp_path / "a", [[[5, eod, 6, eod, 7, other]], [[9, other]]]), held_out=0)
    assert code == 0
    assert all_documents(output) == [[5, eod, 6, eod, 7, other, eod], [9, other, eod]]
    out = capsys.readouterr().out
    assert f"2 documents of a end in '<|pad|>' ({other}), which is not the eos_token" in out
    assert "2 end-of-document tokens of a come from inside its documents" in out


def test_held_out_documents_have_the_bytes_of_their_text_and_no_note_of_another_tokenizer(
    bring_in, encoded, prepared, tmp_path, capsys
):
    write_neox(tmp_path / "web", [[ids] for ids in encoded.values()], "int32")
    code, output = bring_in(tmp_path / "web", held_out=0.1, check_tokenizer=True)
    assert code == 0
    texts = {tuple(ids): text for text, ids in encoded.items()}
    held = read_back(output, "held_out")["web"]
    assert 5 < len(held) < len(encoded) / 2
    (source,) = TokenFolder(output).sources("held_out")
    assert source.text_bytes == sum(len(texts[tuple(ids[:-1])].encode()) for ids in held)
    assert all_documents(output) == sorted([*ids, 0] for ids in encoded.values())
    counts = results_of(output)["documents"]["web"]
    assert (counts["compared"], counts["changed"]) == (32, 0)
    assert "make sure" not in capsys.readouterr().out


def of_another_tokenizer(sequences: int = 40) -> list[list[list[int]]]:
    return [[ids] for ids in np.random.default_rng(0).integers(10, 1000, (sequences, 3000)).tolist()]


def test_shards_of_another_tokenizer_are_refused_before_anything_is_written(bring_in, encoded, tmp_path, capsys):
    texts = list(encoded.values())
    write_neox(tmp_path / "in" / "a", [[ids] for ids in texts])
    write_neox(tmp_path / "in" / "b", of_another_tokenizer())
    code, output = bring_in(sources={"web": [str(tmp_path / "in")]}, held_out=0, check_tokenizer=True)
    error = capsys.readouterr().err
    assert (code, output.exists(), error.count("\n")) == (2, False, 1)
    assert f"32 of the first 32 sequences from byte 0 of {tmp_path}/in/b.bin give other tokens" in error
    few = [[ids[::-1]] for ids in texts[:15]] + [[ids] for ids in texts[15:40]]
    write_neox(tmp_path / "in" / "b", few)
    code, output = bring_in(sources={"web": [str(tmp_path / "in")]}, held_out=0, check_tokenizer=True)
    assert (code, output.exists()) == (0, True)
    assert 0 < results_of(output)["documents"]["web"]["changed"] <= 15


def test_a_later_piece_of_another_tokenizer_is_refused(bring_in, encoded, tmp_path, monkeypatch, capsys):
    documents = [[ids] for ids in [*encoded.values()][:40]]
    monkeypatch.setattr(foreign_shards, "PIECE_BYTES", 2 * sum(len(ids) for (ids,) in documents))
    write_neox(tmp_path / "merged", [*documents, *of_another_tokenizer()])
    code, output = bring_in(tmp_path / "merged", held_out=0, check_tokenizer=True)
    assert (code, (output / "manifest.json").exists()) == (2, False)
    assert "32 of the first 32 sequences from byte " in capsys.readouterr().err


def test_ids_of_no_text_come_in_where_the_config_says_so(bring_in, tmp_path, capsys):
    shard = write_neox(tmp_path / "a", of_another_tokenizer())
    assert bring_in(shard, held_out=0, check_tokenizer=False)[0] == 0
    assert "32 of 32 sequences of a that were decoded by" in capsys.readouterr().out


def test_the_result_depends_on_the_documents_alone(bring_in, encoded, tmp_path, monkeypatch):
    """Not on how the shards are cut, what their dtype is, nor on the pieces that are read together."""
    documents = [[ids[: len(ids) // 2], ids[len(ids) // 2 :]] for ids in encoded.values()]
    write_neox(tmp_path / "one" / "web", documents, "int64")
    code, one = bring_in(sources={"web": [str(tmp_path / "one")]}, output="whole", held_out=0.1, max_shard_tokens=9000)
    assert code == 0
    assert len(results_of(one)["shards"]) > 3
    for number in range(3):
        write_neox(tmp_path / "three" / f"{number}", documents[number::3])
    for name, value in (("PIECE_BYTES", 30_000), ("BLOCK_TOKENS", 300), ("BLOCK_DOCUMENTS", 4), ("BLOCK_SEQUENCES", 7)):
        monkeypatch.setattr(foreign_shards, name, value)
    code, three = bring_in(
        sources={"web": [str(tmp_path / "three")]}, output="cut", held_out=0.1, max_shard_tokens=9000
    )
    assert code == 0
    assert len(list((three / "tasks" / "documents").iterdir())) > 5
    assert contents(one / "shards") == contents(three / "shards")


def test_pieces_are_whole_documents_and_all_of_them(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    documents = [[[number] * int(n)] if n else [] for number, n in enumerate(rng.integers(0, 40, 300))]
    shard = foreign_shards.open_shard(str(write_neox(tmp_path / "a", documents)))
    shard.check()
    for piece_bytes, block_documents, block_tokens in ((1, 7, 1), (64, 300, 90), (2**20, 16, 2**20)):
        monkeypatch.setattr(foreign_shards, "PIECE_BYTES", piece_bytes)
        monkeypatch.setattr(foreign_shards, "BLOCK_DOCUMENTS", block_documents)
        monkeypatch.setattr(foreign_shards, "BLOCK_TOKENS", block_tokens)
        read = []
        for piece in shard.pieces():
            for block in shard.blocks(piece, longest=10**9):
                assert block.first == len(read)
                spans = zip(block.offsets, block.offsets[1:], strict=False)
                read += [block.tokens[start:end].tolist() for start, end in spans]
        expected = [[token for sequence in document for token in sequence] for document in documents]
        assert read == expected[: len(read)]
        assert not any(expected[len(read) :])  # empty ones at the end


def test_a_run_accepts_the_folder_and_reads_it(bring_in, encoded, new_run, write_ds, tmp_path):
    texts = list(encoded.values())
    write_neox(tmp_path / "in" / "a", [[ids] for ids in texts[::2]], "int32")
    write_neox(tmp_path / "in" / "b", [[ids] for ids in texts[1::2]])
    code, output = bring_in(tmp_path / "in", held_out=0.1)
    assert code == 0
    ds_path = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    words = new_run("dry", evaluation={"every_steps": 5}).arguments(
        ds_path, "--dry-run", "--set", f"data.tokens={output}"
    )
    assert train.main([str(word) for word in words]) == 0
    sources = TokenFolder(output).sources("train")
    order = BatchOrder(sources, [Stretch(0, {"a": 1.0, "b": 1.0})], seq_length=32, seed=0)
    stream = {s.name: np.concatenate([shard.read(0, shard.num_tokens) for shard in s.shards]) for s in sources}
    for index in range(20):
        rows = np.lib.stride_tricks.sliding_window_view(stream[order.locate(index)[0]], 33)
        assert (rows == order.sequence(index)).all(1).any()


def test_what_tokenize_corpus_writes_comes_back(bring_in, prepared):
    shards = [prepared.tokens / s["prefix"] for s in load_json(prepared.tokens / "manifest.json")["results"]["shards"]]
    sources = {shard.parent.name + "-" + shard.parent.parent.name: [str(shard)] for shard in shards}
    code, output = bring_in(sources=sources, held_out=0, check_tokenizer=True)
    assert code == 0
    original = {
        s.parent.name + "-" + s.parent.parent.name: sorted(d.tolist() for d in Shard(s).documents()) for s in shards
    }
    assert read_back(output) == original
    assert all((n["appended"], n["changed"]) == (0, 0) for n in results_of(output)["documents"].values())


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def patch(path: Path, at: int, code: str, value: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, at, value)
    path.write_bytes(bytes(content))


LENGTHS, POINTERS, BOUNDARIES = 34, 34 + 4 * 8, 34 + 12 * 8  # of SMALL's index


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: cut(p / "a.bin", 2), "a.bin has 20 bytes, not the 22 that its .idx lists"),
        (lambda p: (p / "a.bin").write_bytes(bytes(24)), "a.bin has 24 bytes, not the 22 that its .idx lists"),
        (lambda p: (p / "a.bin").unlink(), "a.bin cannot be read (No such file or directory); a shard is a .bin and"),
        (lambda p: (p / "a.idx").unlink(), "a.idx cannot be read (No such file or directory); a shard is a .bin and"),
        (lambda p: cut(p / "a.idx", 1), "a.idx has 185 bytes, not the 186 that its header implies"),
        (lambda p: cut(p / "a.idx", 160), "a.idx is cut in its header"),
        (lambda p: patch(p / "a.idx", 9, "<Q", 2), "a.idx has version 2 of the format"),
        (lambda p: patch(p / "a.idx", 0, "<B", 65), "a.idx is no index of Megatron or GPT-NeoX"),
        (lambda p: (p / "a.idx").write_bytes(b"TNTIDX\x00\x00" + bytes(80)), "(TNTIDX), which lack what is needed here"),
        (lambda p: patch(p / "a.idx", 17, "<B", 6), "has numbers with fractions (dtype code 6), not token ids"),
        (lambda p: patch(p / "a.idx", 17, "<B", 7), "has numbers with fractions (dtype code 7), not token ids"),
        (lambda p: patch(p / "a.idx", 17, "<B", 77), "unknown dtype code 77"),
        (lambda p: patch(p / "a.idx", 17, "<B", 4), "sequence 1 begin at byte 6, not at 12"),
        (lambda p: patch(p / "a.idx", 18, "<Q", 2**60), "that its header implies"),
        (lambda p: patch(p / "a.idx", LENGTHS + 4, "<i", -5), "gives sequence 1 -5 tokens"),
        (lambda p: patch(p / "a.idx", POINTERS + 8, "<q", 8), "sequence 1 begin at byte 8, not at 6"),
        (lambda p: patch(p / "a.idx", POINTERS + 48, "<q", 2**40), "sequence 6 begin at byte 1,099,511,627,776"),
        (lambda p: patch(p / "a.idx", POINTERS + 16, "<q", -2), "sequence 2 begin at byte -2, not at 8"),
        (lambda p: patch(p / "a.idx", BOUNDARIES, "<q", 1), "its first document begin at sequence 1"),
        (lambda p: patch(p / "a.idx", BOUNDARIES + 8, "<q", 2**63 - 1), "documents that end before they begin"),
        (lambda p: patch(p / "a.idx", BOUNDARIES + 48, "<q", 7), "have 7 of its 8 sequences, as after merges by old"),
        (lambda p: patch(p / "a.idx", BOUNDARIES + 48, "<q", 900), "have 900 of its 8 sequences"),
    ],
)  # fmt: skip
def test_a_damaged_shard_ends_in_one_sentence(damage, message, bring_in, tmp_path, capsys):
    write_neox(tmp_path / "in" / "a", SMALL)
    damage(tmp_path / "in")
    code, output = bring_in(tmp_path / "in" / "a")
    error = capsys.readouterr().err
    (sentence,) = (line for line in error.splitlines() if not line.startswith("import_shards: reads "))
    assert (code, sentence.startswith("error: ")) == (2, True)
    assert message in sentence
    assert not (output / "manifest.json").exists()


@pytest.mark.parametrize("last", [0, 2, 200])
def test_a_bin_of_another_size_leaves_nothing_and_comes_in_once_it_is_mended(last, bring_in, tmp_path, capsys):
    shard = write_neox(tmp_path / "a", [*SMALL, [[7] * last]])
    whole = (tmp_path / "a.bin").read_bytes()
    for content in (whole[:-2], b"", whole + b"xx"):
        (tmp_path / "a.bin").write_bytes(content)
        code, output = bring_in(shard, held_out=0)
        assert (code, output.exists()) == (2, False)
        assert (
            f"a.bin has {len(content):,} bytes, not the {len(whole):,} that its .idx lists" in capsys.readouterr().err
        )
    (tmp_path / "a.bin").write_bytes(whole)
    assert bring_in(shard, held_out=0)[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neox_codes_of_fractions_are_refused(dtype, bring_in, tmp_path, capsys):
    assert bring_in(write_neox(tmp_path / "a", SMALL, dtype))[0] == 2
    assert "not token ids" in capsys.readouterr().err


@pytest.mark.parametrize(("token", "dtype"), [(1024, "uint16"), (-1, "int32"), (2**40, "int64"), (2**64 - 1, "uint64")])
def test_an_id_that_the_tokenizer_does_not_have_is_refused_with_its_document(token, dtype, bring_in, tmp_path, capsys):
    documents = [[[1, 1023]], [], [[5, 6], [7, token]], [[token]]]
    assert bring_in(write_neox(tmp_path / "a", documents, dtype))[0] == 2
    error = capsys.readouterr().err
    assert f"document 2 of {tmp_path}/a.bin (the first is 0) has the token id {token}" in error
    assert "end at 1,023" in error


def test_a_document_that_takes_too_much_memory_is_set_aside(bring_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(foreign_documents, "LONGEST_TOKENS", 3)
    monkeypatch.setattr(foreign_shards, "BLOCK_TOKENS", 3)
    code, output = bring_in(write_neox(tmp_path / "a", SMALL), held_out=0)
    assert code == 0
    assert [document[:-1] for document in all_documents(output)] == [[9, 10], [15]]
    counts = load_json(output / "manifest.json")["counts"]
    assert (counts["in"], counts["out"], counts["bad_records"], counts["dropped"]) == (6, 2, 2, {"empty": 2})
    aside = load_json(output / "bad_records" / "00000.json")
    assert [(bad["record"], bad["reason"]) for bad in aside] == [
        (1, "longer than 3 tokens"),
        (4, "longer than 3 tokens"),
    ]
    assert bring_in(tmp_path / "a", output="strict", more=("--max-bad", 1))[0] == 2
    assert "more than --max-bad 1" in capsys.readouterr().err


def test_a_job_that_ended_early_goes_on_to_the_same_bytes(bring_in, encoded, tmp_path, monkeypatch):
    write_neox(tmp_path / "a", [[ids] for ids in encoded.values()])
    monkeypatch.setattr(foreign_shards, "PIECE_BYTES", 100_000)
    code, reference = bring_in(tmp_path / "a", output="reference", held_out=0.1)
    assert code == 0
    calls = {"import_piece": import_shards.import_piece, "write_shard": import_shards.write_shard}
    for name, function in calls.items():  # the first task of each ends, and then the job does

        def ends(task: Any, number: int, function=function, **bound: Any) -> dict[str, Any]:
            if number == 1:
                raise UserError("cut off")
            return function(task, number, **bound)

        with monkeypatch.context() as once:
            once.setattr(import_shards, name, ends)
            assert bring_in(tmp_path / "a", held_out=0.1)[0] == 2
    code, output = bring_in(tmp_path / "a", held_out=0.1)
    assert code == 0
    assert contents(output) == contents(reference)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_shard_that_changed_since_it_was_read_is_named(suffix, bring_in, tmp_path, capsys):
    write_neox(tmp_path / "a", [[document] for document in JOINED])
    assert bring_in(tmp_path / "a", held_out=0)[0] == 0
    write_neox(tmp_path / "b", [[document] for document in reversed(JOINED)])
    shutil.copy(tmp_path / f"b{suffix}", tmp_path / f"a{suffix}")
    assert bring_in(tmp_path / "a", held_out=0)[0] == 2
    assert f"a{suffix} changed since this stage read it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name the shards once"),
        ({"inputs": ["x/a"], "sources": {"a": ["x/a"]}}, "name the shards once"),
        ({"inputs": ["x/missing"]}, "x/missing names no shard"),
        ({"inputs": ["empty"]}, "empty names no shard"),
        ({"inputs": ["link"]}, "link.idx is a link to gone, which does not exist"),
        ({"inputs": ["done"]}, "done is the output of a data job already"),
        ({"inputs": ["x/a", "y/a"]}, "would both be the source 'a'; name them by sources"),
        ({"inputs": ["x/a", "x/a.idx"]}, "x/a is named twice; keep one"),
        ({"inputs": ["x", "x/a"]}, "x/a is named twice; keep one"),
        ({"sources": {"web": []}}, "sources.web names no shard; give paths or remove it"),
        ({"sources": {"a": ["x/a"], "web": []}}, "sources.web names no shard; give paths or remove it"),
        ({"sources": {"web": ["x/a", ""]}}, "sources.web names no shard in one of its lines"),
        ({"sources": {"a": ["x/a"], "b": ["x"]}}, "x/a is named twice"),
        ({"sources": {"my web": ["x/a"]}}, "sources.my web: the name becomes a folder's; write it as 'my_web'"),
        ({"inputs": ["x"], "output": "x/out"}, "which would read what it wrote"),
        ({"sources": {"a": ["x"]}, "output": "x/out"}, "which would read what it wrote"),
        ({"inputs": ["nothing"]}, "the input holds no documents"),
    ],
)
def test_shards_are_named_once_and_are_there(given, message, bring_in, prepared, tmp_path, capsys, monkeypatch):
    for folder in ("x", "y"):
        write_neox(tmp_path / folder / "a", SMALL)
    write_neox(tmp_path / "nothing", [[], [[]]])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.idx").symlink_to("gone")
    (tmp_path / "done").symlink_to(prepared.tokens)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "out.yaml").touch()
    config = {"sources": given["sources"]} if "sources" in given else {}
    code, output = bring_in(*map(Path, given.get("inputs", ())), output=given.get("output", "out"), **config)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (output / "manifest.json").exists()


def test_a_folder_names_its_shards_as_sources(bring_in, tmp_path):
    write_neox(tmp_path / "elsewhere" / "wiki_text_document", SMALL)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "deep").symlink_to(tmp_path / "elsewhere")
    write_neox(tmp_path / "in" / "c4.en_text_document", SMALL)
    code, output = bring_in(tmp_path / "in", held_out=0)
    assert code == 0
    assert list(read_back(output)) == ["c4.en_text_document", "deep_wiki_text_document"]


def test_the_report_says_that_bytes_of_training_text_are_not_counted(bring_in, encoded, tmp_path):
    write_neox(tmp_path / "web", [[ids] for ids in encoded.values()])
    output = bring_in(tmp_path / "web", held_out=0.1)[1]
    assert report.main([str(output), "--output", str(tmp_path / "data.html")]) == 0
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert page.count("not counted") == 1
