"""The run config: everything of a training run that neither the model nor the cluster owns.

One owner per number: model shape is in the model's config.json; micro-batch, accumulation, precision,
clipping, ZeRO and expert parallelism are in the ds_config; the rest is here. Paths are relative to the
folder the command is started in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from recipe.base.run_config.data import Data
from recipe.base.run_config.phase import Phase, problems_of_phases
from recipe.base.run_config.routing import Routing
from recipe.base.run_config.schedule import Schedule
from recipe.base.strict import Section, apply_override, load_yaml, strict_model

LOCAL_HOST = "127.0.0.1"  # metrics are for this host unless a run says otherwise


Beta = Annotated[float, Field(ge=0, lt=1)]  # decay of a mean, 1 would never forget


class Optimizer(Section):
    """AdamW. Decay touches matrices only: norms, biases and embeddings are left alone."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of the mean gradient and of the mean squared gradient, per step. 0.95 instead of torch's 0.999 as
    in GPT-3 (arXiv 2005.14165, appendix B)."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean squared gradient, so that no update divides by zero."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of AdamW: a step shrinks a weight by learning rate * weight_decay."""


Recompute = Literal["none", "reentrant", "non_reentrant", "selective"]
RECOMPUTES: tuple[str, ...] = get_args(Recompute)


class Compute(Section):
    """What trades memory for time without changing what is learned."""

    recompute: Recompute = "none"
    """Compute each decoder layer's activations again in the backward pass: less memory for about a third more
    FLOPs. `reentrant` is torch's, which computes a layer twice in full; `non_reentrant` leaves out what no gradient needs;
    `selective` also keeps as many results as the ds_config's `recipe.kept_gib` has room for, the dearest to compute first,
    then whole layers, which are not computed again at all; not with `flex_attention`. Gradients are the same bits with each."""
    compile: bool = False
    """Fuse what lies between matmuls into one kernel each, by torch.compile; takes a minute at each start."""
    deterministic: bool = False
    """The same bits from the same start on the same ranks; slower on a GPU. For finding a fault."""
    attention: Literal["sdpa", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention kernel: torch's `sdpa`, `flash_attention_2` (needs the package flash-attn) or `flex_attention`."""
    loss_chunk_tokens: int = Field(2048, gt=0)
    """Tokens whose logits are in memory at a time. 2,048 tokens * 131,072 vocabulary * 4 bytes = 1 GiB of logits;
    lower it when the loss runs out of memory."""

    def problems(self) -> list[str]:
        if self.recompute != "selective" or self.attention != "flex_attention":
            return []
        return [
            "compute.recompute selective cannot keep the result of flex_attention, which is one compiled function with its "
            "backward pass; set non_reentrant, or compute.attention sdpa or flash_attention_2"
        ]


class MovingAverage(Section):
    """An exponential average of the weights in fp32, kept beside them: 4 bytes per parameter over all ranks. `recipe/merge.py --average`
    makes a checkpoint of it."""

    half_life_tokens: int = Field(gt=0)
    """Tokens after which weights of the past count half. 0.35 times the tokens of a linear decay that it stands in for: then what is
    averaged is as old on average, half-life / ln 2 = decay / 2."""
    every_steps: int = Field(10, gt=0)
    """Steps between updates. Each reads and writes the average once; many within a half-life make no difference."""


class Checkpoint(Section):
    """When to save and what to keep. Besides these, one marked `keep` stays: the last before a WSD decay is."""

    every_steps: int = Field(gt=0)
    """Steps between checkpoints. A failure loses at most these steps, a save costs writing time."""
    keep_last: int = Field(2, gt=0)
    """Newest checkpoints that stay on disk."""
    keep_every_steps: int | None = Field(None, gt=0)
    """Checkpoints of steps that are a multiple of it stay for ever. Null: none does."""
    asynchronous: bool = True
    """Copy to host memory and write while training goes on. With false, training waits for the write; for hosts
    short of memory."""
    average: MovingAverage | None = None
    """A moving average of the weights, saved in each checkpoint. Null: none is kept."""

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
    """Robust standard deviations above the median of the window, from which on a step is skipped."""
    window: int = Field(128, ge=8)
    """Steps that a step is compared with; watched once half of them have been seen."""
    sustained: int = Field(16, gt=1)
    """Steps skipped in a row, after which the run goes back to the checkpoint before them and past their data."""


class Numerics(Section):
    """What happens to steps that would spoil the weights."""

    max_nonfinite_in_a_row: int = Field(8, gt=0)
    """Steps in a row whose loss or gradient norm is NaN or infinite: each is skipped, after so many the run stops."""
    spikes: Spikes | None = Spikes()


class Watch(Section):
    """Hangs, stragglers, silent corruption."""

    renamed: ClassVar[dict[str, str]] = {"probe_every_steps": "corruption_check_every_steps"}

    no_progress_s: float = Field(900, gt=0)
    """Seconds without progress after which the ranks write where they are and the job ends. Above the longest step,
    save or evaluation."""
    start_s: float = Field(3600, gt=0)
    """The same, in seconds, until the first step is done, which loads and compiles."""
    heartbeat_s: float = Field(10, gt=0)
    """Seconds between two heartbeats of a rank; below both limits above."""
    stragglers_every_steps: int | None = Field(100, gt=0)
    """Steps between two whose waits for collectives are timed to find slow ranks. Null: never."""
    straggler_ratio: float = Field(1.2, gt=1)
    """A rank's own time over the median's, from which on it is reported as a straggler."""
    corruption_check_every_steps: int | None = Field(None, gt=0)
    """Steps between two checks for silent corruption: the same computation on every rank, compared bit by bit.
    Null: never."""

    def problems(self) -> list[str]:
        return [
            f"watch.heartbeat_s {self.heartbeat_s:g} is not below watch.{name} {limit:g}, so a rank that works would look "
            "like one that hangs; lower it"
            for name, limit in (("no_progress_s", self.no_progress_s), ("start_s", self.start_s))
            if self.heartbeat_s >= limit
        ]


class Downstream(Section):
    """Tasks of lm-evaluation-harness that are scored during training, by all ranks together."""

    every_steps: int = Field(gt=0)
    """Steps between evaluations; there is one after the last step too. A dry run says what one costs."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks and groups, of the harness, of recipe/configs/downstream/ or of `tasks_path`. Those that generate text are refused."""
    data: Path
    """Folder with the tasks' datasets, written by `recipe/evaluate_model.py downstream --save-data`, which all hosts see."""
    tasks_path: tuple[Path, ...] = ()
    """Folders with more task files (YAML)."""
    limit: int | None = Field(None, gt=0)
    """Only the first so many items of each task. Null: all. Errors grow with the root of what is left out."""
    batch_size: int = Field(8, gt=0)
    """Requests per rank at a time; lower it when evaluation runs out of memory."""


class Evaluation(Section):
    """Evaluation during training: held-out loss of every source, over all of its held-out tokens, and downstream tasks."""

    every_steps: int | None = Field(None, gt=0)
    """Steps between evaluations; there is one after the last step too. Null: never."""
    tokens: Path | None = None
    """Another output of data_prep/tokenize_corpus.py to evaluate on. Null: the held-out part of `data.tokens`."""
    batch_size: int = Field(8, gt=0)
    """Sequences per rank at a time; lower it when evaluation runs out of memory."""
    downstream: Downstream | None = None
    """Downstream tasks to score during training. Null: none."""


class Logging(Section):
    """How often metrics are written, and where they are served."""

    every_steps: int = Field(10, gt=0)
    """Steps between two lines of metrics. Mitigations of routing see the logged steps alone."""
    prometheus_port: int | None = Field(None, gt=0, lt=65536)
    """Port of rank 0's host where /metrics serves the newest values. Null: none. Needs the extra `prometheus`."""
    prometheus_host: str = LOCAL_HOST
    """Address that it listens on. 0.0.0.0: all of the host's, for a Prometheus server elsewhere."""
    trackers: list[Literal["wandb", "mlflow"]] = []
    """Experiment trackers that get the numbers TensorBoard gets: `wandb` (Weights & Biases), `mlflow`. Each needs the extra of
    its name. They write to `trackers/` of the run folder, without a network; WANDB_MODE=online (after `wandb login`) and
    MLFLOW_TRACKING_URI, in the environment of rank 0, send to a server. One that fails is told and never ends a run."""

    def problems(self) -> list[str]:
        twice = sorted({name for name in self.trackers if self.trackers.count(name) > 1})
        return [f"logging.trackers names {name} twice; name it once" for name in twice]


class RunConfig(Section):
    """A training run."""

    run_dir: Path
    """Folder of the run: checkpoints, metrics, logs. Resuming needs the same."""
    model: Path
    """Folder with the model's config.json."""
    tokenizer: Path
    """Folder written by data_prep/train_tokenizer.py."""
    seed: int = 0
    """Seed of the order of the data, the initial weights and the router's jitter. Cannot change on resuming."""
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
    phases: list[Phase] = []
    """Ranges of tokens in which other settings hold, one after the other; together `schedule.total_tokens`. [] is one phase, of
    the settings above. The run saves a checkpoint and builds its engine anew where one begins."""

    def problems(self) -> list[str]:
        return [
            *self.data.mixture.problems(),
            *self.schedule.problems(),
            *problems_of_phases(self.phases),
            *self.routing.problems(),
            *self.compute.problems(),
            *self.checkpoint.problems(),
            *self.watch.problems(),
            *self.logging.problems(),
        ]


def absolute(run: RunConfig) -> RunConfig:
    """The same run config with paths that do not depend on the folder that a command is started in."""
    evaluated, downstream = run.evaluation.tokens, run.evaluation.downstream
    if downstream is not None:
        paths = {"data": downstream.data.absolute(), "tasks_path": tuple(p.absolute() for p in downstream.tasks_path)}
        downstream = downstream.model_copy(update=paths)
    return run.model_copy(
        update={
            "run_dir": run.run_dir.absolute(),
            "model": run.model.absolute(),
            "tokenizer": run.tokenizer.absolute(),
            "data": run.data.model_copy(update={"tokens": run.data.tokens.absolute()}),
            "evaluation": run.evaluation.model_copy(
                update={"tokens": None if evaluated is None else evaluated.absolute(), "downstream": downstream}
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
