"""What to say when memory runs out: what the plan expected, what was reached, and the cheapest ways out."""

from __future__ import annotations

import resource

import torch

from recipe.base.hardware import GIB, accelerator_of, cluster_of
from recipe.planner.plan import Plan
from recipe.planner.suggestions import suggestions
from recipe.planner.workload import Workload, facts_of
from recipe.run.job import Job

PLANNED_FOR = "a100-80gb"  # where the GPU is unknown, or there is none


def memory_report(job: Job) -> str:
    """For the log of the rank that ran out of memory."""
    run, cuda = job.run, torch.cuda.is_available()
    known = accelerator_of(torch.cuda.get_device_name()) if cuda else None
    cluster = cluster_of(known.name if known else PLANNED_FOR, job.ds.world_size, None)
    plan = Plan(Workload(job.shape, cluster, job.ds, facts_of(run, len(job.order.names))))
    terms = sorted(plan.memory.at(plan.memory.peak_moment).items(), key=lambda term: -term[1])
    if cuda:
        reached = f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB of tensors, {torch.cuda.max_memory_reserved() / GIB:.1f} GiB reserved"
    else:
        reached = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.1f} GiB by the process"
    lines = [
        f"planned peak   {plan.memory.peak_gib:.1f} GiB in the {plan.memory.peak_moment}: "
        + ", ".join(f"{name} {size:.1f}" for name, size in terms[:4]),
        f"reached        {reached}",
        *(f"way out        {way}" for way in suggestions(plan)[:3]),
    ]
    return "\n".join(lines)
