"""What published rules say of a run's hyperparameters, and what published runs used, as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recipe.base.model_shape import ModelShape
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.tables import markdown_table
from recipe.scaling.published_runs import PUBLISHED_RUNS, PublishedRun
from recipe.scaling.transfer import (
    LING,
    RULES,
    Run,
    at_batch,
    run_of,
    small_initial_std,
    smallest_rotary_base,
    vocabulary_size,
)


def describe_rules(name: str, shape: ModelShape, phases: Sequence[ResolvedPhase]) -> str:
    """All tables of a run; its batch and length of sequences are those of the phase with most tokens."""
    main = max(phases, key=lambda phase: phase.end_tokens - phase.first_tokens)
    tokens, seq_length = main.run.schedule.total_tokens, main.run.data.seq_length
    own = run_of(shape, tokens, seq_length)
    return "\n\n".join(
        (
            rules_table(name, own, main.run.schedule.peak_lr, main.tokens_per_step),
            sizes_table(shape, tokens * shape.training_flops_per_token(seq_length), phases),
            runs_table(),
        )
    )


def rules_table(name: str, run: Run, rate: float, batch: int) -> str:
    """Each rule's learning rate and batch, and its learning rate at the run's own batch."""
    rows = []
    for rule in RULES:
        learning_rate, batch_tokens = rule.learning_rate(run), rule.batch_tokens(run)
        there = at_batch(learning_rate, batch_tokens, batch)
        rows.append(
            [
                f"{rule.name} ({rule.source})",
                rule.fitted_on,
                _rate(learning_rate),
                _millions(batch_tokens),
                _rate(there),
            ]
        )
    head = ["rule", "fitted on", "peak learning rate", "batch, tokens", "rate at the run's batch"]
    own = [f"`{name}`", "", _rate(rate), _millions(batch), _rate(rate)]
    return markdown_table(head, [*rows, own], left=2)


def sizes_table(shape: ModelShape, flops: float, phases: Sequence[ResolvedPhase]) -> str:
    """What rules say of numbers of the model, beside the model's own."""
    width = shape.hidden_size
    rows = [
        ["initial deviation", "SmallInit, arXiv 1910.05895", f"{small_initial_std(width):.4f}", f"{shape.initializer_range:g}"],
        ["vocabulary, tokens", "arXiv 2407.13623", f"{vocabulary_size(width, flops):,.0f}", f"{shape.vocab_size:,}"],
        *_rotary_bases(phases),
    ]  # fmt: skip
    return markdown_table(["number", "rule", "says", "the run has"], rows, left=2)


def _rotary_bases(phases: Sequence[ResolvedPhase]) -> Iterator[list[str]]:
    bases = {phase.run.data.seq_length: phase.shape.rope_parameters.rope_theta for phase in phases}
    for length, base in bases.items():
        yield [
            f"rotary base at {length:,} tokens",
            "arXiv 2405.14591",
            f"at least {smallest_rotary_base(length):,.0f}",
            f"{base:,.0f}",
        ]


def runs_table() -> str:
    """What published MoE runs used, and what Ling's rule would have said of them."""
    head = ["run", "active", "tokens", "FLOPs", "learning rate", "over Ling's", "batch, tokens", "over Ling's",
            "bias update rate", "sequence-wise loss", "initial deviation"]  # fmt: skip
    return markdown_table(head, [_row(run) for run in PUBLISHED_RUNS])


def _row(published: PublishedRun) -> list[str]:
    run = Run(published.active * 1e9, 1.0, published.tokens * 1e12, published.flops)
    name = f"{published.name} ({published.source})" + (", Muon" if published.optimizer == "Muon" else "")
    return [
        name, f"{published.active:g}B", f"{published.tokens:g}T", f"{published.flops:.1e}".replace("+", ""),
        _rate(published.learning_rate), f"{published.learning_rate / LING.learning_rate(run):.2f}",
        _millions(published.batch_tokens), f"{published.batch_tokens / LING.batch_tokens(run):.2f}",
        _known(published.bias_rate), _known(published.balance_loss), _known(published.initial_std),
    ]  # fmt: skip


def _known(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _rate(value: float) -> str:
    return f"{value * 1e4:.1f}e-4"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}K"
