#!/usr/bin/env python3
"""Continue a prompt with an exported model, by stock transformers alone: nothing of this project is imported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder written by recipe/export.py")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if not (args.model / "config.json").exists():
        print(
            f"error: --model {args.model} holds no config.json; give a folder written by recipe/export.py",
            file=sys.stderr,
        )
        return 2
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    for prompt in args.prompt:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
        print(f"[{type(model).__name__}] {tokenizer.decode(tokens[0], skip_special_tokens=True)!s}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
