"""Weights & Biases and MLflow through their own clients, without a network unless their environment variables ask for one.

The packages are imported late, by the tracker's thread: a run without trackers has none of them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from recipe.base.tables import as_float
from recipe.run.records import read_attempts, read_record, run_name, write_record
from recipe.telemetry.trackers import Client

FOLDER = "trackers"  # of a run folder
PROJECT = "deepspeed-moe-recipe"  # W&B's project and MLflow's experiment, where the environment names none
STEP = "train/step"  # W&B's x axis
_WITHOUT_NETWORK = ("offline", "dryrun", "disabled")  # values of WANDB_MODE
# What MLflow's server takes in a request: https://mlflow.org/docs/latest/rest-api.html#log-batch
MOST_METRICS, MOST_PARAMS, MOST_PARAM_CHARACTERS = 1000, 100, 500
_NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")  # what MLflow refuses in a metric's or a parameter's name

T = TypeVar("T")


def opener(name: str, run_dir: Path) -> Callable[[], Client]:
    """What opens or goes on with a tracker's run, which has the run folder's name and keeps its id in it.

    Args:
        name: as in `logging.trackers`.
    """
    kept = KeptId(run_dir, name)

    def open_client() -> Client:
        starts = read_attempts(run_dir)
        facts = {key: value for key, value in starts[-1].items() if key != "time"} if starts else {}
        return WandbRun(run_dir, facts, kept) if name == "wandb" else MlflowRun(run_dir, facts, kept)

    return open_client


class KeptId:
    """The id of a tracker's run, in the run folder: the next attempt goes on with the same; so does this one, on a full disk."""

    def __init__(self, run_dir: Path, tracker: str):
        self._path, self._id = run_dir / FOLDER / f"{tracker}.json", ""

    def read(self) -> str | None:
        if not self._id and (record := read_record(self._path)) is not None:
            self._id = str(record["id"])
        return self._id or None

    def write(self, run_id: str) -> None:
        self._id = run_id
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_record(self._path, {"id": run_id})


class WandbRun:
    """A run of Weights & Biases. Offline (`wandb sync` sends it later) unless WANDB_MODE is set.

    Steps that are done again after a fault are in the history twice, at the same `train/step`: W&B's own step only grows,
    and would drop them.
    """

    def __init__(self, run_dir: Path, facts: dict[str, Any], kept: KeptId):
        if "WANDB_MODE" not in os.environ:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nor does the client report its own errors
        import wandb

        run_id = os.environ.get("WANDB_RUN_ID") or kept.read() or secrets.token_hex(4)
        kept.write(run_id)
        if os.environ.get("WANDB_MODE", "offline") not in _WITHOUT_NETWORK and not wandb.login(
            prompt=False, verify=False
        ):
            raise PermissionError("no login: run `wandb login` on this host, or unset WANDB_MODE to log into files")
        self._run = wandb.init(
            id=run_id,
            name=os.environ.get("WANDB_NAME", run_name(run_dir)),
            config=facts,
            resume="allow",
            reinit="finish_previous",  # that this thread has opened and lost
            allow_val_change=True,  # an attempt may have other settings than the one before
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
            **_where_unset(WANDB_MODE="offline", WANDB_DIR=str(run_dir / FOLDER), WANDB_PROJECT=PROJECT),
        )
        folder = Path(self._run.settings.sync_dir)
        offline = f"logs offline to {folder}; `wandb sync {shlex.quote(str(folder))}` sends it"
        self.where = offline if self._run.offline else f"logs to {folder}, shown at {self._run.url}"
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, tags: dict[str, float], step: int, logged_at: float) -> None:
        self._run.log({**{tag: as_float(value) for tag, value in tags.items()}, STEP: step})

    def finish(self, ended: str | None) -> None:
        self._run.finish(exit_code=1 if ended is None else 0)


def _where_unset(**variables: str) -> dict[str, Any]:
    """Arguments of wandb.init for the variables that the environment leaves to us: an argument would override them."""
    return {name.removeprefix("WANDB_").lower(): value for name, value in variables.items() if name not in os.environ}


class MlflowRun:
    """A run of MLflow: in files of the run folder unless MLFLOW_TRACKING_URI names a server or another folder.

    Parameters are what the first attempt had, since MLflow lets none change; what a later one changes is a tag of the same
    name. Steps that are done again after a fault have two values, and the later one has the later time.
    """

    def __init__(self, run_dir: Path, facts: dict[str, Any], kept: KeptId):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # of its use, to its makers
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its other local store needs sqlalchemy
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir / FOLDER / "mlruns").absolute().as_uri()
        self._client = MlflowClient(uri)
        self._id = self._resumed(kept.read()) or self._new(run_name(run_dir))
        kept.write(self._id)
        local = f"; `mlflow ui --backend-store-uri {uri}` shows it" if uri.startswith("file:") else ""
        self.where = f"logs to run {self._id} of {uri}{local}"
        self._log_facts({_name(key): value for key, value in _flat(facts)})

    def _resumed(self, run_id: str | None) -> str | None:
        """The run to go on with; None where the server has none of that id, as after a change of MLFLOW_TRACKING_URI."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id

    def _new(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        of = self._client.create_experiment(experiment) if known is None else known.experiment_id
        return str(self._client.create_run(of, run_name=name).info.run_id)

    def _log_facts(self, facts: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self._id).data.params
        new = [Param(key, value) for key, value in facts.items() if key not in known]
        changed = [RunTag(key, value) for key, value in facts.items() if known.get(key, value) != value]
        for params in _batches(new, MOST_PARAMS):
            self._client.log_batch(self._id, params=params)
        for tags in _batches(changed, MOST_PARAMS):
            self._client.log_batch(self._id, tags=tags)

    def log(self, tags: dict[str, float], step: int, logged_at: float) -> None:
        from mlflow.entities import Metric

        milliseconds = int(logged_at * 1000)
        names = _metric_names(tags)
        metrics = [Metric(names[tag], as_float(value), milliseconds, step) for tag, value in tags.items()]
        for some in _batches(metrics, MOST_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def finish(self, ended: str | None) -> None:
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(ended or "", "FAILED")
        self._client.set_terminated(self._id, status)


def _name(tag: str) -> str:
    """A tag as MLflow takes it; the same but for characters that it refuses."""
    return _NOT_IN_A_NAME.sub("_", tag)


def _metric_names(tags: Iterable[str]) -> dict[str, str]:
    """Tags as MLflow takes them together: its files have a folder for each part of a name, and none that is a file too.

    So `moe/aux_loss` is `moe/aux_loss/all` beside `moe/aux_loss/moe_layer_00`.
    """
    names = {tag: _name(tag) for tag in tags}
    folders = {str(folder) for name in names.values() for folder in PurePosixPath(name).parents}
    return {tag: f"{name}/all" if name in folders else name for tag, name in names.items()}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as `run_config.schedule.peak_lr` -> text, as long as a parameter may be."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield prefix, text[:MOST_PARAM_CHARACTERS]


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
