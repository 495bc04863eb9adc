"""Run by test_common.py in a process of its own: transformers' common tests of a model class, on ours.

Arguments: the folder `tests` of transformers' source distribution, and the path of a JSON file for the names of all tests,
those that failed, and those that were skipped with the reason. The distribution lacks the folders of its tests for
generation and exporters, and `parameterized` is not installed: small stand-ins follow.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.models.auto import modeling_auto

from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM, RecipeMoeModel


def expand(cases: Any, **_: Any) -> Callable:
    """`parameterized.expand`: the cases as subtests of one test."""

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def every_case(self: unittest.TestCase) -> None:
            for case in cases:
                with self.subTest(str(case)):
                    test(self, *(case if isinstance(case, tuple | list) else (case,)))

        return every_case

    return decorate


def load_mixin(folder: Path) -> type:
    """`ModelTesterMixin` out of the folder, which becomes the package `common`."""

    def module(name: str, **contents: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(contents)

    module("parameterized", parameterized=types.SimpleNamespace(expand=expand))
    module("common", __path__=[str(folder)])
    module("common.exporters", __path__=[])
    module("common.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    module("common.generation", __path__=[])
    module("common.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    return importlib.import_module("common.test_modeling_common").ModelTesterMixin


class SmallModel:
    """What the mixin asks for a configuration and a batch."""

    batch_size, seq_length, vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 4, 7, 99, 32, 2, 4
    is_training = True

    def __init__(self, test: unittest.TestCase):
        self.parent = test

    def get_config(self) -> RecipeMoeConfig:
        return RecipeMoeConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden_size, intermediate_size=37, moe_intermediate_size=12,
            num_hidden_layers=self.num_hidden_layers, num_attention_heads=self.num_attention_heads, head_dim=8,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
            output_router_logits=False,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[RecipeMoeConfig, dict[str, torch.Tensor]]:
        tokens = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens).tril(0)}


def name_of(test: Any) -> str:
    """A test's name, for a subtest its test's."""
    return getattr(test, "test_case", test)._testMethodName


def main() -> None:
    folder, output = map(Path, sys.argv[1:])
    # The mixin knows by these whether a class has a head that takes labels.
    modeling_auto.MODEL_MAPPING_NAMES["recipe_moe"] = "RecipeMoeModel"
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["recipe_moe"] = "RecipeMoeForCausalLM"

    class CommonTest(load_mixin(folder), unittest.TestCase):  # type: ignore[misc]
        all_model_classes = (RecipeMoeModel, RecipeMoeForCausalLM)
        test_all_params_have_gradient = False  # experts that no token chose have none

        def setUp(self) -> None:
            set_seed(0)  # where two experts' scores nearly tie, a rounding would choose between them
            self.model_tester = SmallModel(self)

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(CommonTest)
    names = [name_of(test) for test in suite]
    done = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = sorted({name_of(test) for test, _ in done.failures + done.errors})
    skipped = {name_of(test): reason for test, reason in done.skipped}
    output.write_text(json.dumps({"names": names, "failed": failed, "skipped": skipped}))


if __name__ == "__main__":
    main()
