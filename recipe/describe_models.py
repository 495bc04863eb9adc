#!/usr/bin/env python3
"""Print Markdown tables of the shipped models, or of any folders with a config.json: shapes, parameters, FLOPs.

Of a run config and a ds_config: what published rules say of the run's learning rate, batch and other hyperparameters.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipe.base.ds_config import load_ds_config
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.hardware import ACCELERATORS
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import load_run_config
from recipe.base.tables import markdown_table
from recipe.planner.search.shipped import SHIPPED as DS_CONFIGS
from recipe.scaling.transfer_tables import describe_rules

SHIPPED = Path(__file__).resolve().parent / "configs" / "models"
SEQ_LENGTH = 4096  # of the FLOPs
TOKENS, MFU = 1e12, 0.3  # of the A100-days; the share of the peak is an assumption


def shipped_models() -> list[Path]:
    """The folders of the shipped models, the smallest first."""
    folders = [path.parent for path in SHIPPED.glob("*/config.json")]
    return sorted(folders, key=lambda folder: sum(load_model_shape(folder).parameters().values()))


def shape_table(shapes: dict[str, ModelShape]) -> str:
    """What each model is made of."""
    head = ["model", "layers", "dense first", "hidden", "heads / kv × size", "experts", "top-k", "shared",
            "expert width", "granularity", "vocabulary"]  # fmt: skip
    return markdown_table(
        head,
        [
            [
                name, str(s.num_hidden_layers), str(s.first_k_dense_replace), f"{s.hidden_size:,}",
                f"{s.num_attention_heads} / {s.num_key_value_heads} × {s.head_dim}", str(s.n_routed_experts),
                str(s.num_experts_per_tok), str(s.n_shared_experts), f"{s.moe_intermediate_size:,}",
                f"{4 * s.hidden_size / s.moe_intermediate_size:.1f}", f"{s.vocab_size:,}",
            ]
            for name, s in shapes.items()
        ],
    )  # fmt: skip


def parameter_table(shapes: dict[str, ModelShape]) -> str:
    """Parameters by term, in millions, and what a token and a trillion of them cost."""
    terms = list(next(iter(shapes.values())).parameters())
    head = ["model", *(t.replace("_", " ") for t in terms), "total", "active", "active share", "GFLOP/token",
            "A100-days for 1T"]  # fmt: skip
    rows = []
    for name, shape in shapes.items():
        counts, active = shape.parameters(), sum(shape.active_parameters().values())
        total = sum(counts.values())
        rows.append(
            [
                name,
                *(f"{counts[term] / 1e6:,.1f}" for term in terms),
                f"{total / 1e6:,.0f}",
                f"{active / 1e6:,.0f}",
                f"{active / total:.1%}",
                f"{shape.training_flops_per_token(SEQ_LENGTH) / 1e9:.2f}",
                f"{accelerator_days(shape):,.0f}",
            ]
        )
    return markdown_table(head, rows)


def accelerator_days(shape: ModelShape) -> float:
    """A100-days to train on `TOKENS` tokens at `MFU` of the peak."""
    (a100,) = (a for a in ACCELERATORS if a.name == "a100-80gb")
    return shape.training_flops_per_token(SEQ_LENGTH) * TOKENS / (a100.bf16_flops * MFU) / 86_400


def ds_config_list(models: list[str]) -> str:
    """The shipped ds_configs of each shipped model; a model may have none."""
    files = {model: [f"`{d.name}.json`" for d in DS_CONFIGS if d.model == model] for model in models}
    files["tiny"] = ["`cpu_2.json`"]
    none = "no ds_config is shipped; it is a shape for planning"
    return "\n".join(f"- `{model}`: {', '.join(names) or none}." for model, names in files.items())


def rules_of_run(config: Path, ds_config: Path) -> str:
    """Published rules beside the numbers of a run."""
    run = load_run_config(config)
    shape = load_model_shape(run.model)
    phases = resolve_phases(run, shape, *load_ds_config(ds_config), path=config)
    return describe_rules(config.name, shape, phases)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python recipe/describe_models.py recipe/configs/models/30b-a3b",
    )
    parser.add_argument("models", nargs="*", type=Path, help="folders with config.json (default: the shipped ones)")
    parser.add_argument(
        "--config", type=Path, help="run config (YAML) whose hyperparameters are compared with published rules"
    )
    parser.add_argument("--ds-config", type=Path, help="ds_config of the run, with --config; it has the batch")
    args = parser.parse_args(argv)
    if (args.config is None) != (args.ds_config is None) or (args.config and args.models):
        raise UserError("--config and --ds-config go together, and without folders of models; give both, or neither")
    if args.config is not None:
        print(rules_of_run(args.config, args.ds_config))
        return
    folders = args.models or shipped_models()
    shapes = {folder.resolve().name: load_model_shape(folder) for folder in folders}
    print(shape_table(shapes), parameter_table(shapes), sep="\n\n")
    if not args.models:
        print("", "The ds_configs of each model:", "", ds_config_list(list(shapes)), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
