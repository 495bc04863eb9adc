#!/usr/bin/env python3
"""Convert an exported model to GGUF with the converter of a llama.cpp checkout, which knows tokenizers by their vocabulary.

Its converter refuses a vocabulary that it has not seen, however the text is split, and asks glm4_moe for the chat tokens of GLM.
Here it is told the name of the pattern that tokenizer.json has; it does the rest. What follows -- is for the converter.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError, exit_on_user_error, what_to_do
from recipe.base.files import replacing
from recipe.base.hardware import GIB
from recipe.base.output_paths import check_output_file
from recipe.base.strict import load_json
from recipe.huggingface.split_patterns import composes, llama_cpp_name

CONVERTER = "convert_hf_to_gguf"
# Options of the converter after which there is not one file of the whole model, or not of --model.
ELSEWHERE = ("--outfile", "--remote", "--split-max-tensors", "--split-max-size")
KEYS_WITHIN = 64 * 2**20  # bytes of a GGUF file; its keys, with those of a vocabulary, are a tenth of that
NO_MODEL = ("--help", "--print-supported-models", "--dry-run", "--vocab-only", "--mmproj", "--mtp", "--dspark")


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
    check_converter_arguments(args.converter)
    if not (args.model / "config.json").is_file():
        raise UserError(f"--model {args.model} holds no config.json; give a folder written by recipe/export.py")
    if not (args.llama_cpp / f"{CONVERTER}.py").is_file():
        raise UserError(f"--llama-cpp {args.llama_cpp} holds no {CONVERTER}.py; give a checkout of llama.cpp")
    if args.output.exists():
        raise UserError(f"--output {args.output} exists; choose a new file")
    for path in (args.output, partial(args.output)):
        check_output_file("--output", path)
    config = load_json(args.model / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{args.model / 'config.json'} holds no mapping of settings; export or fetch the model again")
    if problems := unread(config):
        raise UserError(
            f"llama.cpp does not read this model as it was trained: {'; '.join(problems)}; serve it with transformers, vLLM or SGLang"
        )
    name = pattern_name(args.model)
    if name is None:
        raise UserError(
            f"llama.cpp does not split text as {args.model / 'tokenizer.json'} does, and would give the model other tokens; serve it "
            "with what reads tokenizer.json (transformers, vLLM, SGLang), or, if it is a model's that llama.cpp knows, run its "
            f"{CONVERTER}.py as it is"
        )
    check_weights(args.model)
    return name


def check_converter_arguments(words: list[str]) -> None:
    """Raises UserError for an option that leaves no GGUF file of --model at --output; argparse takes unique beginnings too."""
    for word in words:
        option = "--help" if word == "-h" else word.partition("=")[0]
        if len(option) < 3 or not option.startswith("--"):
            continue
        for refused in (*ELSEWHERE, *NO_MODEL):
            if refused.startswith(option):
                raise UserError(
                    f"{word} among the converter's arguments: {refused} does not leave the whole model in --output; remove it, or run "
                    f"llama.cpp's {CONVERTER}.py itself"
                )


def pattern_name(model: Path) -> str | None:
    try:
        return llama_cpp_name(model)
    except (AttributeError, LookupError, TypeError) as error:
        raise UserError(
            f"{model / 'tokenizer.json'} is not laid out as a tokenizer is ({type(error).__name__}: {error}); export or fetch the model "
            "again"
        ) from None


def check_weights(model: Path) -> None:
    """Raises UserError if tensors are missing that the folder says it has, or a file of them is cut."""
    from recipe.huggingface.weights_folder import SafetensorsFolder  # it needs torch

    if not SafetensorsFolder(model).names:
        raise UserError(f"--model {model} holds no tensors; export or fetch the model again")


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
    return [sentence for holds, sentence in problems if holds] + unread_scaling(config)


def yarn_of(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config.json's YaRN, as transformers 4 or 5 writes them; none without it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope if rope.get("rope_type", rope.get("type")) == "yarn" else {}


def unread_scaling(config: dict[str, Any]) -> list[str]:
    """Keys of YaRN that llama.cpp reads for other architectures alone, or for none (src/llama-model.cpp, src/models/)."""
    rope = yarn_of(config)
    fixed = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    others = [name for name, value in fixed.items() if rope.get(name, value) != value]
    others += [name for name in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(name)]
    if not others:
        return []
    return [
        f"its YaRN has beta_fast 32, beta_slow 1 and the paper's attention factor, whatever {', '.join(others)} says"
    ]


def teach(text_model: Any, name: str) -> None:
    """Tell the converter's class for text models the name, and that the vocabulary is a plain byte-level BPE.

    It takes glm4_moe to have the chat tokens of GLM, and asks mixtral for sentencepiece first.
    """
    text_model.get_vocab_base_pre = lambda _model, _tokenizer: name
    text_model._set_vocab_glm = text_model._set_vocab_sentencepiece = text_model._set_vocab_gpt2


def load_converter(checkout: Path, name: str) -> Any:
    """The converter's module, told how text is split.

    Raises:
        UserError: a package is missing, or the checkout is not as those that we know.
    """
    sys.path.insert(0, str(checkout.absolute()))
    with converter_errors(checkout):
        converter = importlib.import_module(CONVERTER)
    # The class is in a package since 2026, and was in the script itself.
    text_model = getattr(sys.modules.get("conversion", converter), "TextModel", None)
    if text_model is None or not callable(getattr(converter, "main", None)):
        raise UserError(
            f"{checkout / CONVERTER}.py has no class TextModel or no main(), as llama.cpp's has since 2025; give another checkout"
        )
    teach(text_model, name)
    return converter


@contextmanager
def converter_errors(checkout: Path) -> Iterator[None]:
    """What the converter ends with, as one sentence: it is not ours, and what it says is about what it was given.

    Raises:
        UserError: it ended otherwise than by returning.
    """
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise UserError(f"llama.cpp's converter ended with {error.code}; what it said stands above") from None
    except ImportError as error:
        raise UserError(missing_package(error, checkout)) from None
    except Exception as error:
        if what_to_do(error) is not None:  # such as a full disk
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"llama.cpp's converter ended with {type(error).__name__}: {' '.join(str(error).split())} ({Path(where.filename).name}, "
            f"line {where.lineno}); change the arguments after --, or take another checkout of llama.cpp"
        ) from None


def missing_package(error: ImportError, checkout: Path) -> str:
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not package:
        return f"llama.cpp's converter cannot be loaded: {' '.join(str(error).split())}; install what it names, or take another checkout"
    if package == "conversion":
        return f"--llama-cpp {checkout} lacks the folder conversion, of which its {CONVERTER}.py is made; fetch the whole checkout"
    listed = checkout / "requirements" / f"requirements-{CONVERTER}.txt"
    more = f"; {listed} lists all that it needs" if listed.is_file() else ""
    return (
        f"llama.cpp's converter needs the Python package {package}, which is not installed: pip install {package}{more}"
    )


def partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


@contextmanager
def new_file(output: Path) -> Iterator[Path]:
    """A path to write to, which becomes `output` at the end; on an error nothing of it stays, nor a folder made for it."""
    folders = [folder for folder in output.absolute().parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(output, partial(output)) as temporary:
            yield temporary
    except BaseException:
        for folder in folders:  # innermost first; one that holds something else by now stays
            try:
                folder.rmdir()
            except OSError:
                break
        raise


def check_gguf(path: Path, config: dict[str, Any]) -> None:
    """Compare what the converter wrote with what it was given.

    Raises:
        UserError: it is no GGUF file with tensors: magic, version (4 bytes each), their number (8), in docs/gguf.md of ggml; or it
            lacks the keys of the model's YaRN, which converters before 2026 leave out for some architectures.
    """
    if not path.is_file():
        raise UserError(
            "llama.cpp's converter ended without writing the model; what it said stands above, and the arguments after -- say what it "
            "writes"
        )
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] != b"GGUF" or not any(head[8:]):
        raise UserError("llama.cpp's converter wrote a file without tensors; what it said stands above")
    if yarn_of(config) and not names_key(path, b".rope.scaling.original_context_length"):
        raise UserError(
            "llama.cpp's converter wrote a file without the model's YaRN, with which positions would be others; take a newer checkout"
        )


def names_key(path: Path, key: bytes) -> bool:
    """Whether a key stands in the first part of a GGUF file, where all keys are, before the tensors."""
    with path.open("rb") as file:
        return key in file.read(KEYS_WITHIN)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    name = check(args)
    converter = load_converter(args.llama_cpp, name)
    with new_file(args.output) as path:
        # it fills in what stands in braces in the name of a file
        outfile = path.with_name(path.name.replace("{", "{{").replace("}", "}}"))
        sys.argv = [f"{CONVERTER}.py", str(args.model), "--outfile", str(outfile), *args.converter]
        with converter_errors(args.llama_cpp):
            converter.main()
        check_gguf(path, load_json(args.model / "config.json"))
    print(f"wrote {args.output}, {args.output.stat().st_size / GIB:.2f} GiB")
    print(f"{args.output} splits text as {name}, as {args.model / 'tokenizer.json'} does")
    if composes(args.model):
        print("note: llama.cpp does not compose Unicode (NFC), and gives other tokens for text that is not composed")


if __name__ == "__main__":
    raise SystemExit(main())
