"""Held-out loss of an exported model; that of a run is test_export.py's and test_monitoring.py's."""

from __future__ import annotations

import json
import math
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from recipe import evaluate_model
from recipe.base.errors import UserError
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import load_run_config
from recipe.checkpoints import restore
from recipe.data.token_folder import Source, TokenFolder, tokenizer_identity
from recipe.evaluation import held_out_command
from recipe.evaluation.downstream import command as downstream_command
from recipe.evaluation.held_out import evaluate_source, stock_loss
from tests.conftest import ROOT
from tests.conftest import ds_config as ds_config_of
from tests.recipe.model.test_loss import Seen

B, S, V, CHUNK = 3, 12, 2048, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Glm4MoeForCausalLM:
    config = Glm4MoeConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return Glm4MoeForCausalLM(config).eval()


def test_an_exported_models_loss_is_that_of_its_logits_which_never_exist_whole(model):
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, V, (B, S), generator=generator) for _ in range(2))
    targets[1, 4:] = -100
    positions = torch.arange(S).expand(B, S)
    with torch.no_grad():
        plain = F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss_of = stock_loss(model, CPU, CHUNK)
        with Seen() as seen:
            loss = loss_of({"input_ids": tokens, "position_ids": positions}, targets)
    torch.testing.assert_close(loss, plain)
    assert max(size for _, size in seen.operations) < B * S * V


class OneShard:
    """Of so many tokens, as `recipe.data.indexed.Shard`."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def read(self, start: int, end: int) -> np.ndarray:
        return np.zeros(min(end, self.num_tokens) - start, dtype=np.int64)


@pytest.mark.parametrize(
    ("tokens", "text_bytes", "nats", "expected"),
    [
        (9, 4, 2.0, {"tokens": 8, "loss": 1.0, "perplexity": math.e, "bits_per_byte": 8 / math.log(2) / 4}),
        (9, 4, 1e4, {"tokens": 8, "loss": 5e3, "perplexity": math.inf, "bits_per_byte": 4e4 / math.log(2) / 4}),
        (9, 0, 2.0, {"tokens": 8, "loss": 1.0, "perplexity": math.e, "bits_per_byte": math.inf}),
        (9, 4, math.nan, {"tokens": 8, "loss": math.nan, "perplexity": math.nan, "bits_per_byte": math.nan}),
        (1, 0, 2.0, {"tokens": 0, "loss": math.nan, "perplexity": math.nan, "bits_per_byte": math.nan}),
    ],
)
def test_held_out_results_that_are_too_large_or_undefined_end_nothing(tokens, text_bytes, nats, expected):
    source = Source("a", (OneShard(tokens),), tokens, text_bytes)  # type: ignore[arg-type]
    found = evaluate_source(
        lambda inputs, targets: torch.tensor(nats * (2 if math.isfinite(nats) else 1)),
        source,
        seq_length=2,
        batch_size=2,
        device=CPU,
    )
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_model_that_does_more_to_its_logits_is_refused(model, monkeypatch):
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: 3 * forward(hidden).tanh())
    with pytest.raises(UserError, match="Glm4MoeForCausalLM changes its logits after"):
        stock_loss(model, CPU, CHUNK)


BEYOND = "1,024 tokens but the model's vocab_size is 1,000, which its largest id, 1,023, must be below"


def test_a_model_too_small_for_its_tokenizer_is_refused_before_it_is_loaded(prepared, tmp_path, capsys):
    shutil.copytree(prepared.tokenizer, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "glm4_moe", "vocab_size": 1000}))
    words = ["held-out", "--model", str(tmp_path / "model"), "--tokens", str(prepared.tokens)]
    assert evaluate_model.main(words) == 2
    assert BEYOND in capsys.readouterr().err
    with pytest.raises(UserError, match=BEYOND):
        downstream_command.evaluate_export(Namespace(model=tmp_path / "model"), {})


def test_an_evaluation_says_what_it_evaluates_and_where_the_results_are(model, prepared, tmp_path, capsys):
    folder, output = tmp_path / "model", tmp_path / "held_out.json"
    model.save_pretrained(folder)
    shutil.copytree(prepared.tokenizer, folder, dirs_exist_ok=True)
    words = ["held-out", "--model", str(folder), "--tokens", str(prepared.tokens), "--seq-length", "64"]
    capsys.readouterr()
    assert evaluate_model.main([*words, "--output", str(output)]) == 0
    first, head, *rows, last = capsys.readouterr().out.splitlines()
    sizes = TokenFolder(prepared.tokens).sizes("held_out")
    counts = ", ".join(f"{sizes[name]:,} of {name}" for name in ("en", "zh"))
    assert first == f"evaluates {folder} on the held-out tokens of {prepared.tokens}: {counts}; in windows of 64 tokens"
    assert head.startswith("source")
    results = json.loads(output.read_text())["sources"]
    assert [row.split()[:2] for row in rows] == [[name, f"{result['tokens']:,}"] for name, result in results.items()]
    assert last == f"written to {output}"


def test_progress_is_over_the_batches_of_all_ranks(monkeypatch):
    source = Source("a", (OneShard(9), OneShard(4)), 13, 1)  # type: ignore[arg-type]
    seen: list[int] = []
    evaluate_source(
        lambda inputs, targets: torch.tensor(float(seen.append(1) or 0)), source, seq_length=2, batch_size=2, device=CPU
    )
    assert held_out_command.progress_over([source], 2, 2, 1)._total == len(seen)


@pytest.mark.parametrize("words", [[], ["--run", "runs/a"], ["--local_rank=0", "--run", "downstream"], ["heldout"]])
def test_what_to_evaluate_must_be_said(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        evaluate_model.main(words)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "`recipe/evaluate_model.py held-out ...`" in message
    assert "`recipe/evaluate_model.py downstream ...`" in message


@pytest.mark.parametrize("of_launcher", [[], ["--local_rank=1"], ["--local_rank", "1"]])
@pytest.mark.parametrize("command", ["held-out", "downstream"])
def test_the_launchers_argument_may_come_before_the_command(command, of_launcher, tmp_path):
    args = evaluate_model.parse([*of_launcher, command, "--run", str(tmp_path), "--batch-size", "3"])
    assert (args.command, args.run, args.batch_size) == (command, tmp_path, 3)


def test_a_run_of_a_model_too_small_for_its_tokenizer_is_refused_before_its_engine_is_built(
    prepared, tmp_path, monkeypatch
):
    """Evaluation, downstream tasks and export all begin with a RestorableRun."""
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny").model_copy(update={"vocab_size": 1000})
    identity = {"model": shape.model_dump(mode="json"), "tokenizer": tokenizer_identity(prepared.tokenizer)}
    given = [f"tokenizer={prepared.tokenizer}", f"run_dir={tmp_path}"]
    settings = load_run_config(ROOT / "recipe/configs/runs/quickstart.yaml", given).model_dump(mode="json")
    ds_config = ds_config_of(1, micro_batch=1, accumulation=1, autoep_size=1)
    manifest = {"identity": identity, "ds_config": ds_config, "train_state": {}, "run_config": settings}
    monkeypatch.setattr(restore, "last_start", lambda folder: manifest)
    monkeypatch.setattr(restore, "find", lambda folder, name: tmp_path)
    monkeypatch.setattr(restore, "read_manifest", lambda path: manifest)
    with pytest.raises(UserError, match=BEYOND):
        restore.RestorableRun(tmp_path, None)
