"""A model's parameters as one rank of an expert-parallel group holds them, module by module in the order they run.

Names and order are those of the engine's modules after AutoEP has replaced the MoE blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from recipe.base.model_shape import ModelShape


@dataclass(frozen=True, eq=False)
class Parameter:
    """One tensor; of an expert weight, this rank's experts alone. Equal to itself only, as tensors are."""

    name: str
    numel: int
    expert: bool = False  # partitioned over the expert-data-parallel group; all others over every rank

    def padded(self, ranks: int) -> int:
        """Elements of all partitions together when `ranks` share it: ZeRO-3 rounds each partition up."""
        return -(-self.numel // ranks) * ranks


@dataclass(frozen=True)
class Module:
    """A module whose hooks DeepSpeed runs; containers have no parameters of their own."""

    name: str
    parameters: tuple[Parameter, ...] = ()

    @cached_property
    def numel(self) -> int:
        return sum(p.numel for p in self.parameters)


@dataclass(frozen=True)
class Decoder:
    """Modules of a model in forward order: before, in, and after the decoder layers."""

    first: tuple[Module, ...]
    layers: tuple[tuple[Module, ...], ...]
    last: tuple[Module, ...]

    @cached_property
    def parameters(self) -> list[Parameter]:
        modules = (*self.first, *(m for layer in self.layers for m in layer), *self.last)
        return [p for module in modules for p in module.parameters]


@lru_cache(maxsize=64)
def decoder(shape: ModelShape, ep_size: int) -> Decoder:
    """The modules of one rank's model.

    Args:
        shape: of the whole model.
        ep_size: ranks that share a layer's routed experts; divides their number.
    """
    embedding = shape.vocab_size * shape.hidden_size
    return Decoder(
        (Module(""), Module("model"), _module("model.embed_tokens", embedding)),
        tuple(tuple(_layer(shape, ep_size, number)) for number in range(shape.num_hidden_layers)),
        (_module("model.norm", shape.hidden_size), _module("lm_head", embedding)),
    )


def _module(name: str, numel: int) -> Module:
    return Module(name, (Parameter(f"{name}.weight", numel),))


def _layer(shape: ModelShape, ep_size: int, number: int) -> Iterator[Module]:
    name, D, H = f"model.layers.{number}", shape.hidden_size, shape.head_dim
    query, key = shape.num_attention_heads * H, shape.num_key_value_heads * H
    yield Module(name)
    yield _module(f"{name}.input_layernorm", D)
    yield Module(f"{name}.self_attn")
    for part, out in (("q", query), ("k", key), ("v", key)):
        bias = (Parameter(f"{name}.self_attn.{part}_proj.bias", out),) if shape.attention_bias else ()
        weight = Parameter(f"{name}.self_attn.{part}_proj.weight", D * out)
        yield Module(f"{name}.self_attn.{part}_proj", (weight, *bias))
    if shape.use_qk_norm:
        yield _module(f"{name}.self_attn.q_norm", H)
        yield _module(f"{name}.self_attn.k_norm", H)
    yield _module(f"{name}.self_attn.o_proj", query * D)
    yield _module(f"{name}.post_attention_layernorm", D)
    yield Module(f"{name}.mlp")
    if number < shape.first_k_dense_replace:
        yield from _mlp(f"{name}.mlp", D * shape.intermediate_size)
        return
    yield Module(f"{name}.mlp.router")
    yield _module(f"{name}.mlp.router.gate", shape.n_routed_experts * D)
    if shape.n_shared_experts:  # while the rows of the others travel
        yield Module(f"{name}.mlp.shared_experts")
        yield from _mlp(f"{name}.mlp.shared_experts", D * shape.moe_intermediate_size * shape.n_shared_experts)
    expert = shape.n_routed_experts // ep_size * D * shape.moe_intermediate_size
    experts = tuple(Parameter(f"{name}.mlp.experts.{w}", expert, expert=True) for w in ("w1", "w2", "w3"))
    yield Module(f"{name}.mlp.experts", experts)


def _mlp(name: str, numel: int) -> Iterator[Module]:
    for part in ("gate", "up", "down"):
        yield _module(f"{name}.{part}_proj", numel)
