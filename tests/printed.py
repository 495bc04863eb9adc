"""What pages of the documentation print: which command prints which part. `python -m tests.printed` writes the pages anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mdformat

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "ds_configs/README.md")  # what mdformat keeps
DESIGN_POINT = (
    "launch/plan.py", "--model", "recipe/configs/models/30b-a3b", "--ds-config", "ds_configs/a100_256.json", "--interconnect", "400g",
)  # fmt: skip


def _of_benchmark(script: str, result: str) -> tuple[str, ...]:
    return f"benchmarks/{script}.py", "--table", f"benchmarks/results/{result}"


# (page, name between `<!-- name -->` and `<!-- /name -->`) -> the command that prints it
PRINTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("README.md", "gpu_status"): ("benchmarks/gpu_status.py",),
    ("docs/architecture.md", "modules"): ("recipe/describe_modules.py",),
    ("docs/data.md", "curation"): _of_benchmark("curation", "curation.json"),
    ("docs/data.md", "growth"): _of_benchmark("data_growth", "data_growth.json"),
    ("docs/data.md", "measured"): _of_benchmark("data_prep", "data_prep.json"),
    ("docs/data.md", "packing"): _of_benchmark("packing_order", "packing_order.json"),
    ("docs/data.md", "plan"): ("benchmarks/data_plan.py", "--terabytes", "15", "--cores", "512"),
    ("docs/design.md", "alternatives"): ("recipe/describe_plans.py", "alternatives"),
    ("docs/design.md", "batch_price"): ("recipe/describe_plans.py", "batch_price"),
    ("docs/design.md", "batch_ramp"): ("recipe/describe_plans.py", "batch_ramp"),
    ("docs/design.md", "balance"): _of_benchmark("loss_curve", "balance_quality.json"),
    ("docs/design.md", "flagship"): DESIGN_POINT,
    ("docs/design.md", "ideas"): ("recipe/describe_plans.py", "ideas"),
    ("docs/design.md", "layer"): _of_benchmark("moe_layer", "moe_layer.json"),
    ("docs/design.md", "long_context"): ("recipe/describe_plans.py", "long_context"),
    ("docs/design.md", "loss_price"): ("recipe/describe_plans.py", "loss_price"),
    ("docs/design.md", "megatron"): ("recipe/describe_plans.py", "megatron"),
    ("docs/design.md", "models"): ("recipe/describe_models.py",),
    ("docs/design.md", "networks"): ("recipe/describe_plans.py", "networks"),
    ("docs/design.md", "phases"): ("recipe/describe_plans.py", "phases"),
    ("docs/design.md", "rules"): (
        "recipe/describe_models.py",
        "--config",
        "recipe/configs/runs/pretrain_30b.yaml",
        "--ds-config",
        "ds_configs/a100_256.json",
    ),
    ("docs/design.md", "scaling"): ("recipe/describe_plans.py", "scaling"),
    ("docs/design.md", "shape_ladder"): _of_benchmark("shape_ladder", "shape_ladder.json"),
    ("docs/design.md", "shapes"): ("recipe/describe_plans.py", "shapes"),
    ("docs/design.md", "transfer"): _of_benchmark("transfer", "transfer.json"),
    ("docs/export.md", "clients"): ("tests/clients/check.py", "--table", "benchmarks/results/clients.json"),
    ("docs/export.md", "merge"): _of_benchmark("merge", "merge.json"),
    ("docs/performance.md", "compiled"): ("recipe/describe_plans.py", "compiled"),
    ("docs/performance.md", "gpu"): ("benchmarks/gpu.py", "--table"),
    ("docs/performance.md", "gpu_status"): ("benchmarks/gpu_status.py",),
    ("docs/performance.md", "loss_curve"): _of_benchmark("loss_curve", "loss_curve.json"),
    ("docs/performance.md", "train_step"): _of_benchmark("train_step", "train_step.json"),
    ("docs/performance.md", "train_step_h200"): _of_benchmark("train_step", "train_step_h200.json"),
    ("docs/phases.md", "needle"): _of_benchmark("needle", "needle.json"),
    ("docs/reliability.md", "checkpoint"): _of_benchmark("checkpoint", "checkpoint.json"),
    ("docs/reliability.md", "faults"): ("tests/faults/table.py", "benchmarks/results/faults.jsonl"),
    ("docs/plan.md", "ladder"): _of_benchmark("ladder", "ladder.json"),
    ("docs/plan.md", "mixture"): _of_benchmark("mixture", "mixture.json"),
    ("docs/plan.md", "reliability"): ("recipe/describe_plans.py", "reliability"),
    ("ds_configs/README.md", "clusters"): ("recipe/describe_plans.py", "ds_configs"),
}
CONFIGURATION = ("docs/configuration.md", ("recipe/describe_settings.py",))  # a page that is printed as a whole
VERBATIM = ("flagship",)  # shown as the terminal has it


def between(text: str, name: str) -> str:
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def formatted(markdown: str) -> str:
    """As `mdformat` of `make lint` leaves it."""
    return mdformat.text(markdown, extensions={"gfm", "tables"}, options={"wrap": 100, "plugin": {"tables": {"compact_tables": True}}})  # fmt: skip


def block(name: str, printed: str) -> str:
    """What stands between the marks of `name` where a command has printed this."""
    return f"```text\n{printed.strip()}\n```" if name in VERBATIM else formatted(printed).strip()


def main() -> None:
    def printed(words: tuple[str, ...]) -> str:
        return subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout

    for (page, name), words in PRINTED.items():
        path, text = ROOT / page, (ROOT / page).read_text(encoding="utf-8")
        new = text.replace(
            f"<!-- {name} -->\n\n{between(text, name)}", f"<!-- {name} -->\n\n{block(name, printed(words))}"
        )
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{page}: {name}")
    page, words = CONFIGURATION
    (ROOT / page).write_text(formatted(printed(words)), encoding="utf-8")


if __name__ == "__main__":
    main()
