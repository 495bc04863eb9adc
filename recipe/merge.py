#!/usr/bin/env python3
"""Average checkpoints of a run into a new run folder, with weights that stand for a decay of the learning rate."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.base.arguments import positive_int
from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import rename_folder, write_text
from recipe.base.hardware import GIB
from recipe.base.model_shape import ModelShape
from recipe.base.output_paths import check_export_folder, partial_export
from recipe.base.ranks import leave, say
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.strict import strict_model
from recipe.evaluation.display import aligned_table, progress_line
from recipe.reading.origin import origin_of, record_of
from recipe.run.checkpoint_files import complete, damage, described, digest, find, read_manifest
from recipe.run.identity import check_identity, differences
from recipe.run.records import EVENTS, append_attempt, append_record, read_starts, recorded_run_config

if TYPE_CHECKING:
    from recipe.checkpoints.merging import Weighted

EXAMPLE = """examples:
  python recipe/merge.py --run runs/a --last 8 --output runs/a_merged
      of a run at a constant learning rate: about what a linear decay over these checkpoints would have ended in
  python recipe/merge.py --run runs/a --checkpoints step_8000 step_9000 step_10000 --decay cosine --output runs/a_merged
  python recipe/merge.py --run runs/a --average --output runs/a_average
      of the moving average that the newest checkpoint holds (checkpoint.average of the run config)

The new run folder holds one checkpoint: deepspeed --num_gpus 8 recipe/evaluate_model.py held-out --run runs/a_merged evaluates it,
recipe/export.py exports it, recipe/branch.py begins another run from it. The run that it was merged from goes on from its own
checkpoints. Choose the checkpoints by the tokens that they span, as you would a decay's length; keep them with
checkpoint.keep_every_steps. No GPU and no launcher are needed. The optimizer's moments are the newest checkpoint's."""

SPARE_BYTES = 64 << 20


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, help="the run folder; it is only read")
    parser.add_argument("--output", required=True, type=Path, help="the new run folder; it must not exist yet")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="STEP",
        help="names such as step_1000, or paths such as runs/b/checkpoints/step_00001000 of another branch of the run",
    )
    which.add_argument("--last", type=positive_int, metavar="N", help="the newest N checkpoints of the run")
    which.add_argument("--average", action="store_true", help="the moving average that the newest checkpoint holds")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--decay",
        default="linear",
        choices=("linear", "cosine", "one_minus_sqrt", "mean"),
        help="the decay from the first checkpoint to the last that the weights stand for; mean: equal weights (default: linear)",
    )
    how.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="weights in the order of --checkpoints, in any unit"
    )
    args = parser.parse_args(argv)
    if args.weights and not args.checkpoints:
        parser.error("--weights goes with --checkpoints, in the same order")
    return args


def chosen(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that are asked for.

    Raises:
        UserError: one is not there or named twice, or they are not two at least.
    """
    folder = args.run / "checkpoints"
    newest = find(folder, None)
    if args.average:
        return [newest]
    if args.checkpoints:
        paths = [find(Path(name).parent if "/" in name else folder, Path(name).name) for name in args.checkpoints]
    else:
        paths = complete(folder)[-args.last :]
        if len(paths) < args.last:
            raise UserError(
                f"{args.run} has {len(paths)} checkpoints, not {args.last}; lower --last, or keep more of them"
            )
    if len(paths) < 2:
        raise UserError("a merge needs two checkpoints at least; name more of them")
    if len({digest(path) for path in paths}) < len(paths):
        raise UserError("a checkpoint is named twice; name each once, and give it more weight with --weights")
    return paths


def weighted(args: argparse.Namespace, paths: Sequence[Path]) -> list[Weighted]:
    """The checkpoints by their tokens, the newest last, so that the order of the command does not matter."""
    from recipe.checkpoints.decay_weights import decay_weights, given_weights
    from recipe.checkpoints.merging import Weighted

    manifests = [read_manifest(path) for path in paths]
    order = sorted(range(len(paths)), key=lambda i: (manifests[i]["train_state"]["tokens"], digest(paths[i])))
    if args.weights:
        weights = given_weights(args.weights, len(paths))
        ordered = [weights[i] for i in order]
    else:
        tokens = [manifests[i]["train_state"]["tokens"] for i in order]
        ordered = [1.0] if args.average else decay_weights(args.decay, tokens)
    return [Weighted(paths[i], manifests[i], weight) for i, weight in zip(order, ordered, strict=True)]


def check_mergeable(sources: Sequence[Weighted]) -> None:
    """Refuse checkpoints whose average is no model, before their files are read.

    Raises:
        UserError: one is of another model, tokenizer, phase or topology, or of a run that is no branch.
    """
    newest = sources[-1]
    shapes, lineage = _shapes(newest), _lineage(_run_of(newest.checkpoint))
    remedy = "merge checkpoints of one run and one phase"
    for source in sources[:-1]:
        path, manifest = source.checkpoint, source.manifest
        if manifest["topology"] != newest.manifest["topology"]:
            raise UserError(
                f"{path} was written with {described(manifest['topology'])} and {newest.checkpoint} with "
                f"{described(newest.manifest['topology'])}; merge checkpoints of the same ranks and ds_config"
            )
        own = {"tokenizer": newest.manifest["identity"]["tokenizer"]}
        check_identity(manifest["identity"], own, path, remedy)
        own_shapes = _shapes(source)
        common = [shape for shape in shapes if shape in own_shapes]
        if not common:
            problems = differences(own_shapes[0], shapes[0])
            raise UserError(f"{path} is of another model than {newest.checkpoint}: {'; '.join(problems)}; {remedy}")
        shapes = common
        if not lineage & _lineage(_run_of(path)):
            raise UserError(
                f"{_run_of(path)} and {_run_of(newest.checkpoint)} did not branch from a common run, and the average of models "
                f"that were trained apart is none; {remedy}"
            )


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.absolute().parent.parent


def _shapes(source: Weighted) -> list[dict[str, Any]]:
    """What the weights mean, in the checkpoint's phase: not how they were drawn, nor how long texts may be.

    Between two phases a checkpoint is the end of the one and the beginning of the other, so it has the shapes of both.
    """
    manifest, path = source.manifest, source.checkpoint
    model = strict_model(ModelShape, manifest["identity"]["model"], path)
    ds = strict_model(DsConfig, manifest["ds_config"], f"ds_config of {path}")
    phases = resolve_phases(recorded_run_config(manifest), model, ds, manifest["ds_config"], path=path)
    number = manifest["train_state"].get("phase", 0)
    is_between = number > 0 and manifest["train_state"]["sequences"] == 0
    return [
        phase.shape.model_dump(mode="json", exclude={"initializer_range", "max_position_embeddings"})
        for phase in phases[number - is_between : number + 1]
    ]


def _lineage(run: Path) -> set[str]:
    """The run folder, and those that it began from as far as they are there."""
    lineage: set[str] = set()
    while str(run) not in lineage:
        lineage.add(str(run))
        if not (run / "attempts.jsonl").exists():
            break
        run = Path(read_starts(run)[0].get("began_from", {}).get("from", run))
    return lineage


def check_intact(sources: Sequence[Weighted]) -> None:
    """Raises UserError if a file of a checkpoint does not have its checksum."""
    with progress_line("checksums of checkpoints", len(sources)) as progress:
        for source in sources:
            if found := damage(source.checkpoint, sorted(source.manifest["files"].items())):
                raise UserError(f"{found[0]}; merge other checkpoints")
            progress.advance()


def check_room(newest: Weighted, output: Path) -> None:
    """Raises UserError if the file system has no room for a checkpoint as large as the newest."""
    needed = sum(facts["bytes"] for facts in newest.manifest["files"].values()) + SPARE_BYTES
    existing = next(folder for folder in output.absolute().parents if folder.is_dir())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise UserError(f"{existing} has {free / GIB:.1f} GiB free, and the merge takes {needed / GIB:.1f}; make room")


def origin(args: argparse.Namespace, sources: Sequence[Weighted]) -> dict[str, Any]:
    """What the new run records of what it began from."""
    newest = sources[-1]
    merged = [
        {"run": str(_run_of(s.checkpoint)), "checkpoint": s.checkpoint.name, "manifest_sha256": digest(s.checkpoint),
         "weight": s.weight}
        for s in sources
    ]  # fmt: skip
    how = "moving average" if args.average else "given weights" if args.weights else args.decay
    return {
        "from": str(_run_of(newest.checkpoint)),
        "checkpoint": newest.checkpoint.name,
        "manifest_sha256": digest(newest.checkpoint),
        "weights_only": False,
        "merged_by": how,
        "merged": merged,
        **record_of(origin_of(_run_of(newest.checkpoint))),
    }


def write_run(args: argparse.Namespace, sources: Sequence[Weighted], write: Callable[..., None]) -> None:
    """Write the new run folder, which appears when all of it is there."""
    newest, partial, began_from = sources[-1], partial_export(args.output), origin(args, sources)
    manifest = newest.manifest
    facts = {
        "run_config": {**manifest["run_config"], "run_dir": os.path.abspath(args.output)},
        # a later probe that fails can only go back to here
        "train_state": {**manifest["train_state"], "good_probe": manifest["train_state"]["step"]},
        "merged_from": {key: began_from[key] for key in ("merged_by", "merged")},
    }
    start = {
        key: {**manifest, **facts}[key] for key in ("run_config", "ds_config", "identity", "code_version", "packages")
    }
    shutil.rmtree(partial, ignore_errors=True)  # of a merge that was killed
    try:
        write(partial / "checkpoints" / newest.checkpoint.name, facts)
        write_text(partial / "checkpoints" / "latest", newest.checkpoint.name)
        append_attempt(
            partial,
            {"time": time.time(), "command": sys.argv, "folder": os.getcwd(), **start, "began_from": began_from},
        )
        step, message = manifest["train_state"]["step"], told(args, sources)
        event = {"event": "branched", "step": step, "message": message, "began_from": began_from}
        append_record(partial / EVENTS, {"time": time.time(), "attempt": 1, **event})
        rename_folder(partial, args.output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def told(args: argparse.Namespace, sources: Sequence[Weighted]) -> str:
    newest = sources[-1].checkpoint
    if args.average:
        return f"the moving average of {newest}"
    return f"merged {len(sources)} checkpoints, {sources[0].checkpoint.name} to {newest.name}, of {args.run}"


def table(sources: Sequence[Weighted]) -> str:
    rows = [
        (str(source.checkpoint), f"{source.manifest['train_state']['tokens']:,}", f"{source.weight:.4f}")
        for source in sources
    ]
    return aligned_table(("checkpoint", "tokens", "weight"), rows)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_export_folder(args.output)
    read_starts(args.run)  # what needs no torch is refused before the seconds that its import takes
    paths = chosen(args)

    from recipe.checkpoints.average import average_file
    from recipe.checkpoints.merging import check_fingerprints, write_average, write_merged
    from recipe.checkpoints.zero_files import ZeroFiles

    sources = weighted(args, paths)
    newest = sources[-1]
    check_mergeable(sources)
    if args.average and average_file(0) not in newest.manifest["files"]:
        raise UserError(
            f"{newest.checkpoint} holds no moving average; set checkpoint.average in the run config and train on"
        )
    check_room(newest, args.output)
    files = ZeroFiles(newest.checkpoint, newest.manifest)
    say(f"{told(args, sources)}: reads and checks them, and writes {args.output}\n{table(sources)}")
    check_intact(sources)
    check_fingerprints(newest.checkpoint, newest.manifest)
    with progress_line("files of the checkpoint", len(files.optimizer_files) + len(files.model_files)) as progress:

        def write(folder: Path, facts: dict[str, Any]) -> None:
            if args.average:
                write_average(newest, folder, facts, progress.advance)
            else:
                write_merged(sources, folder, facts, progress.advance)

        try:
            write_run(args, sources, write)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} is gone: the run goes on and has removed that checkpoint; name others, or put a file `keep` in "
                "those to merge"
            ) from None
    print(f"{args.output}: {told(args, sources)}", flush=True)


if __name__ == "__main__":
    leave(main())
