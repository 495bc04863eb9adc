"""Checkpoints on disk: which are whole, whether one is intact, and which are kept. No torch: a supervisor reads them too.

checkpoints/
  step_00000100/           committed: renamed into place when all of it is on disk
    manifest.json          sizes and SHA-256 of all files, topology, training state, configs, versions
    keep                   if there: never removed (the file says why); make one to keep a checkpoint
  step_00000100.universal/ the same state for any number of ranks, made by launch/reshard.py
  step_00000200.partial/   being written, or left by a kill
  step_00000150.damaged/   set aside: a file does not have its checksum
  step_00000160.suspect/   set aside: the steps after it were not finite, or a rank computed other bits before it
  step_00000180.rewound/   set aside: of a spike that the run went back before
  step_00000190.left/      set aside: the run went on from an older one by its name
  latest                   name of the newest, for people and other tools
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError
from recipe.base.files import flush_folder, sha256, write_text
from recipe.base.output_paths import glob_problem

SCHEMA, VERSION = "recipe.checkpoint", 3
MANIFEST, KEEP = "manifest.json", "keep"
_NAME = re.compile(r"step_(\d{8,})")


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def topology(*, world_size: int, autoep_size: int, zero_stage: int) -> dict[str, int]:
    """What a checkpoint's files depend on."""
    return {"world_size": world_size, "autoep_size": autoep_size, "zero_stage": zero_stage}


def topology_of(ds: DsConfig) -> dict[str, int]:
    """What the checkpoints of a ds_config depend on."""
    return topology(
        world_size=ds.world_size,
        autoep_size=ds.expert_parallel.autoep_size,
        zero_stage=ds.zero_optimization.stage,
    )


def described(of: dict[str, int]) -> str:
    """A topology in words."""
    return f"{of['world_size']} ranks, expert parallel size {of['autoep_size']}, ZeRO-{of['zero_stage']}"


def check_convertible(checkpoint: Path, written: dict[str, int], here: dict[str, int]) -> None:
    """Raises UserError if a checkpoint of one topology cannot be loaded with another even in its universal form."""
    if written["zero_stage"] != here["zero_stage"]:
        raise UserError(
            f"{checkpoint} was written with {described(written)} and cannot be loaded with {described(here)}: DeepSpeed's "
            "universal checkpoints do not change the ZeRO stage; use a ds_config of the same stage"
        )


def check_loadable(checkpoint: Path, written: dict[str, int], here: dict[str, int]) -> None:
    """Raises UserError if a checkpoint of one topology cannot be loaded with another: for good, or until it is resharded."""
    if written == here:
        return
    check_convertible(checkpoint, written, here)
    if (state := universal_state(checkpoint)) != "ready":
        stale = ", and its universal form was made from another checkpoint of that name" if state == "stale" else ""
        raise UserError(
            f"{checkpoint} was written with {described(written)} and this run has {described(here)}{stale}; first run "
            f"python launch/reshard.py --run {checkpoint.parent.parent} --checkpoint {checkpoint.name}"
        )


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, f"{checkpoint} is no checkpoint"
    return int(match[1])


def complete(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    checkpoints = [p.parent for p in folder.glob(f"step_*/{MANIFEST}") if _NAME.fullmatch(p.parent.name)]
    return sorted(checkpoints, key=step_of)


def find(folder: Path, name: str | None) -> Path:
    """A committed checkpoint by its name, also without leading zeros; None: the newest.

    Raises:
        UserError: there is none, or it is below a folder from which DeepSpeed cannot load.
    """
    if (problem := glob_problem(folder)) is not None:
        raise UserError(problem)
    checkpoints = {path.name: path for path in complete(folder)}
    if not checkpoints:
        raise UserError(f"{folder} has no complete checkpoint; give a run that has saved one")
    if name is None:
        return list(checkpoints.values())[-1]
    step = re.fullmatch(r"step_(\d{1,18})", name)
    whole = checkpoint_name(int(step[1])) if step else name
    if whole not in checkpoints:
        raise UserError(f"{folder} has no checkpoint '{name}'; it has {', '.join(checkpoints)}")
    return checkpoints[whole]


def no_checkpoint_left(folder: Path, step: int) -> UserError:
    """A run has committed checkpoints, the last after `step`, and none is there: it must not begin anew in silence."""
    return UserError(
        f"{folder} has no complete checkpoint, but the run has saved some, the last after step {step:,}; "
        "restore the folder, or begin anew in another run_dir"
    )


def universal_of(checkpoint: Path) -> Path:
    """Where the universal form of a checkpoint is, if it has been made."""
    return checkpoint.with_name(checkpoint.name + ".universal")


def digest(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's manifest, which has those of all its files: what a derived form is known by."""
    return sha256(checkpoint / MANIFEST)


def universal_state(checkpoint: Path) -> Literal["none", "stale", "ready"]:
    """Whether the universal form of a checkpoint exists, and was made from this very checkpoint."""
    universal = universal_of(checkpoint)
    if not (universal / MANIFEST).exists():
        return "none"
    return "ready" if read_manifest(universal).get("made_from") == digest(checkpoint) else "stale"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Raises UserError if the manifest cannot be read or is of another version."""
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); resume from another checkpoint") from None
    if not isinstance(manifest, dict) or (manifest.get("schema"), manifest.get("version")) != (SCHEMA, VERSION):
        raise UserError(f"{path} is not of {SCHEMA} version {VERSION}; resume from another checkpoint")
    return manifest


def damage(checkpoint: Path, files: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """What is wrong with some of a checkpoint's files, by its manifest's facts of them; one sentence each."""
    problems = []
    for name, facts in files:
        path = checkpoint / name
        if not path.exists():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != facts["bytes"]:
            problems.append(f"{path} has {path.stat().st_size:,} bytes, not {facts['bytes']:,}")
        elif sha256(path) != facts["sha256"]:
            problems.append(f"{path} does not have its checksum")
    return problems


def set_aside(checkpoint: Path, why: str) -> Path:
    """Rename a checkpoint and its universal form so that nobody resumes from it; `why` becomes the suffix.

    Nothing is lost: where the name is taken, a number is added.
    """
    names = (f"{checkpoint.name}.{why}{number or ''}" for number in itertools.count())
    target = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    os.rename(checkpoint, target)
    if universal_of(checkpoint).exists():
        os.rename(universal_of(checkpoint), universal_of(target))
    latest = checkpoint.with_name("latest")
    if latest.exists() and latest.read_text(encoding="utf-8").strip() == checkpoint.name:
        left = complete(checkpoint.parent)
        if left:
            write_text(latest, left[-1].name)
        else:
            latest.unlink()
    flush_folder(checkpoint.parent)
    return target


def expendable(
    folder: Path, keep_last: int, keep_every_steps: int | None, *, good_until: int = 0, spare: Path | None = None
) -> list[Path]:
    """Checkpoints that retention lets go, oldest first: neither among the last, nor every n-th, nor marked `keep`.

    Args:
        good_until: the step of the last good probe; the last one up to it stays, since silent corruption goes back to it.
        spare: one that stays, too.
    """
    committed = complete(folder)
    spared = {spare, *[path for path in committed if step_of(path) <= good_until][-1:]}
    return [
        path
        for path in committed[:-keep_last]
        if path not in spared
        and not (keep_every_steps and step_of(path) % keep_every_steps == 0)
        and not kept_for(path)
    ]


def kept_for(checkpoint: Path) -> str | None:
    """Why a checkpoint is marked to be kept, in a line; None if it is not."""
    mark = checkpoint / KEEP
    return (mark.read_text(encoding="utf-8", errors="replace").strip() or "kept") if mark.exists() else None


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint and its universal form; the manifest first, so that a kill leaves none that looks whole."""
    for path in (universal_of(checkpoint), checkpoint):
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what kills have left: partial checkpoints, and folders whose removal was cut short."""
    for path in folder.glob("step_*"):
        partial = _NAME.fullmatch(path.name.removesuffix(".partial")) and path.name.endswith(".partial")
        if partial or (_NAME.fullmatch(path.name) and not (path / MANIFEST).exists()):
            shutil.rmtree(path, ignore_errors=True)
