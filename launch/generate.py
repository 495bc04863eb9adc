#!/usr/bin/env python3
"""Continue a prompt with an exported model, by stock transformers alone: nothing of this project is imported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    try:
        return continue_prompts(argv)
    except KeyboardInterrupt:
        print("interrupted; what was continued stands above", file=sys.stderr)
        return 130


def continue_prompts(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='example:\n  python launch/generate.py --model exports/a --prompt "The sea" --prompt 大海',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, help="folder written by recipe/export.py")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=40, help="tokens after each prompt, at most (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if not (args.model / "config.json").exists():
        return refuse(f"--model {args.model} holds no config.json; give a folder written by recipe/export.py")
    for prompt in args.prompt:
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # how Python reads bytes that are no UTF-8
            return refuse(f"--prompt {prompt!r} is not UTF-8; give it in that encoding")
    disable_progress_bar()
    if sys.stderr.isatty():
        print(f"loading {args.model}", file=sys.stderr, flush=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        prompts = [tokenizer(prompt, return_tensors="pt", return_token_type_ids=False) for prompt in args.prompt]
        for prompt, tokens in zip(args.prompt, prompts, strict=True):
            if not tokens["input_ids"].numel():
                return refuse(f"--prompt {prompt!r} has no tokens, which nothing continues; give some text")
        model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    except Exception as error:  # whatever transformers makes of a file that it cannot use
        reason = " ".join(str(error).split())
        return refuse(f"--model {args.model} is not read by transformers: {reason}; export it again")
    for tokens in prompts:
        output = model.generate(**tokens, max_new_tokens=args.max_new_tokens, do_sample=False)
        print(f"[{type(model).__name__}] {tokenizer.decode(output[0], skip_special_tokens=True)!s}", flush=True)
    return 0


def refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
