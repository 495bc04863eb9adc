"""What the documents say of files and numbers is what the files have."""

from __future__ import annotations

import re

from recipe.base.ds_config import load_ds_config
from tests.conftest import ROOT


def test_the_ds_config_table_has_every_file_with_its_numbers():
    table = (ROOT / "ds_configs" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        ds, _ = load_ds_config(path)
        row = (
            f"| `{path.name}` | {ds.world_size} | {ds.zero_optimization.stage} | {ds.expert_parallel.autoep_size} "
            f"| {ds.train_micro_batch_size_per_gpu} | {ds.gradient_accumulation_steps} "
            f"| {'bf16' if ds.bf16_enabled else 'fp32'} |"
        )
        assert row in table, row


def test_every_path_in_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:recipe|data_prep|launch|ds_configs|docs|tests)/[\w./-]*\w", text))
    placeholders = {"recipe/configs/runs/X.yaml", "ds_configs/Y.json", "data_prep/NAME.py"}
    assert len(named) > 10
    for name in named - placeholders:
        assert (ROOT / name).exists(), name


def test_the_readmes_commands_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.M), target
