"""From sequences to what a training step is given: inputs, targets, positions, and which tokens count.

Legend: B sequences of a micro-batch, S positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recipe.base.model_shape import IGNORED


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch; every field is [B, S] int64 unless it says otherwise."""

    tokens: np.ndarray
    targets: np.ndarray  # the next tokens; -100 where padding would be predicted, or predicts
    positions: np.ndarray | None  # restart at each document; None where documents attend to each other
    valid: np.ndarray  # bool; False for padding, which no router counts
    sources: np.ndarray  # [B], number of the source that each sequence comes from
    missing: int = 0  # sequences that are damaged on disk, and count as padding


def document_positions(tokens_BS: np.ndarray, eod_id: int) -> np.ndarray:
    """Positions [B, S] that restart after each end-of-document token (which belongs to the document it ends)."""
    place = np.arange(tokens_BS.shape[1])
    starts = np.zeros_like(tokens_BS)
    starts[:, 1:] = np.where(tokens_BS[:, :-1] == eod_id, place[1:], 0)
    return place - np.maximum.accumulate(starts, axis=1)


def make_batch(
    sequences: np.ndarray,
    sources: np.ndarray,
    *,
    eod_id: int,
    pad_id: int | None,
    document_attention: bool,
    missing: np.ndarray | None = None,
) -> Batch:
    """A batch of sequences [B, S + 1]: each row's last token is only a target; `missing` rows [B] count as padding."""
    tokens, targets = sequences[:, :-1], sequences[:, 1:]
    valid = np.ones(tokens.shape, dtype=bool)
    if pad_id is not None:
        valid = tokens != pad_id
        targets = np.where(valid & (targets != pad_id), targets, IGNORED)
    if missing is not None and missing.any():
        valid = valid & ~missing[:, None]
        targets = np.where(valid, targets, IGNORED)
    positions = document_positions(tokens, eod_id) if document_attention else None
    return Batch(tokens, targets, positions, valid, sources, 0 if missing is None else int(missing.sum()))
