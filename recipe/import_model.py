#!/usr/bin/env python3
"""Begin a run from a HuggingFace model: its weights as the run's first checkpoint, under the DeepSpeed launcher."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.model_shape import ModelShape
from recipe.base.output_paths import check_output_folder
from recipe.base.ranks import is_first_rank, leave, required_world_size, say
from recipe.base.strict import strict_model
from recipe.reading.origin import imported, record_of
from recipe.run.job import check_job
from recipe.training.next_steps import train_command

EXAMPLE = """example, in three steps (recipe/configs/runs/continue.yaml is a run config to begin with; set its paths):
  python recipe/import_model.py --model exports/a --write-shape models/a
      writes models/a/config.json, the model's shape; the run config's `model` names that folder
  deepspeed --num_gpus 8 recipe/import_model.py --model exports/a --config recipe/configs/runs/continue.yaml \\
      --deepspeed_config ds_configs/a100_8.json
      makes the run folder, with the weights as its first checkpoint
  deepspeed --num_gpus 8 recipe/train.py --config recipe/configs/runs/continue.yaml --deepspeed_config ds_configs/a100_8.json \\
      --resume auto
      trains from there

The model is a glm4_moe, qwen3_moe or mixtral. A dense model (glm4_moe with every MLP dense, llama, mistral, qwen2, qwen3) becomes
one with experts by --upcycle, in both import commands: the MLPs are cut into experts, and at first the model computes what it did
before. --write-shape then prints which numbers of experts are possible; change them in the config.json that it wrote."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        help="the folder of the model, as HuggingFace has it: config.json, safetensors",
    )
    parser.add_argument(
        "--write-shape",
        type=Path,
        metavar="DIR",
        help="write the model's shape (config.json) into this folder, and stop; needs no launcher",
    )
    parser.add_argument("--upcycle", action="store_true", help="make experts of a dense model's MLPs")
    parser.add_argument("--config", type=Path, help="run config (YAML); its run_dir must not hold a run yet")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
    )
    parser.add_argument("--deepspeed_config", type=Path, help="ds_config (JSON) for the ranks that are launched")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.write_shape is None and (args.config is None or args.deepspeed_config is None):
        parser.error(
            "give --config and --deepspeed_config to import the model, or --write-shape DIR to write its shape for the run config"
        )
    return args


def write_shape(model: Path, folder: Path, upcycle: bool) -> None:
    from recipe.huggingface.import_weights import shape_values

    check_output_folder("--write-shape", folder)
    values, path = shape_values(model, upcycle), folder / "config.json"
    shape = strict_model(ModelShape, values, model / "config.json")
    if path.exists():
        raise UserError(f"{path} exists; choose another folder")
    write_json(path, values)
    print(
        f"wrote {path}, the shape of {model}; next set `model: {folder}` in the run config (recipe/configs/runs/continue.yaml is an "
        "example) and import the weights with --config and --deepspeed_config"
    )
    if upcycle:
        print(
            f"it has {shape.n_routed_experts} experts, {shape.num_experts_per_tok} of them a token; you may change these numbers there as "
            f"long as (n_shared_experts + num_experts_per_tok) * moe_intermediate_size is {shape.intermediate_size} and n_routed_experts "
            "is a multiple of num_experts_per_tok"
        )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.write_shape is not None:
        write_shape(args.model, args.write_shape, args.upcycle)
        return
    job = check_job(args.config, args.set, args.deepspeed_config, required_world_size())
    run = job.run

    from recipe.checkpoints.fingerprints import check_engine_equals, one_by_one
    from recipe.checkpoints.store import CheckpointStore, TrainState
    from recipe.engine.build import build_engine, check_compute
    from recipe.engine.collectives import from_first_rank
    from recipe.engine.session import session
    from recipe.huggingface.architectures import export_note
    from recipe.huggingface.import_weights import same_model, upcycled
    from recipe.huggingface.source_tokenizer import tokenizer_note
    from recipe.model import RecipeMoeConfig
    from recipe.model.modeling import initialize_parameter
    from recipe.run.folder import RunFolder, check_run_folder, lock_run_folder, provenance, record_start

    check_run_folder(job, resumes=False)
    check_compute(run.compute)
    config = RecipeMoeConfig.from_shape(job.shape)
    if args.upcycle:
        weights = upcycled(args.model, job.shape, lambda name, rows: initialize_parameter(rows, name, config, run.seed))
    else:
        weights = same_model(args.model, job.shape)
    for note in [*weights.notes, tokenizer_note(args.model, run.tokenizer), export_note(job.shape, run.routing)]:
        if note is not None and is_first_rank():
            print(f"note: {note}", flush=True)

    def begin() -> int:
        lock_run_folder(run.run_dir)
        origin = record_of(imported(args.model, weights.context))
        began_from = {"from": str(args.model.absolute()), "upcycled": args.upcycle, **origin}
        return record_start(job, began_from=began_from)

    with session(run.watch):
        say(
            f"imports {args.model}{', upcycled,' if args.upcycle else ''} into the run folder {run.run_dir}: builds the engine with its "
            "weights"
        )
        folder = RunFolder(run.run_dir, from_first_rank(begin))
        engine = build_engine(
            config, job.ds_raw, seed=run.seed, optimizer=run.optimizer, compute=run.compute, weights=weights
        )
        say(f"compares the engine's weights with those of {args.model}")
        check_engine_equals(engine, one_by_one(weights), str(args.model))
        say(f"saves the first checkpoint in {run.run_dir / 'checkpoints'}")
        store = CheckpointStore(run.run_dir / "checkpoints", run.checkpoint, provenance(job))
        store.save_now(engine, TrainState(), keep="what the run began from")
        if is_first_rank():
            message = f"began from the weights of {args.model}{', upcycled' if args.upcycle else ''}"
            folder.event(event="imported", step=0, message=message)
            print(f"{run.run_dir} {message}; train it with:\n  {train_command(args, job.ds.world_size)}", flush=True)


if __name__ == "__main__":
    leave(main())
