"""What recipe/export.py decides before an engine is built."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from launch import generate
from recipe.base.errors import UserError
from recipe.base.model_shape import RopeParameters
from recipe.base.run_config.routing import Routing
from recipe.checkpoints.export import check_bias_has_place
from recipe.export import CHAT_TEMPLATE, check_reach, conclusion, max_positions
from recipe.huggingface.architectures import GLM4_MOE, MIXTRAL, QWEN3_MOE
from recipe.huggingface.tokenizer_folder import write_tokenizer, write_tokenizer_config
from recipe.reading.origin import Origin
from tests.conftest import run_python

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Who sails? "},
    {"role": "assistant", "content": "The captain."},
    {"role": "user", "content": "水手？"},
]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """Every byte is a token, and </s> ends documents."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    (tmp_path / "source").mkdir()
    made.save(str(tmp_path / "source" / "tokenizer.json"))
    write_tokenizer_config(tmp_path / "source", {"eos_token": "</s>"})
    return tmp_path / "source"


def loaded(tokenizer, tmp_path, chat_template):
    (tmp_path / "export").mkdir()
    write_tokenizer(tokenizer, tmp_path / "export", model_max_length=64, chat_template=chat_template)
    return AutoTokenizer.from_pretrained(tmp_path / "export")


def test_the_chat_template_needs_no_token_but_the_end_of_documents(tokenizer, tmp_path):
    chat = loaded(tokenizer, tmp_path, CHAT_TEMPLATE)
    text = chat.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == "System: Be brief.\n\nUser: Who sails?\n\nAssistant: The captain.</s>User: 水手？\n\nAssistant:"
    ids = chat.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ids == chat(text, add_special_tokens=False)["input_ids"]
    assert ids.count(chat.eos_token_id) == 1
    assert chat.decode(ids) == text
    assert chat.apply_chat_template(MESSAGES[:3], tokenize=False).endswith("Assistant: The captain.</s>")


def test_without_being_asked_for_there_is_no_chat_template(tokenizer, tmp_path):
    assert loaded(tokenizer, tmp_path, None).chat_template is None


@pytest.mark.parametrize(("asked", "stated"), [(None, 4096), (4096, 4096), (32768, 32768)])
def test_an_export_states_the_context_that_was_trained_or_what_is_asked_for(asked, stated, capsys):
    assert max_positions(Origin(4096), asked) == stated
    assert capsys.readouterr().out == ""


def test_less_than_was_trained_is_not_stated():
    with pytest.raises(UserError, match="--max-positions 2,048 is less than the 4,096 tokens"):
        max_positions(Origin(4096), 2048)


def test_a_run_whose_beginning_was_not_recorded_says_what_it_states(capsys):
    unknown = Origin(4096, unrecorded="models/base")
    assert max_positions(unknown, None) == 4096
    assert (
        "note: how long sequences models/base, from which the run began, was trained on was not recorded"
        in capsys.readouterr().out
    )
    assert max_positions(unknown, 8192) == 8192
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("architecture", [QWEN3_MOE, MIXTRAL], ids=lambda a: a.model_type)
def test_biases_that_were_trained_need_an_architecture_that_has_them(architecture):
    trained = Routing(bias_update_rate=0.001)
    with pytest.raises(UserError, match=f"as {architecture.model_type}, which has no e_score_correction_bias"):
        check_bias_has_place(architecture, trained, steps=1)
    check_bias_has_place(architecture, trained, steps=0)  # imported, and not yet trained
    check_bias_has_place(architecture, Routing(bias_update_rate=0), steps=1)
    check_bias_has_place(architecture, Routing(bias_freeze_share=1), steps=1)
    check_bias_has_place(GLM4_MOE, trained, steps=1)


def test_an_export_ends_with_its_size_and_commands_that_work(tokenizer, tmp_path, capfd):
    folder = tmp_path / "an export's"
    sizes = {
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_experts=2, num_experts_per_tok=1)).save_pretrained(folder)
    write_tokenizer(tokenizer, folder, model_max_length=64, chat_template=None)
    first, *lines = conclusion(Path("runs/a"), folder, 1000, "qwen3_moe").splitlines()
    files = len(list(folder.iterdir()))
    assert re.fullmatch(
        rf"exported step 1,000 of runs/a as qwen3_moe -> .*/an export's \({files} files, 0\.\d\d GiB\)", first
    )
    names: dict[str, Any] = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
    exec("\n".join(line.strip() for line in lines[1:3]), names)
    assert type(names["model"]).__name__ == "Qwen3MoeForCausalLM"
    assert names["tokenizer"].eos_token == "</s>"
    script, *words = shlex.split(lines[4])[1:]
    assert script == "launch/generate.py"
    assert generate.main([*words, "--max-new-tokens", "1"]) == 0


def test_what_needs_no_torch_is_refused_before_it_is_imported(tmp_path):
    """Seconds of imports on each rank otherwise come before the sentence."""
    code = (
        "import sys\nfrom recipe import evaluate_model, export\n"
        "for main, words in ((export.main, ['--run', 'no', '--output', 'x']), "
        "(evaluate_model.main, ['held-out', '--run', 'no']), (evaluate_model.main, ['held-out', '--model', 'no'])):\n"
        "    try: main(words)\n    except SystemExit as end: assert end.code == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
        "error: no holds no run (no attempts.jsonl)",
        "error: no holds no run (no attempts.jsonl)",
        "error: --model no holds no config.json",
    ]


def test_no_more_positions_are_stated_than_yarn_is_scaled_for():
    yarn = RopeParameters(rope_type="yarn", factor=10 / 3, original_max_position_embeddings=3000)
    check_reach(yarn, 10_000)
    check_reach(RopeParameters(), 10_001)
    with pytest.raises(UserError, match="10,001 is beyond the 10,000 tokens that the model's YaRN is scaled for"):
        check_reach(yarn, 10_001)
