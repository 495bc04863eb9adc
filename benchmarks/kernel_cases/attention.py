"""Causal attention with a model's heads, called as the recipe's layers call it.

Legend: B sequences, H heads, S positions, d width of a head.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.kernel_cases.measuring import (
    BOTH,
    CUDA,
    DEVICE,
    DTYPE,
    FORWARD,
    PASSES,
    Case,
    NotPossible,
    Sizes,
    pass_of,
    random,
    timed,
)
from recipe.base.settings import Compute

BACKWARD_MATMULS = (
    5  # of flash attention, whose scores are computed again (arXiv 2307.08691, section 3.1); the forward pass has 2
)
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 8)  # of a row, that its documents have


def attention_flops(documents: Sequence[int], heads: int, head_dim: int, passes: str = FORWARD) -> float:
    """Of causal attention inside documents of these lengths: half of each document's scores, which is what flash computes."""
    scores = heads * sum(length**2 for length in documents) / 2
    matmuls = 2 + (BACKWARD_MATMULS if passes == BOTH else 0)
    return matmuls * 2.0 * scores * head_dim


def attention_bytes(tokens: int, heads: int, kv_heads: int, head_dim: int, passes: str = FORWARD) -> float:
    """Queries, keys, values and outputs once; backward those again, and the gradients of all four."""
    elements = tokens * head_dim * (2 * heads + 2 * kv_heads)
    return DTYPE.itemsize * elements * (3 if passes == BOTH else 1)


def document_lengths(seq_length: int, several: bool) -> list[int]:
    return [int(share * seq_length) for share in SHARES] if several else [seq_length]


def attention_call(sizes: Sizes, implementation: str, batch: int, lengths: list[int]) -> tuple[Any, list[torch.Tensor]]:
    """The call of `Attention.forward` (recipe/model/modeling.py) after its rotary positions, and its inputs."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from recipe.model.modeling import eager_attention

    shape, S = sizes.shape, sum(lengths)
    mask, kwargs = documents_apart(sizes, implementation, batch, lengths)
    if "cu_seq_lens_q" in kwargs:  # rows joined to one, as `for_attention` joins them
        batch, S = 1, batch * S
    heads, kv_heads, d = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    query, key = (random(batch, h, S, d, requires_grad=True) for h in (heads, kv_heads))
    value_BSHd = random(batch, S, kv_heads, d, requires_grad=True)  # not rotated, so as its projection wrote it
    module = SimpleNamespace(
        num_key_value_groups=heads // kv_heads, is_causal=True, training=True,
        config=SimpleNamespace(_attn_implementation=implementation),
    )  # fmt: skip
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)

    def act() -> torch.Tensor:
        value = value_BSHd.transpose(1, 2)
        return attend(module, query, key, value, mask, dropout=0.0, scaling=d**-0.5, **kwargs)[0]

    return act, [query, key, value_BSHd]


def documents_apart(
    sizes: Sizes, implementation: str, batch: int, lengths: list[int]
) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """The mask and arguments that keep a row's documents apart, as a step of the recipe makes them once for all layers."""
    if len(lengths) == 1:
        return None, {"position_ids": None}
    from recipe.engine.step import for_attention, on_device
    from recipe.model import RecipeMoeConfig
    from recipe.model.modeling import create_causal_mask, named

    positions = torch.cat([torch.arange(length) for length in lengths]).expand(batch, -1)
    given: Any = implementation
    inputs = on_device(for_attention({"position_ids": positions}, Compute(attention=given)), DEVICE)
    config = RecipeMoeConfig.from_shape(sizes.shape)
    config._attn_implementation = implementation
    hidden = torch.empty(*inputs["position_ids"].shape, 1, device=DEVICE, dtype=DTYPE)
    mask = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None,
                              position_ids=inputs["position_ids"], **named(None))  # fmt: skip
    return mask, inputs


def measure_attention(sizes: Sizes, implementation: str, batch: int, lengths: list[int], passes: str) -> dict[str, Any]:
    if implementation == "flash_attention_2":
        if not CUDA:
            raise NotPossible("flash attention needs a GPU")
        if importlib.util.find_spec("flash_attn") is None:
            raise NotPossible("the package flash-attn is not installed")
    act, inputs = attention_call(sizes, implementation, batch, lengths)
    return timed(pass_of(passes, act, inputs))


def attention_cases(sizes: Sizes) -> Iterator[Case]:
    """Each implementation at both lengths, a micro-batch's tokens; then with several documents in each row."""
    both = [(sizes.seq_length, False), (sizes.long_seq_length, False), (sizes.seq_length, True)]
    for (length, several), implementation, passes in itertools.product(both, ("sdpa", "flash_attention_2"), PASSES):
        yield attention_case(sizes, implementation, length, several, passes)


def attention_case(sizes: Sizes, implementation: str, seq_length: int, several: bool, passes: str) -> Case:
    heads, kv_heads, d = sizes.shape.num_attention_heads, sizes.shape.num_key_value_heads, sizes.shape.head_dim
    batch, lengths = max(1, sizes.tokens // seq_length), document_lengths(seq_length, several)
    note = "FLOPs of the scores that causal attention needs, half of all; backward 5 matmuls of the forward's 2"
    if several:
        note += "; of the documents alone"
    return Case(
        "attention", f"{implementation}, documents" if several else implementation,
        {"batch": batch, "seq_length": seq_length, "heads": heads, "kv_heads": kv_heads, "head_dim": d,
         "documents": lengths},
        lambda: measure_attention(sizes, implementation, batch, lengths, passes),
        passes,
        flops=batch * attention_flops(lengths, heads, d, passes),
        moved=attention_bytes(batch * seq_length, heads, kv_heads, d, passes),
        note=note,
    )  # fmt: skip
