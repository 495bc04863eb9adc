"""The accelerators this recipe knows: dense peaks, memory, links, and what an hour of one costs.

Every figure is of one GPU and one direction. Links inside a node are NVLink through switches; the network is that
of the vendor's reference node of 8 GPUs and can be replaced by what a cluster has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from recipe.base.errors import UserError

GIB = 1024**3
GPUS_PER_NODE = 8
NETWORK = re.compile(r"(?:(\d+)x)?(\d+)g", re.IGNORECASE)
RUN_EFFICIENCY = 0.92  # of kernels in a run over kernels alone: clocks under load, data, Python between steps; assumed
# The same since Hopper, whose matmuls run into the power limit. Published runs ask for 0.90 (fitted,
# benchmarks/results/planner_accuracy.json), the step measured on an H200 for 0.72 (benchmarks/results/train_step_h200.json).
HOPPER_RUN_EFFICIENCY = 0.84
# Fitted with Hopper's, to one published run, so mostly assumed: faster matmuls wait longer.
BLACKWELL_RUN_EFFICIENCY = 0.78


@dataclass(frozen=True)
class Accelerator:
    """One GPU model."""

    name: str
    device_names: tuple[str, ...]  # as torch.cuda.get_device_name() spells them, without NVIDIA before them
    bf16_flops: float  # FLOP/s, dense: no 2:4 sparsity
    memory_gib: float  # that CUDA reports
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float  # per direction, half of what datasheets add up
    network: str  # of a reference node, as `network_bytes_per_s` reads it
    matmul_efficiency: float  # share of the peak that a large bf16 cuBLAS matmul reaches
    attention_efficiency: float  # share of the peak of causal flash attention on long sequences, forward and backward
    usd_per_hour: float  # on demand, for estimates; replace it by what you pay
    source: str
    # Assumed of every GPU until a calibration file replaces them (recipe/planner/calibration.py).
    hbm_efficiency: float = 0.75  # of the datasheet's bandwidth, which streaming kernels of many small rows reach
    # Efficiency of AutoEP's grouped GEMM over a plain matmul's. MegaBlocks' reaches 98.6% of batched cuBLAS (arXiv
    # 2211.15841, section 6.3); AutoEP's is assumed lower until a GPU has measured it.
    grouped_gemm: float = 0.80
    attention_half: float = 1000.0  # sequence length at which flash attention reaches half of what it does on long ones
    launch_s: float = 6e-6  # between the starts of two kernels of an eager framework on one CPU thread
    host_read_s: float = 150e-6  # a value that the host waits for, such as split sizes; the GPU then waits for launches
    run_efficiency: float = RUN_EFFICIENCY

    @property
    def generation(self) -> str:
        """Which NVIDIA's names begin with the letter of."""
        return {"a": "Ampere", "h": "Hopper", "b": "Blackwell"}[self.name[0]]


_MATMUL_A100 = "large bf16 cuBLAS matmuls assumed at 250 TFLOP/s"
_MATMUL_H100 = "large bf16 cuBLAS matmuls assumed at 730 TFLOP/s, under its power limit"
_FLASH_A100 = "FlashAttention-2 at 50 to 73% of the peak (arXiv 2307.08691, abstract)"
_FLASH_H100 = "FlashAttention-2 at 35%, FlashAttention-3 forward at up to 75% of the peak (arXiv 2407.08608, abstract)"
_A100_PRICE, _H100_PRICE = (
    "Lambda on-demand list price 2025, 8x A100 SXM 80GB",
    "Lambda on-demand list price 2025, 8x H100 SXM",
)

# The network of a reference node is one NIC per GPU: ConnectX-6 (200 Gb/s) for Ampere, ConnectX-7 (400 Gb/s) after it.
ACCELERATORS = (
    Accelerator(
        "a100-40gb", ("A100-SXM4-40GB",), 312e12, 39.4, 1.555e12, 300e9, "8x200g", 0.80, 0.64, 1.29,
        f"NVIDIA A100 datasheet (2021): as 80GB with 1,555 GB/s; DGX A100; {_MATMUL_A100}; {_FLASH_A100}; {_A100_PRICE}, 40GB",
    ),
    Accelerator(
        "a100-80gb", ("A100-SXM4-80GB", "A100-SXM-80GB"), 312e12, 79.3, 2.039e12, 300e9, "8x200g", 0.80, 0.64, 1.79,
        f"NVIDIA A100 datasheet (2021): 312 TFLOPS BF16, 2,039 GB/s, NVLink 600 GB/s; DGX A100; {_MATMUL_A100}; {_FLASH_A100}; {_A100_PRICE}",
    ),
    Accelerator(
        "a800", ("A800-SXM4-80GB",), 312e12, 79.3, 2.039e12, 200e9, "8x200g", 0.80, 0.64, 1.79,
        f"NVIDIA A800 datasheet: as A100-80GB with NVLink at 400 GB/s; {_MATMUL_A100}; {_FLASH_A100}; priced as A100",
    ),
    Accelerator(
        "h100", ("H100 80GB HBM3",), 989.4e12, 79.6, 3.35e12, 450e9, "8x400g", 0.74, 0.58, 2.99,
        f"NVIDIA H100 SXM datasheet: 1,979 TFLOPS BF16 with sparsity, 3.35 TB/s, NVLink 900 GB/s; DGX H100; {_MATMUL_H100}; {_FLASH_H100}; {_H100_PRICE}",
        run_efficiency=HOPPER_RUN_EFFICIENCY,
    ),
    Accelerator(
        "h800", ("H800",), 989.4e12, 79.6, 3.35e12, 200e9, "8x400g", 0.74, 0.58, 2.99,
        f"DeepSeek-V3, arXiv 2412.19437 section 3.1, and NVIDIA H800 datasheet: as H100 SXM with NVLink at 400 GB/s; {_MATMUL_H100}; {_FLASH_H100}; priced as H100",
        run_efficiency=HOPPER_RUN_EFFICIENCY,
    ),
    Accelerator(
        "h200", ("H200",), 989.4e12, 139.8, 4.8e12, 450e9, "8x400g", 0.74, 0.58, 3.79,
        f"NVIDIA H200 datasheet: as H100 SXM with 141 GB at 4.8 TB/s; {_MATMUL_H100}; {_FLASH_H100}; assumed between H100 and B200",
        run_efficiency=HOPPER_RUN_EFFICIENCY,
    ),
    Accelerator(
        "b200", ("B200",), 2250e12, 178.4, 8.0e12, 900e9, "8x400g", 0.74, 0.58, 4.99,
        "NVIDIA DGX B200 datasheet: 36 PFLOPS BF16 with sparsity for 8, 64 TB/s, NVLink 14.4 TB/s; efficiencies assumed as H100; Lambda on-demand list price 2025, 8x B200",
        run_efficiency=BLACKWELL_RUN_EFFICIENCY,
    ),
)  # fmt: skip


def accelerator_of(device_name: str) -> Accelerator | None:
    """The known accelerator that CUDA calls `device_name`; None if there is none, and no MFU then.

    The whole name counts: PCIe and NVL cards, superchips and MIG slices have the name of another in theirs, and other
    peaks, memory and links.
    """
    name = device_name.strip().removeprefix("NVIDIA ")
    return next((accelerator for accelerator in ACCELERATORS if name in accelerator.device_names), None)


def accelerator_named(name: str) -> Accelerator:
    """The accelerator called `name`, such as a100-80gb.

    Raises:
        UserError: there is none; nothing is guessed.
    """
    by_name = {a.name: a for a in ACCELERATORS}
    if name not in by_name:
        raise UserError(f"--gpu {name} is not known; choose one of {', '.join(by_name)}")
    return by_name[name]


def network_bytes_per_s(text: str) -> float:
    """Bytes/s per direction between nodes, of one node: `400g` is 400 Gb/s for the whole node, `8x200g` eight NICs of 200.

    Raises:
        UserError: `text` is neither.
    """
    match = NETWORK.fullmatch(text)
    if match is None or int(match[2]) == 0 or match[1] == "0":
        raise UserError(f"--interconnect {text} is not understood; give Gb/s per node as 400g, or per NIC as 8x200g")
    return int(match[1] or 1) * int(match[2]) * 1e9 / 8


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind in nodes of eight, and the network between the nodes."""

    accelerator: Accelerator
    gpus: int
    network_bytes_per_s: float  # of a node, per direction

    @property
    def gpus_per_node(self) -> int:
        return min(self.gpus, GPUS_PER_NODE)

    @property
    def nodes(self) -> int:
        return -(-self.gpus // GPUS_PER_NODE)


def cluster_of(gpu: str, gpus: int, interconnect: str | None) -> Cluster:
    """The cluster that a command line describes.

    Raises:
        UserError: unknown GPU or network, or more than one node that is not full.
    """
    accelerator = accelerator_named(gpu)
    if gpus < 1 or (gpus > GPUS_PER_NODE and gpus % GPUS_PER_NODE):
        raise UserError(f"--gpus {gpus} does not fill nodes of {GPUS_PER_NODE}; give a multiple of {GPUS_PER_NODE}")
    return Cluster(accelerator, gpus, network_bytes_per_s(interconnect or accelerator.network))
