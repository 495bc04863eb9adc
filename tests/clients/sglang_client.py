"""SGLang by its source: does its loader for this architecture have the names of the folder's tensors? Nothing of it is run.

Names are what its model files assign to `self`, what they stack (q_proj to qkv_proj), and what they call the experts' matrices.
"""

import ast
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def names_of(models, stem, seen):
    """All names of a model file, and of the model files that it imports."""
    path = models / f"{stem}.py"
    if stem in seen or not path.exists():
        return set()
    seen.add(stem)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "stacked_params_mapping":
            names |= {row.elts[1].value for row in node.value.elts}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.srt.models."):
            names |= names_of(models, node.module.rpartition(".")[2], seen)
    return names


def expert_names(models, stem):
    """What it calls an expert's matrices in a folder: `experts.N.NAME.`"""
    tree = ast.parse((models / f"{stem}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if getattr(getattr(n, "func", None), "attr", "") == "make_expert_params_mapping"]
    return {keyword.value.value for call in calls for keyword in call.keywords if keyword.arg.startswith("ckpt_")}


def main(request, answer):
    models = Path(find_spec("sglang").submodule_search_locations[0]) / "srt" / "models"
    folder = Path(request["model"])
    stem = json.loads((folder / "config.json").read_text())["model_type"]
    modules, matrices = names_of(models, stem, set()), expert_names(models, stem)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    unknown = []
    for name in index["weight_map"]:
        parts = name.split(".")[:-1] if name.endswith((".weight", ".bias")) else name.split(".")
        if "experts" in parts:
            at = parts.index("experts")
            expert, matrix = parts[at + 1 :]
            known = expert.isdigit() and matrix in matrices
            parts = parts[: at + 1]
        else:
            known = True
        if not known or not all(part.isdigit() or part in modules for part in parts):
            unknown.append(name)
    return {"version": version("sglang"), "known": len(index["weight_map"]) - len(unknown), "unknown": unknown}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
