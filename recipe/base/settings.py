"""The run config: everything of a training run that neither the model nor the cluster owns.

One owner per number: model shape is in the model's config.json; micro-batch, accumulation, precision,
clipping, ZeRO and expert parallelism are in the ds_config; the rest is here. Paths are relative to the
folder the command is started in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from recipe.base.routing_settings import Routing
from recipe.base.strict import Section, apply_override, load_yaml, strict_model


def _problems_of_weights(name: str, weights: Mapping[Any, float]) -> list[str]:
    """What makes no shares of these weights."""
    return [f"{name}: {key} has a negative weight" for key, weight in weights.items() if weight < 0]


LOCAL_HOST = "127.0.0.1"  # metrics are for this host unless a run says otherwise


class Anneal(Section):
    """The last part of training, with more of the better sources (as Llama 3, arXiv 2407.21783, section 3.1.3)."""

    share: float = Field(gt=0, lt=1)  # of the run's sequences, from the end
    tier_weights: dict[int, float]  # tier -> factor on the weights of its sources

    def problems(self) -> list[str]:
        return _problems_of_weights("data.mixture.anneal.tier_weights", self.tier_weights)


class Mixture(Section):
    """How the sources are mixed: p proportional to factor * tokens ** alpha, or explicit weights."""

    alpha: float = Field(0.5, ge=0, le=1)  # 1: as they are; 0: equally; 0.5 lifts the smaller language
    weights: dict[str, float] | None = None  # source -> weight, overrides alpha and factors; must name every source
    factors: dict[str, float] = {}  # source -> factor on its share
    max_epochs: float | None = Field(None, gt=0)  # of any source; what it cannot fill goes to the others
    tiers: dict[str, int] = {}  # source -> quality tier, 1 the best
    anneal: Anneal | None = None

    def problems(self) -> list[str]:
        found = [] if self.anneal is None else self.anneal.problems()
        if self.anneal is not None:
            unknown = sorted({str(t) for t in self.tiers.values()} - {str(t) for t in self.anneal.tier_weights})
            found += [
                f"data.mixture.tiers names tier {t}, which anneal.tier_weights has no weight for" for t in unknown
            ]
        found += _problems_of_weights("data.mixture.weights", self.weights or {})
        found += _problems_of_weights("data.mixture.factors", self.factors)
        if self.weights is not None and not any(self.weights.values()):
            found.append("data.mixture.weights are all zero; give one source a weight, or set null")
        if self.weights is not None and self.factors:
            found.append("data.mixture.weights overrides factors; keep one")
        return found


class Data(Section):
    tokens: Path  # output folder of data_prep/tokenize_corpus.py
    seq_length: int = Field(gt=1)  # tokens predicted per sequence
    mixture: Mixture = Mixture()
    document_attention: bool = False  # attention and positions stay inside each packed document
    on_damage: Literal["stop", "skip"] = "stop"  # what a damaged block of a shard does; skipped sequences are counted
    max_damaged_share: float = Field(0.01, ge=0, le=1)  # of what was read; above it, and a batch, skip stops too


Beta = Annotated[float, Field(ge=0, lt=1)]  # decay of a mean, 1 would never forget


class Optimizer(Section):
    """AdamW. Decay touches matrices only: norms, biases and embeddings are left alone."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)


class Schedule(Section):
    """Learning rate by tokens seen: linear warmup, then cosine, or WSD (stable, then linear decay)."""

    total_tokens: int = Field(gt=0)
    kind: Literal["cosine", "wsd"] = "cosine"
    peak_lr: float = Field(gt=0)
    min_lr: float = Field(ge=0)
    warmup_tokens: int = Field(ge=0)
    decay_tokens: int = Field(0, ge=0)  # WSD only: length of the final decay


class Compute(Section):
    """What trades memory for time without changing what is learned."""

    recompute: Literal["none", "reentrant", "non_reentrant"] = "none"  # of each decoder layer's activations
    compile: bool = False  # what lies between matmuls as one kernel each, by torch.compile; a minute at each start
    deterministic: bool = False  # the same bits from the same start on the same ranks; slower on a GPU
    attention: Literal["sdpa", "flash_attention_2", "flex_attention"] = "sdpa"
    loss_chunk_tokens: int = Field(2048, gt=0)  # 2,048 tokens * 131,072 vocabulary * 4 bytes = 1 GiB of logits


class Checkpoint(Section):
    """When to save and what to keep. Besides these, one marked `keep` stays: the last before a WSD decay is."""

    every_steps: int = Field(gt=0)
    keep_last: int = Field(2, gt=0)
    keep_every_steps: int | None = Field(None, gt=0)  # those after a multiple of it stay for ever
    asynchronous: bool = True  # copied to host memory and written while training goes on

    def problems(self) -> list[str]:
        keep, every = self.keep_every_steps, self.every_steps
        if keep is None or keep % every == 0 or every % keep == 0:
            return []
        return [
            f"checkpoint.keep_every_steps {keep} is no multiple of checkpoint.every_steps {every}, so most checkpoints to keep "
            f"would never be written; set a multiple such as {max(1, round(keep / every)) * every}"
        ]


class Spikes(Section):
    """A step whose loss or gradient norm is far above the last ones'. Defaults are OLMo-core's (skip_step_optimizer.py)."""

    sigmas: float = Field(6.0, gt=0)
    window: int = Field(128, ge=8)  # steps; watched from half of it on
    sustained: int = Field(16, gt=1)  # skipped in a row before the run goes back to the checkpoint before them


class Numerics(Section):
    """What happens to steps that would spoil the weights."""

    max_nonfinite_in_a_row: int = Field(8, gt=0)  # skipped, then the run stops
    spikes: Spikes | None = Spikes()


class Watch(Section):
    """Hangs, stragglers, silent corruption."""

    no_progress_s: float = Field(900, gt=0)  # then the ranks say where they are and the job ends
    start_s: float = Field(3600, gt=0)  # the same until the first step is done: loading, compiling
    heartbeat_s: float = Field(10, gt=0)
    stragglers_every_steps: int | None = Field(100, gt=0)  # one step whose waits for collectives are timed
    straggler_ratio: float = Field(1.2, gt=1)  # a rank's own time over the median's, from which on it is an event
    corruption_check_every_steps: int | None = Field(None, gt=0)  # one computation on all ranks, compared bit by bit

    def problems(self) -> list[str]:
        return [
            f"watch.heartbeat_s {self.heartbeat_s:g} is not below watch.{name} {limit:g}, so a rank that works would look "
            "like one that hangs; lower it"
            for name, limit in (("no_progress_s", self.no_progress_s), ("start_s", self.start_s))
            if self.heartbeat_s >= limit
        ]


class Evaluation(Section):
    """Held-out loss during training, of every source, over all of its held-out tokens."""

    every_steps: int | None = Field(None, gt=0)  # and after the last step; null: never
    tokens: Path | None = None  # another output of data_prep/tokenize_corpus.py; null: that of data.tokens
    batch_size: int = Field(8, gt=0)  # sequences per rank at a time


class Logging(Section):
    every_steps: int = Field(10, gt=0)
    prometheus_port: int | None = Field(None, gt=0, lt=65536)  # of rank 0's host, where /metrics has the newest values
    prometheus_host: str = LOCAL_HOST  # address that it listens on; 0.0.0.0: all of the host's, for a server elsewhere


class RunConfig(Section):
    """A training run."""

    run_dir: Path
    model: Path  # folder with config.json
    tokenizer: Path  # folder written by data_prep/train_tokenizer.py
    seed: int = 0
    data: Data
    schedule: Schedule
    checkpoint: Checkpoint
    optimizer: Optimizer = Optimizer()
    routing: Routing = Routing()
    compute: Compute = Compute()
    numerics: Numerics = Numerics()
    watch: Watch = Watch()
    logging: Logging = Logging()
    evaluation: Evaluation = Evaluation()

    def problems(self) -> list[str]:
        schedule = self.schedule
        found = [
            *self.data.mixture.problems(),
            *self.routing.problems(),
            *self.checkpoint.problems(),
            *self.watch.problems(),
        ]
        if schedule.min_lr > schedule.peak_lr:
            found.append(f"schedule.min_lr {schedule.min_lr} exceeds schedule.peak_lr {schedule.peak_lr}")
        if schedule.kind == "wsd" and schedule.decay_tokens == 0:
            found.append("schedule.kind wsd needs schedule.decay_tokens")
        if schedule.kind == "cosine" and schedule.decay_tokens:
            found.append("schedule.decay_tokens is for kind wsd; the cosine decays over all that follows the warmup")
        if schedule.warmup_tokens + schedule.decay_tokens > schedule.total_tokens:
            found.append("schedule.warmup_tokens + decay_tokens exceed schedule.total_tokens")
        return found


def absolute(run: RunConfig) -> RunConfig:
    """The same run config with paths that do not depend on the folder that a command is started in."""
    evaluated = run.evaluation.tokens
    return run.model_copy(
        update={
            "run_dir": run.run_dir.absolute(),
            "model": run.model.absolute(),
            "tokenizer": run.tokenizer.absolute(),
            "data": run.data.model_copy(update={"tokens": run.data.tokens.absolute()}),
            "evaluation": run.evaluation.model_copy(
                update={"tokens": None if evaluated is None else evaluated.absolute()}
            ),
        }
    )


def load_run_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run config strictly, with `key.sub=value` overrides (values in YAML) applied first.

    Raises:
        UserError: unreadable file, malformed override; `ConfigError` with every problem of the content.
    """
    values = load_yaml(path)
    for override in (overrides or []) if isinstance(values, dict) else []:
        apply_override(values, override, "schedule.peak_lr=3e-4")
    return strict_model(RunConfig, values, path if not overrides else f"{path} with --set")
