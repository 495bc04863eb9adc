#!/usr/bin/env python3
"""Convert an exported model to GGUF with the converter of a llama.cpp checkout, which knows tokenizers by their vocabulary.

Its converter refuses a vocabulary that it has not seen, however the text is split, and asks glm4_moe for the chat tokens of GLM.
Here it is told the name of the pattern that tokenizer.json has; it does the rest. What follows -- is for the converter.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.output_paths import check_output_file
from recipe.base.strict import load_json
from recipe.huggingface.split_patterns import composes, llama_cpp_name

CONVERTER = "convert_hf_to_gguf"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python launch/to_gguf.py --model exports/a --llama-cpp ~/llama.cpp --output a.gguf -- --outtype bf16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, help="folder written by recipe/export.py")
    parser.add_argument("--llama-cpp", required=True, type=Path, help=f"checkout of llama.cpp, with {CONVERTER}.py")
    parser.add_argument("--output", required=True, type=Path, help="a new file")
    parser.add_argument("converter", nargs="*", metavar="-- ...", help="more arguments for the converter")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> str:
    """The name of the tokenizer's pattern in llama.cpp.

    Raises:
        UserError: something is missing or in the way, or llama.cpp has no such pattern.
    """
    if not (args.model / "config.json").is_file():
        raise UserError(f"--model {args.model} holds no config.json; give a folder written by recipe/export.py")
    if not (args.llama_cpp / f"{CONVERTER}.py").is_file():
        raise UserError(f"--llama-cpp {args.llama_cpp} holds no {CONVERTER}.py; give a checkout of llama.cpp")
    if args.output.exists():
        raise UserError(f"--output {args.output} exists; choose a new file")
    check_output_file("--output", args.output)
    if problems := unread(load_json(args.model / "config.json")):
        raise UserError(
            f"llama.cpp does not read this model as it was trained: {'; '.join(problems)}; serve it with transformers, vLLM or SGLang"
        )
    name = llama_cpp_name(args.model)
    if name is None:
        raise UserError(
            f"llama.cpp does not split text as {args.model / 'tokenizer.json'} does, and would give the model other tokens; serve it "
            "with what reads tokenizer.json (transformers, vLLM, SGLang), or, if it is a model's that llama.cpp knows, run its "
            f"{CONVERTER}.py as it is"
        )
    return name


def unread(config: dict[str, Any]) -> list[str]:
    """What llama.cpp takes for something else, or refuses without saying what it is (as of llama-cpp-python 0.3.36, src/models/)."""
    model_type = config.get("model_type")
    problems = [
        # qwen3moe.cpp gives build_moe_ffn `true` whatever the file says: a model converts, loads, and is another one
        (
            model_type == "qwen3_moe" and not config.get("norm_topk_prob"),
            "its qwen3_moe always has norm_topk_prob true",
        ),
        (model_type == "qwen3_moe" and config.get("mlp_only_layers"), "its qwen3_moe has no dense layers"),
        (model_type == "glm4_moe" and not config.get("n_shared_experts"), "its glm4_moe always has shared experts"),
    ]
    return [sentence for holds, sentence in problems if holds]


def teach(text_model: Any, name: str) -> None:
    """Tell the converter's class for text models the name, and that the vocabulary is a plain byte-level BPE.

    It takes glm4_moe to have the chat tokens of GLM, and asks mixtral for sentencepiece first.
    """
    text_model.get_vocab_base_pre = lambda _model, _tokenizer: name
    text_model._set_vocab_glm = text_model._set_vocab_sentencepiece = text_model._set_vocab_gpt2


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    name = check(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(args.llama_cpp.absolute()))
    converter = importlib.import_module(CONVERTER)
    # The class is in a package since 2026, and was in the script itself.
    teach(sys.modules.get("conversion", converter).TextModel, name)
    sys.argv = [f"{CONVERTER}.py", str(args.model), "--outfile", str(args.output), *args.converter]
    converter.main()
    print(f"{args.output} splits text as {name}, as {args.model / 'tokenizer.json'} does")
    if composes(args.model):
        print("note: llama.cpp does not compose Unicode (NFC), and gives other tokens for text that is not composed")


if __name__ == "__main__":
    raise SystemExit(main())
