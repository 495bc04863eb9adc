"""What a module leads to: late imports and modules of a package count, other projects' and packages themselves do not."""

from __future__ import annotations

import json

from benchmarks.modules_to_open import main

FILES = {
    "recipe/__init__.py": "import nowhere\n",
    "recipe/train.py": "import os, torch\nfrom recipe.run import step\n",
    "recipe/run/__init__.py": "",
    "recipe/run/step.py": "def late():\n    from recipe.run.autoep import layer\n",
    "recipe/run/autoep.py": "import recipe.run.step\n\nlayer = 1\n",
    "recipe/run/checkpoint.py": "",
    "recipe/run/unused.py": "",
}


def test_modules_are_counted_once_with_their_lines(tmp_path, capsys):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main([str(tmp_path), "--names"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["train"] == {
        "start": "recipe/train.py",
        "modules": 3,
        "lines": 7,
        "names": ["recipe/run/autoep.py", "recipe/run/step.py", "recipe/train.py"],
    }
    assert results["checkpoint"]["modules"] == 1


def test_a_folder_that_is_no_checkout_is_refused_and_this_one_is_measured(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has none of recipe/train.py; give a checkout" in capsys.readouterr().err
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["modules"] > 10
