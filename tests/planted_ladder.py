"""A ladder.json of runs whose losses follow planted laws, with a little noise of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.model_shape import load_model_shape
from recipe.scaling.ladder_file import SCHEMA, VERSION
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law
from recipe.scaling.rungs import rungs
from tests.conftest import ROOT

LAWS = {"en": Law(0.55, 8.0, PUBLISHED_ALPHA, 30.0, PUBLISHED_BETA), "zh": Law(0.7, 9.0, PUBLISHED_ALPHA, 33.0, PUBLISHED_BETA)}  # fmt: skip
NATS = 1.5  # of a bit per byte
NOISE = 0.001


def planted_ladder(model: str) -> dict[str, Any]:
    """Six runs of a shipped model's family, the last one held out."""
    target, draws = load_model_shape(ROOT / "recipe/configs/models" / model), np.random.default_rng(0)
    widths = [width for width in (32, 64, 128, 256, 512) if width <= target.hidden_size][-3:]
    runs = []
    for rung in rungs(target, widths, [10, 40], 512, 8):
        noise = 1 + NOISE * draws.standard_normal()
        bits = {source: law.loss(rung.size) * noise for source, law in LAWS.items()}
        loss = {source: value * NATS for source, value in bits.items()}
        runs.append({"name": rung.name, **vars(rung.size), "bits_per_byte": bits, "loss": loss})
    return {"schema": SCHEMA, "version": VERSION, "exponents": "auto", "runs": runs[:-1], "held_out": runs[-1], "fits": {}}  # fmt: skip


def write_ladder(path: Path, model: str) -> Path:
    path.write_text(json.dumps(planted_ladder(model)), encoding="utf-8")
    return path
