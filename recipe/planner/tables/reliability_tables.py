"""What docs/plan.md says of failures, restarts and storage: the published range, and the goodput of the flagship with it."""

from __future__ import annotations

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.reliability import COMPILE_S, CONDITIONS, GB
from recipe.base.tables import markdown_table
from recipe.planner.cost import checkpoint_bytes, reliability
from recipe.planner.search import shipped

GPUS = (8, 64, 256, 1024, 4096)


def reliability_tables() -> str:
    """The range, and what follows from it for the flagship on more and more GPUs."""
    return f"{_conditions()}\n\n{_goodput()}"


def _conditions() -> str:
    lines = {
        "failures a GPU-day": [f"{c.failures_per_gpu_day:.5f}" for c in CONDITIONS.values()],
        "s until a failure has ended all ranks": [f"{c.noticed_s:.0f}" for c in CONDITIONS.values()],
        "s from there to the first step, without compiling": [f"{c.start_s:.0f}" for c in CONDITIONS.values()],
        "s of compiling": [f"{COMPILE_S:.0f}"] * len(CONDITIONS),
        "GB/s that a node writes": [f"{c.node_write_bytes_per_s / GB:.2f}" for c in CONDITIONS.values()],
        "GB/s that a node reads": [f"{c.node_read_bytes_per_s / GB:.2f}" for c in CONDITIONS.values()],
        "GB/s that all nodes write at most": [f"{c.storage_write_bytes_per_s / GB:,.1f}" for c in CONDITIONS.values()],
        "GB/s that all nodes read at most": [f"{c.storage_read_bytes_per_s / GB:,.1f}" for c in CONDITIONS.values()],
    }
    return markdown_table(["published", *CONDITIONS], [[name, *values] for name, values in lines.items()])


def _goodput() -> str:
    s = shipped.named("a100_256")
    state = checkpoint_bytes(sum(load_model_shape(shipped.MODELS / s.model).parameters().values()), zero_stage=3)
    rows = []
    for gpus in GPUS:
        planned = [reliability(cluster_of(s.gpu, gpus, s.interconnect), state, c) for c in CONDITIONS.values()]
        rows.append([
            f"{s.model} on {gpus:,} GPUs", *(f"{r.goodput:.1%}" for r in planned),
            *(", ".join(values) for values in (
                [f"{r.mtbf_s / 86_400:.1f}" for r in planned],
                [f"{r.restart_s / 60:.0f}" for r in planned],
                [f"{r.interval_s / 60:.0f}" for r in planned],
            )),
        ])  # fmt: skip
    head = [
        "goodput planned",
        *CONDITIONS,
        "days between failures",
        "minutes of a restart",
        "minutes between checkpoints",
    ]
    return markdown_table(head, rows)
