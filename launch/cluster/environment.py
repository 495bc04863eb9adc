"""Which variables of this environment the ranks on other hosts are given."""

from __future__ import annotations

import os
import re
from pathlib import Path

from launch.cluster.quoting import pdsh_value
from recipe.base.errors import ConfigError, UserError

# Besides PYTHON*, and on GPUs NCCL*, LD_LIBRARY* and PATH*, which the deepspeed launcher forwards by itself.
FORWARDED = (
    "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE", "WANDB_PROJECT",
)  # fmt: skip


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What DeepSpeed 0.19.8 forwards by itself, in quotes that protect nothing but spaces.
_BY_DEEPSPEED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL", "LD_LIBRARY", "PATH")


def forwarded() -> dict[str, str]:
    """Variables to set on every host: those of `FORWARDED` that are set here, and the user's own .deepspeed_env files.

    Raises:
        UserError: a line of those files that is not NAME=VALUE, or a value that cannot be forwarded as it is.
    """
    values = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    sources = dict.fromkeys(values, "the environment")
    for path in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        if path.is_file():
            own = _read_env_file(path)
            values |= own
            sources |= dict.fromkeys(own, str(path))
    problems = [
        f"{name} of {sources[name]}: a value of several lines, or with spaces at an end, does not reach the other hosts; change it"
        for name, value in values.items()
        if value != value.strip() or not value.isprintable()
    ]
    if problems:
        raise UserError("\n".join(problems))
    return values


def deepspeed_env(*, by_pdsh: bool) -> str:
    """`forwarded` as the text of the launcher's DS_ENV_FILE, such that each value arrives as it is.

    Through pdsh's shells so does what DeepSpeed forwards by itself where its quotes would change it: the file's word is the
    last. Its other launchers have no shell between.

    Raises:
        UserError: as `forwarded`.
    """
    values = forwarded()
    if not by_pdsh:
        return "".join(f"{name}={value}\n" for name, value in values.items())
    for name, value in os.environ.items():
        by_deepspeed = name.startswith(_BY_DEEPSPEED) and _NAME.fullmatch(name) is not None
        if by_deepspeed and name not in values and pdsh_value(value) != value:
            if "\n" in value:
                raise UserError(f"{name}: a value of several lines does not reach the other hosts; change or unset it")
            values[name] = f"{Path.cwd()}:{value}" if name == "PYTHONPATH" else value  # DeepSpeed puts the folder first
    return "".join(f"{name}={pdsh_value(value)}\n" for name, value in values.items())


def _read_env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines; blank ones and comments are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as that") from None
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        name, separator, value = (part.strip() for part in line.partition("="))
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not separator or not _NAME.fullmatch(name):
            problems.append(f"line {number}: {line.strip()!r} is not NAME=VALUE")
        elif len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            problems.append(f"line {number}: the quotes would be a part of {name}'s value; remove them")
        values[name] = value
    if problems:
        raise ConfigError(path, problems)
    return values
