"""What Triton asks of a GPU's driver while it compiles, answered without one."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget


class NoGpu:
    """In place of Triton's driver: says what to compile for."""

    def __init__(self, capability: int = 80) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)
