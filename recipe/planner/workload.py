"""What is planned: a model, a cluster, a ds_config, and the settings of the run that cost time or memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from recipe.base.ds_config import DsConfig
from recipe.base.hardware import Cluster
from recipe.base.model_shape import ModelShape
from recipe.base.settings import RunConfig
from recipe.planner.architecture import Architecture, architecture_of
from recipe.planner.kept import Kept, kept_of
from recipe.planner.timing.links import Group, group_of

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class RunFacts:
    """Of the run config."""

    seq_length: int = 4096
    recompute: str = "non_reentrant"
    loss_chunk_tokens: int = 2048
    sources: int = 2  # languages or sources whose loads are counted apart
    observed: bool = True  # the step's routing metrics are logged
    compile: bool = True  # as recipe/configs/runs/pretrain_30b.yaml has it
    imbalance: float | None = None  # assignments of the busiest rank over the mean, if measured
    averaged: bool = False  # a moving average of the weights is kept
    attention: str = "sdpa"
    document_attention: bool = False
    document_tokens: int | None = (
        None  # length of the document that a token is in, on the average; None: of the sequence
    )

    @property
    def masked(self) -> bool:
        """Whether attention has a mask of every token by every token: torch's keeps documents apart by one."""
        return self.document_attention and self.attention == "sdpa"

    @property
    def attended_tokens(self) -> int:
        """Of which a token sees half on the average: its sequence's, or its document's."""
        return (
            min(self.seq_length, self.document_tokens or self.seq_length)
            if self.document_attention
            else self.seq_length
        )


def facts_of(run: RunConfig, sources: int = 2) -> RunFacts:
    """What a run config says of them."""
    compute, data = run.compute, run.data
    return RunFacts(
        data.seq_length, compute.recompute, compute.loss_chunk_tokens, sources, compile=compute.compile,
        attention=compute.attention, document_attention=data.document_attention, averaged=run.checkpoint.average is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """A run on a cluster; `Plan.problems` says what cannot work."""

    shape: ModelShape
    cluster: Cluster
    ds: DsConfig
    run: RunFacts = RunFacts()

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.shape)

    @property
    def ranks(self) -> int:
        return self.ds.world_size

    @property
    def ep(self) -> int:
        return self.ds.expert_parallel.autoep_size

    @property
    def accumulation(self) -> int:
        return self.ds.gradient_accumulation_steps

    @property
    def tokens(self) -> int:
        """Of one rank's micro-batch."""
        return self.ds.train_micro_batch_size_per_gpu * self.run.seq_length

    @property
    def tokens_per_step(self) -> int:
        return self.ds.train_batch_size * self.run.seq_length

    @cached_property
    def kept(self) -> Kept:
        """What recomputed layers keep."""
        run = self.run
        return kept_of(self.shape, self.ds, recompute=run.recompute, seq_length=run.seq_length, compiled=run.compile)

    @property
    def exchange_parts(self) -> int:
        """Parts of an MoE layer's tokens whose exchanges run beside the experts of another."""
        return self.ds.recipe.exchange_parts

    @property
    def dtype(self) -> str:
        """Of parameters and activations."""
        return "bf16" if self.ds.bf16_enabled else "fp32"

    @property
    def element(self) -> int:
        """Bytes of a parameter and an activation."""
        return BYTES[self.dtype]

    @property
    def reduced_dtype(self) -> str:
        """In which gradients travel."""
        return self.ds.communication_data_type or self.dtype

    @property
    def accumulated_dtype(self) -> str:
        """In which gradients are added up over micro-batches."""
        stated = self.ds.data_types.grad_accum_dtype if self.ds.data_types else None
        return stated or self.dtype

    @property
    def world(self) -> Group:
        return group_of(self.cluster, self.ranks, 1)

    @property
    def expert_group(self) -> Group:
        """Ranks among which a layer's experts are spread."""
        return group_of(self.cluster, self.ep, 1)

    @property
    def expert_data_group(self) -> Group:
        """Ranks that hold the same experts."""
        return group_of(self.cluster, self.ranks // self.ep, self.ep)

    def partitions(self, *, expert: bool) -> int:
        return self.ranks // self.ep if expert else self.ranks
