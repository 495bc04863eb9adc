"""Peak arithmetic of the accelerators this recipe knows, for MFU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One GPU model. `bf16_flops` is dense (no 2:4 sparsity), FLOP/s."""

    name: str
    device_name_part: str  # as torch.cuda.get_device_name() spells it
    bf16_flops: float
    source: str


ACCELERATORS = (
    Accelerator("a100", "A100", 312e12, "NVIDIA A100 datasheet, 312 TFLOPS BF16 dense"),
    Accelerator("a800", "A800", 312e12, "NVIDIA A800 datasheet, as A100 with NVLink at 400 GB/s"),
    Accelerator("h100", "H100 80GB HBM3", 989.4e12, "NVIDIA H100 SXM datasheet, 1,979 TFLOPS BF16 with sparsity"),
    Accelerator("h800", "H800", 989.4e12, "NVIDIA H800 datasheet, as H100 SXM with NVLink at 400 GB/s"),
    Accelerator("h200", "H200", 989.4e12, "NVIDIA H200 datasheet, 1,979 TFLOPS BF16 with sparsity"),
)


def accelerator_of(device_name: str) -> Accelerator | None:
    """The known accelerator whose name occurs in `device_name`; None if there is none, and no MFU then."""
    return next((a for a in ACCELERATORS if a.device_name_part in device_name), None)
