#!/usr/bin/env python3
"""What a host has, as one line of JSON; launch/preflight.py runs this on every host."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipe.base.arguments import positive_int
from recipe.base.hardware import GIB

PACKAGES = ("torch", "deepspeed", "transformers")
GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
MIB = 1 << 20


def facts(folder: Path, mib: int, host: str) -> dict[str, Any]:
    """Facts of this host; writes and reads `mib` MiB in `folder`, under the name that the caller knows it by."""
    shm, memory = shutil.disk_usage("/dev/shm"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "hostname": socket.gethostname(),
        "time": time.time(),
        "versions": versions(),
        "gpus": gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory / GIB,
        "shm_free_gib": shm.free / GIB,
        "free_gib": shutil.disk_usage(folder).free / GIB,
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "infiniband": Path("/dev/infiniband").exists(),
        **disk_speed(folder / f"preflight.{host}", mib),
    }


def versions() -> dict[str, str]:
    versions_here = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions_here[name] = version(name)
        except PackageNotFoundError:
            versions_here[name] = "missing"
    import torch

    if torch.cuda.is_available():
        versions_here |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return versions_here


def gpus() -> list[dict[str, str]]:
    """One entry per GPU, as nvidia-smi tells it; none without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [dict(zip(GPU_FIELDS, row, strict=False)) for row in rows]


def disk_speed(path: Path, mib: int) -> dict[str, float]:
    """MB/s of writing a file to disk and of reading it back, past this host's page cache. Leaves the file."""
    block = os.urandom(MIB)
    begun = time.perf_counter()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for _ in range(mib):
            os.write(descriptor, block)
        os.fsync(descriptor)
        written = time.perf_counter()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(descriptor, 0, os.SEEK_SET)
        while os.read(descriptor, MIB):
            pass
        read = time.perf_counter()
    finally:
        os.close(descriptor)
    size = mib * MIB / 1e6
    return {"write_mb_per_s": size / (written - begun), "read_mb_per_s": size / (read - written)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--mib", required=True, type=positive_int)
    parser.add_argument("--host", required=True)
    args = parser.parse_args(argv)
    print(json.dumps(facts(args.folder, args.mib, args.host)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
