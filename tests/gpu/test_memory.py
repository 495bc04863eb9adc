"""Memory of an engine's steps: what is held after them, and what a rank leaves behind when there is not enough."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.cluster.decision import Failure, Rules, decide
from launch.cluster.incidents import incident_of
from recipe.base.ds_config import load_ds_config
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Compute, RunConfig
from recipe.base.strict import strict_model
from recipe.engine.step import model_inputs, summed_loss_of
from recipe.planner.kept import Rows, kept_bytes
from recipe.run.folder import RunFolder
from recipe.run.records import read_failures
from recipe.safety.failures import kind_of, recorded_failures
from tests.conftest import ROOT
from tests.gpu.engines import SEED, Case, Training, batches_of, initial_weights, live_bytes, trained
from tests.recipe.model.test_modeling import initialized, small_config

pytestmark = pytest.mark.usefixtures("process_group")

WARM_UP = 2  # steps in which ZeRO-3 records what it gathers, and the optimizer makes its moments
KEPT_GIB = 2e-4  # for some of what there is to keep; other layers are recomputed wholly
SMALL_BYTES = 1 << 16  # the model's smallest matrix has as many; an engine holds megabytes


@torch.no_grad()
def evaluate(training: Training) -> float:
    """The loss of one batch, as evaluation computes it."""
    batch, engine = batches_of(7, documents=False)[0], training.engine
    engine.eval()
    loss = summed_loss_of(engine, training.case.compute, model_inputs(batch), torch.from_numpy(batch.targets)).item()
    engine.train()
    return loss


@pytest.mark.parametrize(("stage", "recompute"), [(1, "none"), (3, "selective")])
def test_steps_hold_nothing(stage, recompute, device, measured):
    """Steps and an evaluation leave an engine with the bytes that it held before them, and its end leaves none."""
    initial_weights(SEED)  # which stay
    case = Case(stage, bf16=device.type == "cuda", kept_gib=KEPT_GIB, compute=Compute(recompute=recompute))
    if device.type == "cuda":  # workspaces of cuBLAS, tens of MiB for each thread and stream, stay with the process
        with trained(case) as training:
            training.steps(1, 1)
        del training
    before = live_bytes(device)
    with trained(case) as training:
        training.steps(1, WARM_UP)
        held = [live_bytes(device)]
        training.steps(WARM_UP + 1, WARM_UP + 1)
        evaluate(training)
        training.steps(WARM_UP + 2, WARM_UP + 2)
        held.append(live_bytes(device))
    after = live_bytes(device)
    measured.update(held_bytes=held, before_bytes=before, after_bytes=after)
    assert held[1] == held[0] > before + 10 * SMALL_BYTES
    assert after - before < SMALL_BYTES


@pytest.mark.parametrize("name", ["attention", "attention_projection", "gate_up", "query_key_value"])
def test_kept_bytes(name, device, measured):
    """Recomputed layers that keep a result hold as many bytes more after a forward pass as the plan counts, and none after backward."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = small_config(first_k_dense_replace=3)
    model = initialized(config).to(device, dtype)
    tokens = torch.zeros(2, 65, dtype=torch.long, device=device)

    def held(names: tuple[str, ...]) -> int:
        model.recompute_layers(False, lambda number: names)
        before = live_bytes(device)
        loss = model(tokens[:, :-1], targets=tokens[:, 1:]).loss
        after = live_bytes(device)
        loss.backward()
        return after - before

    held((name,))  # gradients and workspaces, which stay
    nothing, kept = held(()), held((name,))
    planned = 3 * kept_bytes(config.shape(), name, Rows(2 * 64, 0, 0), moe=False, element=dtype.itemsize)
    measured.update(bytes=kept - nothing, planned=planned)
    # An attention kernel returns a seed and an offset besides.
    assert planned <= kept - nothing <= planned + 3 * 64
    assert held(()) == nothing


def job_of_h200() -> Any:
    """What `memory_report` reads of a job that fills a GPU; for a small one it has nothing to suggest."""
    model = "recipe/configs/models/7b-a1b"
    run: dict[str, Any] = {
        "run_dir": "run",
        "model": model,
        "tokenizer": "tokenizer",
        "data": {"tokens": "tokens", "seq_length": 4096},
        "schedule": {"total_tokens": 1000, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 100},
        "checkpoint": {"every_steps": 10},
    }
    job = SimpleNamespace(
        run=strict_model(RunConfig, run, "run config"),
        ds=load_ds_config(ROOT / "ds_configs/h200_1.json")[0],
        shape=load_model_shape(ROOT / model),
        order=SimpleNamespace(names=["en", "zh"]),
    )
    job.at = lambda number: job  # of one phase
    return job


def ask_too_much(training: Training, device: torch.device) -> None:
    """A step whose forward pass asks for more than there is, while the engine's own tensors are alive."""

    def hook(*_: Any) -> None:
        # 2^52 bytes on a CPU, which has no limit of its own; a GPU is out of memory far below.
        torch.empty(1 << 40 if device.type == "cuda" else 1 << 52, dtype=torch.uint8, device=device)

    handle = training.engine.module.model.layers[1].register_forward_pre_hook(hook)
    try:
        training.steps(2, 2)
    finally:
        handle.remove()


def test_out_of_memory(device, measured, tmp_path, capsys):
    """A rank out of memory says planned and reached peak and what helps, and leaves a record for its supervisor."""
    case = Case(3, bf16=device.type == "cuda")
    folder = RunFolder(tmp_path, attempt=1)
    with trained(case) as training:
        training.steps(1, 1)
        with pytest.raises(RuntimeError) as raised, recorded_failures(folder, job_of_h200()):
            ask_too_much(training, device)
    assert kind_of(raised.value) == "out_of_memory"
    if device.type == "cuda":
        assert isinstance(raised.value, torch.OutOfMemoryError)
        assert torch.OutOfMemoryError is torch.cuda.OutOfMemoryError
    report = capsys.readouterr().err
    measured["report"] = report.strip()[:1500]
    for words in ("out of memory: ", "planned peak ", "GiB in the ", "reached ", "suggestion "):
        assert words in report
    # What the next attempt takes off what recomputed layers keep is read from torch's message, of a GPU alone.
    missing_gib = read_failures(tmp_path, 1)[0]["missing_gib"]
    assert 512 < missing_gib <= 1024 if device.type == "cuda" else missing_gib == 0
    incident = incident_of(tmp_path, 1, 1)
    assert (incident.kind, incident.rank) == ("out_of_memory", 0)
    rules = Rules(tmp_path, max_stalls=3, backoff_s=1.0, step_down_on_oom=True, micro_batch=2)
    assert decide(Failure(incident, code=1, stalls=0, advanced=False), rules).step_down
