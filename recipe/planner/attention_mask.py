"""Memory of torch's attention where a mask keeps documents apart: with the square of a sequence's length."""

from __future__ import annotations

from recipe.planner.workload import Workload

BOOLEAN = 1  # bytes


def mask_bytes(work: Workload) -> int:
    """Of the mask that all layers share, for the sequences of a micro-batch."""
    return BOOLEAN * _pairs(work)


def masked_layer_bytes(work: Workload) -> int:
    """That autograd keeps of a layer beyond attention without a mask.

    torch makes of the mask the bias that is added to scores, in the dtype of the queries; transformers repeat keys and values
    for each query head, since torch's kernels group heads only where there is no mask.
    """
    if not work.run.masked:
        return 0
    shape = work.shape
    repeated_heads = shape.num_attention_heads - shape.num_key_value_heads
    return work.element * (_pairs(work) + 2 * work.tokens * repeated_heads * shape.head_dim)


def _pairs(work: Workload) -> int:
    """Of tokens of a sequence, in a micro-batch."""
    return work.tokens * work.run.seq_length if work.run.masked else 0
