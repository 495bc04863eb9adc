#!/usr/bin/env python3
"""What a measurement depends on: GPU, driver, versions, commit; the environment of its processes; packages from wheels.

As a script it prints what torch says of this machine as JSON: the command itself must hold no memory of the GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from recipe.base.errors import CORE, UserError  # noqa: E402

# Modules without which nothing can be measured: those of every use, and those that `import deepspeed` needs of 0.19.8.
NEEDED = (*CORE, "torch", "deepspeed", "einops", "hjson", "msgpack", "psutil", "transformers", "tokenizers", "safetensors",
          "pytest")  # fmt: skip
PACKAGES = ("torch", "triton", "deepspeed", "transformers", "flash-attn", "megatron-core", "transformer-engine", "liger-kernel",
            "numpy", "pytest")  # fmt: skip
# Not for the children: places that torchrun, the deepspeed launcher and srun give, since one process measures, whoever has
# started it; what rounds fp32 to TF32, as NVIDIA's containers do; and what puts options before those of pytest.
NOT_PASSED_ON = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "GROUP_RANK",
                 "MASTER_ADDR", "MASTER_PORT", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTEST_ADDOPTS", "PYTEST_PLUGINS")  # fmt: skip
FACTS_LIMIT_S = 180.0


def check_started_once() -> None:
    """Raises UserError in all but the first of several processes that srun has started."""
    task, tasks = os.environ.get("SLURM_PROCID", "0"), os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if task != "0":
        raise UserError(
            f"srun has started this {tasks} times, and one process measures one GPU; start it with srun -n 1"
        )


@contextmanager
def packages_of(wheels: Path | None) -> Iterator[Path | None]:
    """Have the wheels of a folder installed for this process and its children, in a folder that is removed at the end."""
    if wheels is None:
        yield None
        return
    names = sorted({file.name.split("-")[0] for file in wheels.glob("*.whl")})
    if not names:
        raise UserError(f"--wheels {wheels} holds no .whl file; fill it with `pip wheel` or `pip download`")
    with tempfile.TemporaryDirectory(prefix="gpu-wheels-") as target:
        # A container's constraints, as NVIDIA's have, would refuse wheels that are not of its versions.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        done = subprocess.run(
            pip_words(wheels, names, target), capture_output=True, text=True, env={**env, "PIP_CONFIG_FILE": os.devnull}
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise UserError(f"--wheels {wheels} cannot be installed for {sys.executable}: {' '.join(lines[-2:])[:500]}")
        sys.path.insert(1, target)
        importlib.invalidate_caches()
        try:
            yield Path(target)
        finally:
            sys.path.remove(target)


def pip_words(wheels: Path, names: list[str], target: str) -> list[str]:
    """By name, so that of wheels for several Pythons pip takes the fitting one."""
    return [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir",
            "--no-index", "--no-deps", "--no-compile", "--find-links", str(wheels), "--target", target, *names]  # fmt: skip


def check_packages() -> None:
    """Raises UserError if a package is not there without which nothing can be measured."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"not installed for {sys.executable}: {', '.join(missing)}; run `make install` and start this with `make gpu`, "
            "or give a folder with wheels of them: --wheels FOLDER"
        )
    for name in CORE:  # they take no time, and pydantic finds out here that pydantic_core is of another version
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(
                f"{name} cannot be imported by {sys.executable}: {error}; install it anew, or give --wheels"
            ) from error


def environment(output: Path, target: Path | None, small: bool) -> dict[str, str]:
    """Of all children: one GPU or none, no network, and one folder of compiled kernels."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    first = [str(target)] if target is not None else []
    env["PYTHONPATH"] = os.pathsep.join([*first, str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    if target is not None:
        env["PATH"] = os.pathsep.join([str(target / "bin"), env.get("PATH", os.defpath)])
    # The home folder may be read-only; a log has each line at once, and where a process was when a signal ended it.
    env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(output / "inductor"), "TRITON_CACHE_DIR": str(output / "triton"),
            "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # fmt: skip
    if small:
        # Functions are traced and differentiated, and left at that: a C++ compiler takes a minute for them.
        traced = {"TORCH_COMPILE_OVERRIDE_BACKENDS": ">=0:aot_eager"}
        return env | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} | traced
    if "PYTORCH_CUDA_ALLOC_CONF" not in env:  # its older name
        env.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as launch/env.sh
    # The first of those that Slurm or the user gives, else the first.
    return env | {"CUDA_VISIBLE_DEVICES": env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0], "DS_ACCELERATOR": "cuda"}


def facts_of(words: list[str], env: dict[str, str]) -> dict[str, Any]:
    """What a child says of the machine; it sees all GPUs, so that the user learns which one is taken."""
    visible = dict(env)
    if env["DS_ACCELERATOR"] != "cpu":
        del visible["CUDA_VISIBLE_DEVICES"]
        visible |= {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    try:
        done = subprocess.run(words, env=visible, cwd=ROOT, capture_output=True, text=True, timeout=FACTS_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"torch has not answered within {FACTS_LIMIT_S:.0f} s; look at nvidia-smi, and whether the file system is slow"
        ) from None
    if done.returncode:
        raise UserError(f"torch cannot be asked for its GPU: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    installed = {}
    for name in packages:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def driver() -> str | None:
    """The driver's version: as nvidia-smi says it, which a container may lack, else as the kernel's module does."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit()), None)


def source() -> dict[str, Any]:
    """The commit of this folder, and whether it has changes; None where it is no checkout or git is not there."""
    try:
        place, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30, check=True
            ).stdout
            for words in (("rev-parse", "--show-toplevel", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    top, commit = place.splitlines()
    if Path(top).resolve() != ROOT:  # a copy within a checkout of something else
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes.strip())}


def has_compiler() -> bool:
    """Whether Triton finds a C compiler, which it needs for each kernel's launcher (triton/runtime/build.py)."""
    return any(shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang") if name)


def device_facts() -> dict[str, Any]:
    import torch

    common = {"python": platform.python_version(), "packages": versions(PACKAGES), "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return {**common, "device": f"{platform.machine()}, {os.cpu_count()} cores", "gpus": 0, "no_gpu": _why_no_gpu(),
                "memory_gib": None, "free_gib": None, "capability": None, "driver": driver(), "nccl": None}  # fmt: skip
    free, total = torch.cuda.mem_get_info(0)
    return {**common, "device": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count(), "no_gpu": None,
            "memory_gib": total / 2**30, "free_gib": free / 2**30,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(0))), "driver": driver(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None}  # fmt: skip


def _why_no_gpu() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        return str(error).splitlines()[0]
    return "no GPU is visible"


if __name__ == "__main__":
    print(json.dumps(device_facts()))
