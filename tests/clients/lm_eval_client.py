"""lm-evaluation-harness as its users call it, `--model hf`, on a task of this machine."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


def main(request, answer):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={request['model']},dtype=float32",
                "--tasks", request["task"], "--include_path", request["task_folder"], "--device", "cpu", "--batch_size", "8",
                "--output_path", folder,
            ],
            check=True, env={**os.environ, "HF_DATASETS_OFFLINE": "1"},
        )  # fmt: skip
        (path,) = Path(folder).rglob("results_*.json")
        scores = json.loads(path.read_text())["results"][request["task"]]
    return {"version": version("lm_eval"), "scores": {k: v for k, v in scores.items() if isinstance(v, float)}}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
