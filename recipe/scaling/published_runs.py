"""Hyperparameters that published MoE runs were trained with, from their reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRun:
    """One model's pretraining; None where its report does not say.

    Args:
        active: parameters, in billions.
        tokens: trained on, in trillions.
        batch_tokens: after the ramp.
        initial_std: of all weights, as the report has it: an `initializer_range` in a published config.json may be a default.
        bias_rate: of the expert bias, until it is frozen or lowered at the end.
        balance_loss: weight of the sequence-wise loss.
    """

    name: str
    source: str
    active: float
    tokens: float
    learning_rate: float
    batch_tokens: int
    optimizer: str = "AdamW"
    hidden_size: int | None = None
    initial_std: float | None = None
    bias_rate: float | None = None
    balance_loss: float | None = None

    @property
    def flops(self) -> float:
        return 6 * self.active * 1e9 * self.tokens * 1e12


PUBLISHED_RUNS = (
    PublishedRun("Ling-mini 2.0", "arXiv 2510.22115", 1.4, 20, 3.36e-4, 4_400 * 4_096, bias_rate=1e-3),
    PublishedRun("DeepSeek-V2-Lite", "arXiv 2405.04434", 2.4, 5.7, 4.2e-4, 4_608 * 4_096),
    PublishedRun("Ling-flash 2.0", "arXiv 2510.22115", 6.1, 20, 2.61e-4, 8_352 * 4_096, bias_rate=1e-3),
    PublishedRun("DeepSeek-V2", "arXiv 2405.04434", 21, 8.1, 2.4e-4, 9_216 * 4_096),
    PublishedRun(
        "GLM-4.5", "arXiv 2508.06471", 32, 23, 2.5e-4, 64_000_000, optimizer="Muon", bias_rate=1e-3, balance_loss=1e-4
    ),
    PublishedRun("Kimi K2", "arXiv 2507.20534", 32, 15.5, 2e-4, 67_000_000, optimizer="Muon"),
    PublishedRun(
        "DeepSeek-V3", "arXiv 2412.19437", 37, 14.8, 2.2e-4, 15_360 * 4_096,
        hidden_size=7_168, initial_std=0.006, bias_rate=1e-3, balance_loss=1e-4,
    ),
    PublishedRun("Ling-1T", "arXiv 2510.22115", 51, 20, 1.86e-4, 18_144 * 4_096, bias_rate=1e-3),
)  # fmt: skip
