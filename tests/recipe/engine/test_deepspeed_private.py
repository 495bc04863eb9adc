"""Each name of DeepSpeed and torch that is not public is what the recipe takes it for; a new version of either fails here first.

That they do what is hoped for is shown where they are used: by the routing oracle, the fingerprints' and export's engines.
"""

from __future__ import annotations

import inspect
import logging
import sys
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.module_inject import auto_ep_layer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups, mixed_precision_linkage
from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment
from torch.distributed.distributed_c10d import _get_default_timeout

from recipe.engine import deepspeed_private as private
from tests.conftest import ROOT


def names(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def mentions(owner: object, *texts: str) -> None:
    source = inspect.getsource(owner)
    assert [text for text in texts if text not in source] == []


def test_the_version_is_the_one_whose_names_these_are():
    assert version("deepspeed") == "0.19.8"
    assert "\n    deepspeed==0.19.8\n" in (ROOT / "setup.cfg").read_text()


def test_autoep_builds_its_layers_of_two_classes_that_are_looked_up_by_name():
    router, layer = private.TokenChoiceTopKRouter, private.AutoEPMoELayer
    assert names(router.__init__) == [
        "self", "dim", "num_experts", "num_expert_groups", "num_limited_groups", "top_k", "score_func", "route_norm",
        "route_scale", "gate_bias", "group_score_func",
    ]  # fmt: skip
    assert names(router.forward) == ["self", "x", "expert_bias"]
    assert names(layer._forward) == ["self", "hidden_states"]
    mentions(layer, "TokenChoiceTopKRouter(", "GroupedExperts(", "self.experts(", "self.async_split_plan", "self.folding_group_handles",
             "self.ep_group_name", "self.num_local_experts", "self.ep_rank", "e_score_correction_bias")  # fmt: skip
    with private.replaced_autoep_classes(torch.nn.Linear, torch.nn.Bilinear, torch.nn.Identity):
        assert auto_ep_layer.TokenChoiceTopKRouter is torch.nn.Linear
        assert auto_ep_layer.AutoEPMoELayer is torch.nn.Bilinear
        assert auto_ep_layer.GroupedExperts is torch.nn.Identity
    assert (auto_ep_layer.TokenChoiceTopKRouter, auto_ep_layer.AutoEPMoELayer) == (router, layer)
    assert auto_ep_layer.GroupedExperts is private.GroupedExperts


def test_autoeps_experts_and_their_grouped_gemm():
    experts = private.GroupedExperts(dim=8, hidden_dim=16, num_experts=2, use_grouped_mm=False)
    assert [tuple(weight.shape) for weight in (experts.w1, experts.w3, experts.w2)] == [
        (2, 16, 8),
        (2, 16, 8),
        (2, 8, 16),
    ]
    assert (experts.use_grouped_mm, experts.use_triton_grouped_mm, experts.gate_up_impl) == (False, False, "separate")
    assert names(experts.forward) == ["x", "num_tokens_per_expert"]
    group_gemm = import_module("deepspeed.ops.triton_ops.group_gemm_triton")  # its package has a function of this name
    assert names(group_gemm._group_gemm) == ["mat_a", "mat_b", "offs"]
    assert names(group_gemm._grouped_dw) == ["mat_a", "grad_out", "offs", "E"]
    counts = private.count_tokens_per_expert(torch.tensor([[0, 2], [2, 1]]), 4)
    assert counts.tolist() == [1, 1, 2, 0]


def test_experts_go_into_parameter_groups_of_their_own():
    expert, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    expert.allreduce, expert.group_name = False, "ep_size_2"
    groups_of = private.split_moe_groups([{"params": [expert, other], "weight_decay": 0.5, "name": "decayed"}])
    assert [([id(p) for p in g["params"]], g["weight_decay"]) for g in groups_of] == [
        ([id(other)], 0.5),
        ([id(expert)], 0.5),
    ]


def test_a_replica_of_experts_is_known_by_its_rank(monkeypatch):
    assert names(groups._get_expert_data_parallel_rank) == ["group_name"]
    mentions(groups._get_expert_data_parallel_rank, "dist.get_rank(group=")
    for rank, first in ((0, True), (1, False)):
        monkeypatch.setattr(groups, "_get_expert_data_parallel_rank", lambda name, rank=rank: rank)
        assert private.is_first_expert_replica(SimpleNamespace(ep_group_name="ep_size_2")) is first


def test_zero3_gives_parameters_what_their_partitions_are_known_by():
    mentions(Init, "param.ds_id = ", "param.ds_shape = ", "param.ds_numel = ", "param.ds_tensor", "ds_tensor.ds_numel",
             "param.ds_process_group = ", "param.ds_persist")  # fmt: skip
    mentions(
        DeepSpeedZeroOptimizer_Stage3, "self.fp16_groups", "self.fp32_partitioned_groups_flat", "self._global_grad_norm = ",
        "self.grad_partitions_flat_buffer", "self.ipg_buckets", ".buffer", "self.optimizer = ",
    )  # fmt: skip
    mentions(DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions, "fp32_partitioned_groups_flat.append")


@pytest.mark.parametrize(
    ("numel", "rank", "expected"), [(10, 0, (0, 4)), (10, 2, (8, 2)), (10, 3, (12, 0))], ids=["whole", "end", "beyond"]
)
def test_a_partition_is_its_part_of_the_parameter_and_padding(numel, rank, expected, monkeypatch):
    monkeypatch.setattr(private.dist, "get_rank", lambda group: {"of all": rank}[group])
    part = torch.arange(4.0)
    part.ds_numel = 4
    parameter = torch.nn.Parameter(torch.empty(0))
    values = {"ds_id": 1, "ds_tensor": part, "ds_numel": numel, "ds_shape": (2, 5), "ds_process_group": "of all"}
    for name, value in values.items():
        setattr(parameter, name, value)
    partition, begin, size = private.padded_partition(parameter)
    assert (partition.tolist(), (begin, size)) == ([0, 1, 2, 3], expected)
    assert (private.is_partitioned(parameter), private.full_size(parameter), private.full_shape(parameter)) == (
        True, numel, (2, 5),
    )  # fmt: skip
    engine = SimpleNamespace(
        zero_optimization_stage=lambda: 3,
        optimizer=SimpleNamespace(fp16_groups=[[parameter]], fp32_partitioned_groups_flat=[torch.ones(4)]),
    )
    master, first = private.master_parts(engine)[parameter]
    assert (first, len(master)) == expected


def test_other_optimizers_map_parameters_to_their_masters():
    mentions(mixed_precision_linkage, "lp_param._hp_mapping = get_hp_fragment_mapping(")
    assert {"lp_fragment_address", "hp_fragment"} <= set(tensor_fragment.__dataclass_fields__)
    assert list(fragment_address.__dataclass_fields__) == ["numel", "start"]
    mentions(DeepSpeedZeroOptimizer, "self.bit16_groups_flat", "self.single_partition_of_fp32_groups", "self.optimizer = ",
             "self._global_grad_norm = ", "_hp_mapping = None")  # fmt: skip
    mentions(BF16_Optimizer, "self.bf16_groups_flat", "self.fp32_groups_flat_partition", "self.fp32_groups_gradients_flat",
             "self.optimizer = ", "_hp_mapping = None")  # fmt: skip
    mentions(inspect.getmodule(BF16_Optimizer), "_global_grad_norm")
    module = torch.nn.Linear(3, 2)
    fragment = SimpleNamespace(hp_fragment=torch.ones(4), lp_fragment_address=SimpleNamespace(start=2))
    module.weight._hp_mapping, module.bias._hp_mapping = fragment, None
    parts = private.master_parts(SimpleNamespace(zero_optimization_stage=lambda: 1, module=module))
    assert (parts[module.weight][0].tolist(), parts[module.weight][1]) == ([1, 1, 1, 1], 2)
    assert parts[module.bias][0].numel() == 0
    assert private.master_parts(SimpleNamespace(zero_optimization_stage=lambda: 0, module=torch.nn.Linear(1, 1))) == {}


def test_the_optimizer_below_and_the_norm_of_its_step():
    below = SimpleNamespace()
    engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=below, _global_grad_norm=2.5))
    assert private.torch_optimizer(engine) is below
    assert private.gradient_norm(engine) == 2.5
    engine = SimpleNamespace(optimizer=below)  # without ZeRO
    assert (private.torch_optimizer(engine), private.gradient_norm(engine)) == (below, None)


def test_what_an_engine_reads_of_its_config():
    mentions(DeepSpeedConfig, "self.load_universal_checkpoint = ", "self.expert_parallel_config = ")
    mentions(DeepSpeedEngine, "self._config.load_universal_checkpoint")
    engine = SimpleNamespace(
        _config=SimpleNamespace(load_universal_checkpoint=False, expert_parallel_config=SimpleNamespace(autoep_size=2))
    )
    assert private.autoep_size(engine) == 2
    with private.loading_universal(engine):
        assert engine._config.load_universal_checkpoint
    assert not engine._config.load_universal_checkpoint


def test_an_engine_saves_by_the_writer_that_it_is_given():
    writer = private.TorchCheckpointEngine
    assert names(writer.save) == ["self", "state_dict", "path"]
    assert names(writer.create) == names(writer.commit) == ["self", "info"]
    assert writer().preserves_storage_sharing() is True
    mentions(DeepSpeedEngine.save_checkpoint, "self.checkpoint_engine.create(", "self.checkpoint_engine.commit(")
    mentions(DeepSpeedEngine._save_checkpoint, "self.checkpoint_engine.save(")
    engine, other = SimpleNamespace(checkpoint_engine=writer()), writer()
    private.save_by(engine, other)
    assert engine.checkpoint_engine is other


def test_the_classes_of_checkpoints_have_the_names_that_pickles_say():
    assert [f"{c.__module__}.{c.__qualname__}" for c in private.STATE_CLASSES] == [
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.utils.tensor_fragment.fragment_address",
    ]  # fmt: skip


def test_the_conversion_is_given_what_its_own_parser_gives(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(ds_to_universal, "main", given.append)
    private.convert_to_universal(tmp_path / "a", tmp_path / "b", workers=3)
    words = ["--input_folder", tmp_path / "a", "--output_folder", tmp_path / "b"]
    words += ["--num_extract_workers", 3, "--num_merge_workers", 3]
    monkeypatch.setattr(sys, "argv", ["ds_to_universal", *map(str, words)])
    assert given == [ds_to_universal.parse_arguments()]


def test_groups_made_meanwhile_have_the_timeout():
    mentions(_get_default_timeout, "return default_pg_timeout", "return default_pg_nccl_timeout")
    before = _get_default_timeout("gloo")
    with private.default_group_timeout(timedelta(seconds=7)):
        assert _get_default_timeout("gloo") == timedelta(seconds=7)
        assert torch.distributed.distributed_c10d.default_pg_nccl_timeout == timedelta(seconds=7)
    assert _get_default_timeout("gloo") == before


def test_the_cpu_op_and_the_folder_in_which_torch_builds_it(tmp_path, monkeypatch):
    builder = private.cpu_op_builder()
    assert builder.NAME == "deepspeed_shm_comm"
    assert names(builder.load) == ["verbose"]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert private.extension_folder("an_op") == tmp_path / "an_op"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert private.cpu_op_builder() is None


def test_the_logger_the_dispatch_mode_and_the_store_without_ranks():
    before = deepspeed.utils.logger.level
    private.log_level(logging.ERROR)
    assert deepspeed.utils.logger.level == logging.ERROR
    private.log_level(before)
    seen = []

    class Mode(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.namespace)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1
    assert "aten" in seen
    assert isinstance(private.fake_store(), torch.distributed.Store)


def test_names_that_others_take_are_there():
    assert [name for name in private.__all__ if not hasattr(private, name)] == []
