"""From a trained run to a folder that stock transformers serves: same logits, same held-out loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open

from recipe.base.strict import load_json
from recipe.data.token_folder import TokenFolder
from recipe.evaluation.held_out import evaluate_source
from recipe.huggingface.import_weights import SafetensorsFolder
from recipe.run.records import read_metrics
from tests.conftest import ROOT, ds_config, launch, run_python, schedule_of, write_run

pytestmark = pytest.mark.distributed
TINY = ROOT / "recipe" / "configs" / "models" / "tiny"

# Stock transformers in a process where our packages cannot be imported.
STOCK = """
import sys
sys.modules.update(dict.fromkeys(("recipe", "data_prep", "deepspeed")))  # as if they were not installed
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    tokens, _ = torch.load(folder + ".pt")
    with torch.no_grad():
        torch.save((type(model).__name__, model.dtype, model(tokens).logits), folder + ".stock.pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The old ship", return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
    assert text.startswith("The old ship") and len(text) > len("The old ship"), (folder, text)
assert sys.modules["recipe"] is None
"""


QWEN3_MOE = {"scoring_func": "softmax", "n_shared_experts": 0}
# ranks, sizes of the ds_config, changes of the tiny model, and what it is exported as
CASES = {
    "4-ep2": (4, {"micro_batch": 2, "accumulation": 1, "autoep_size": 2}, {}, "Glm4MoeForCausalLM"),
    "2-ep2-zero1-softmax": (
        2, {"micro_batch": 4, "accumulation": 1, "autoep_size": 2, "stage": 1}, QWEN3_MOE, "Qwen3MoeForCausalLM",
    ),
    "2-ep1-bf16-no-shared": (
        2, {"micro_batch": 4, "accumulation": 1, "autoep_size": 1, "bf16": {"enabled": True}}, {"n_shared_experts": 0},
        "Glm4MoeForCausalLM",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def exports(prepared, tmp_path_factory):
    """The folder of each case's export, which stock transformers has read."""
    folders = {name: tmp_path_factory.mktemp(name) / "export" for name in CASES}
    for name, (ranks, sizes, changes, _) in CASES.items():
        folder = folders[name].parent
        model = str(write_model(folder, changes))
        once = {
            "schedule": {**schedule_of(2), "warmup_tokens": 256},
            "checkpoint": {"every_steps": 2},
            "routing": {"bias_update_rate": 0},
        }
        run = write_run(folder, "trained", prepared, model=model, **once)
        (folder / "ds.json").write_text(json.dumps(ds_config(ranks, **sizes)))
        for words in (
            ("recipe/train.py", *run.arguments(folder / "ds.json")),
            ("tests/recipe/checkpoints/export_worker.py", run.run_dir, folders[name]),
        ):
            done = launch(ranks, *words)
            assert done.returncode == 0, (name, done.stderr[-3000:])
    done = run_python("-c", STOCK, *folders.values())
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.xdist_group("exports")
@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_gives_the_engines_logits(case, exports):
    folder, (_, sizes, _, architecture) = exports[case], CASES[case]
    _, engine_logits = torch.load(folder.with_suffix(".pt"))
    name, dtype, stock_logits = torch.load(folder.with_suffix(".stock.pt"))
    bf16 = "bf16" in sizes
    assert name == architecture
    assert dtype == (torch.bfloat16 if bf16 else torch.float32)
    tolerance = {"rtol": 0.05, "atol": 0.05} if bf16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(stock_logits, engine_logits, **tolerance)

    exported, experts = SafetensorsFolder(folder), torch.load(folder.with_suffix(".experts.pt"))
    assert len(experts) == 3 * 8 * 3  # MoE layers, experts, matrices
    assert {n for n in exported.names if ".experts." in n} == set(experts)
    for tensor, values in experts.items():
        assert torch.equal(exported(tensor), values), tensor
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    if architecture == "Glm4MoeForCausalLM":
        assert torch.equal(exported(bias), torch.linspace(-0.1, 0.1, 8))
    else:
        assert bias not in exported.names
    check_configs(folder, bf16)


def write_model(folder, changes):
    """The tiny model with other values."""
    values = {**load_json(TINY / "config.json"), **changes}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(values))
    return folder / "model"


def check_configs(folder, bf16):
    """What transformers before 5 and other programs read, beside what transformers 5 does."""
    config, eos = load_json(folder / "config.json"), load_json(folder / "generation_config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["torch_dtype"] == config["dtype"] == ("bfloat16" if bf16 else "float32")
    assert config["max_position_embeddings"] == load_json(folder / "tokenizer_config.json")["model_max_length"] == 32
    assert eos == {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    assert {path.name for path in folder.iterdir()} == {
        *(f"model-{number:05d}-of-00007.safetensors" for number in range(1, 8)),
        *("model.safetensors.index.json", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


@pytest.mark.slow
@pytest.mark.xdist_group("exported")
def test_the_run_and_its_export_have_the_same_held_out_loss(trained, exported, prepared, tmp_path):
    of_run = load_json(trained.run_dir / "evaluation.json")
    assert of_run["step"] == 20
    words = ["--model", exported, "--tokens", prepared.tokens, "--seq-length", 32, "--batch-size", 5]
    words.append("--document-attention")
    done = run_python("recipe/evaluate_model.py", "held-out", *words, "--output", tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr[-3000:]
    of_export = load_json(tmp_path / "eval.json")
    assert set(of_run["sources"]) == set(of_export["sources"]) == {"en", "zh"}
    for source, expected in of_run["sources"].items():
        found = of_export["sources"][source]
        assert found["tokens"] == expected["tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)

    done = run_python("launch/generate.py", "--model", exported, "--prompt", "清晨", "--max-new-tokens", 5)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[Glm4MoeForCausalLM] 清晨" in done.stdout

    # The biases that training moved, by its rate in every step, are in the export.
    with safe_open(exported / "model-00003-of-00007.safetensors", "pt") as layer_1:
        bias = layer_1.get_tensor("model.layers.1.mlp.gate.e_score_correction_bias")
    (last,) = (m for m in read_metrics(trained.run_dir) if m["step"] == 20)
    assert bias.norm().item() == pytest.approx(last["routing"]["bias_norm"][0], rel=1e-6)
    assert bias.abs().max() > 1e-3
    assert min(last["routing"]["drop_rate"]) > 0.4

    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "5,120 tokens in 20 steps" in card
    assert "| en | not stated |" in card
    assert f"| zh | {of_run['sources']['zh']['bits_per_byte']:.4f} |" in card

    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4 + 3  # a file per layer, embedding, norm, head

    # Mistakes, on the same run: each ends in one sentence and code 2.
    for script, ranks, mistaken, message in (
        (
            "recipe/export.py",
            2,
            ["--run", trained.run_dir, "--output", exported],
            "exists; choose a new folder",
        ),
        ("recipe/export.py", 2, ["--run", tmp_path, "--output", tmp_path / "x"], "holds no run"),
        ("recipe/export.py", 1, ["--run", trained.run_dir, "--output", tmp_path / "x"], "was trained on 2 ranks but 1"),
        (
            "recipe/evaluate_model.py",
            2,
            ["held-out", "--run", trained.run_dir, "--checkpoint", "step_7"],
            "has no checkpoint 'step_7'",
        ),
    ):
        done = launch(ranks, script, *mistaken)
        assert done.returncode == 2, done.stderr[-3000:]
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    for mistaken, message in (
        (["--model", tmp_path], "holds no config.json"),
        (["--model", exported], "needs --tokens"),
        ([*words, "--seq-length", 4096], "exceeds the model's max_position_embeddings 32"),
        ([*words, "--seq-length", 0], "must be at least 1, not 0"),
        ([*words, "--batch-size", "many"], "'many' is not a whole number"),
        ([*words, "--checkpoint", "step_1"], "--checkpoint goes with --run"),
        (["--run", trained.run_dir, "--document-attention"], "--document-attention goes with --model"),
        (["--run", trained.run_dir], "this needs the launcher"),
    ):
        done = run_python("recipe/evaluate_model.py", "held-out", *mistaken)
        assert done.returncode == 2
        assert message in done.stderr
    done = run_python("launch/generate.py", "--model", tmp_path, "--prompt", "x")
    assert (done.returncode, "holds no config.json" in done.stderr) == (2, True)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_evaluation_predicts_every_token_but_a_shards_first_once(prepared, batch_size):
    (english, _) = TokenFolder(prepared.tokens).sources("held_out")
    asked = []

    def uniform(inputs, targets):
        asked.append(inputs["input_ids"].numel())
        return math.log(1024) * (targets != -100).sum()

    found = evaluate_source(uniform, english, seq_length=50, batch_size=batch_size, device=torch.device("cpu"))
    assert found["tokens"] == english.num_tokens - len(english.shards)
    assert found["loss"] == pytest.approx(math.log(1024))
    assert found["bits_per_byte"] == pytest.approx(10 * found["tokens"] / english.text_bytes)
    assert sum(asked) >= found["tokens"]
