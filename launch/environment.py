"""Which variables of this environment the ranks on other hosts are given."""

from __future__ import annotations

import os
from pathlib import Path

# Besides PYTHON*, and on GPUs NCCL*, LD_LIBRARY* and PATH*, which the deepspeed launcher forwards by itself.
FORWARDED = (
    "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR",
)  # fmt: skip


def forwarded() -> dict[str, str]:
    """Variables to set on every host: those of `FORWARDED` that are set here, and the user's own .deepspeed_env files."""
    found = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    for path in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                name, separator, value = line.partition("=")
                if separator:
                    found[name.strip()] = value.strip()
    return found


def write_deepspeed_env(path: Path) -> None:
    """Write `forwarded` as a file for the launcher's DS_ENV_FILE."""
    path.write_text("".join(f"{name}={value}\n" for name, value in forwarded().items()), encoding="utf-8")
