"""Accelerators and clusters as a command line names them."""

from __future__ import annotations

import pytest

from recipe.base.errors import UserError
from recipe.base.hardware import ACCELERATORS, accelerator_named, accelerator_of, cluster_of, network_bytes_per_s


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda a: a.name)
def test_every_accelerator_states_its_sources_and_is_plausible(accelerator):
    assert len(accelerator.source) > 40
    assert 100e12 < accelerator.bf16_flops < 3e15
    assert 1e12 < accelerator.hbm_bytes_per_s < 10e12
    assert 100e9 < accelerator.nvlink_bytes_per_s < 1e12
    assert 0.3 < accelerator.attention_efficiency < accelerator.matmul_efficiency < 0.9
    assert network_bytes_per_s(accelerator.network) > 100e9


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("A100-SXM4-40GB", "a100-40gb"),  # drivers before 470 did not say NVIDIA
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A800-SXM4-80GB", "a800"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H800", "h800"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_cuda_gives_it(device, name):
    assert accelerator_of(device).name == name


@pytest.mark.parametrize(
    "device",
    [
        *("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM-64GB", "NVIDIA A100X"),
        *("NVIDIA A800 80GB PCIe", "NVIDIA A800 40GB Active", "NVIDIA A800-SXM4-40GB"),
        *("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA GH100", "NVIDIA H100 80GB HBM2e"),
        *("NVIDIA H800 PCIe", "NVIDIA H800 NVL", "NVIDIA H200 NVL", "NVIDIA H20", "NVIDIA GB200", "NVIDIA GB300"),
        *("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA H200 MIG 1g.18gb"),
        *("Tesla V100-SXM2-32GB", "NVIDIA L40S", "NVIDIA A10", "cpu", ""),
    ],
)
def test_a_gpu_whose_name_only_resembles_a_known_ones_is_unknown(device):
    assert accelerator_of(device) is None


def test_no_two_accelerators_have_a_device_name_in_common():
    names = [name for accelerator in ACCELERATORS for name in accelerator.device_names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("text", "gbit"), [("400g", 400), ("8x200g", 1600), ("200G", 200)])
def test_a_network_is_of_a_node_or_of_its_nics(text, gbit):
    assert network_bytes_per_s(text) == gbit * 1e9 / 8


@pytest.mark.parametrize("text", ["fast", "400", "0g", "0x400g", "8x", "-1g"])
def test_a_network_that_is_not_understood_is_refused(text):
    with pytest.raises(UserError, match="give Gb/s per node as 400g"):
        network_bytes_per_s(text)


def test_an_unknown_gpu_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="a100-80g is not known; choose one of a100-40gb, a100-80gb, a800"):
        accelerator_named("a100-80g")


def test_nodes_must_be_full():
    assert cluster_of("h100", 4, None).nodes == 1
    with pytest.raises(UserError, match="multiple of 8"):
        cluster_of("h100", 12, None)
