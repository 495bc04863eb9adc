"""What a profiled step spent its time on: by phase of the step, by part of the model, by kind of kernel.

Reads the trace that torch's profiler writes for Perfetto. On a GPU the time is that of its kernels, each attributed to
the host's operation that launched it; without one it is the own time of the operations of the thread that trains. A backward operation
belongs to the part whose forward operation it is the gradient of: the profiler links the two.
"""

from __future__ import annotations

import gzip
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from recipe.base.tables import markdown_table, ratio

PART, PHASE = "part:", "phase:"  # prefixes of the annotations that `recipe.telemetry.profiling` makes
OTHER = "other"
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCHES = {"cuda_runtime", "cuda_driver"}
# Names of kernels, or without a GPU of operations; the first that matches.
KINDS = {
    "communication": re.compile(r"nccl|c10d::|gloo|deepspeed_comm", re.IGNORECASE),
    "attention": re.compile(r"flash|fmha|scaled_dot_product|sdpa|flex_attention", re.IGNORECASE),
    "matmul": re.compile(
        r"gemm|cutlass|cublas|nvjet|xmma|wgmma|grouped_mm|aten::(add|b|badd)?mm$|aten::linear", re.IGNORECASE
    ),
}


@dataclass(frozen=True)
class Work:
    """Something that took time."""

    name: str
    kind: str
    phase: str
    part: str
    begin_us: float
    duration_us: float


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a mean step. `busy_s` is None without a GPU."""

    steps: int
    wall_s: float
    busy_s: float | None
    phases: dict[str, float]
    parts: dict[str, dict[str, float]]  # part -> kind -> seconds
    top: list[dict[str, Any]]  # name, count and seconds of the longest

    def as_json(self) -> dict[str, Any]:
        kinds: dict[str, float] = defaultdict(float)
        for by_kind in self.parts.values():
            for kind, seconds in by_kind.items():
                kinds[kind] += seconds
        return {
            "steps": self.steps,
            "wall_s": self.wall_s,
            "idle_share": None if self.busy_s is None else 1 - ratio(self.busy_s, self.wall_s),
            "phase_s": self.phases,
            "part_s": self.parts,
            "kind_s": dict(kinds),
            "top": self.top,
        }


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace, gzipped or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return orjson.loads(content)["traceEvents"]


def breakdown(events: list[dict[str, Any]], steps: int, top: int = 15) -> Breakdown:
    """Of a trace of whole steps, each phase of which is annotated."""
    complete = [e for e in events if e.get("ph") == "X"]
    threads = _Threads(complete, events)
    phases = _Phases(complete)
    on_gpu = [e for e in complete if e.get("cat") in ON_GPU]
    work = list(_of_gpu(on_gpu, complete, threads, phases) if on_gpu else _of_host(threads, phases))
    by_phase: dict[str, float] = defaultdict(float)
    by_part: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_name: dict[str, list[float]] = defaultdict(list)
    for item in work:
        seconds = item.duration_us / 1e6 / steps
        by_phase[item.phase] += seconds
        by_part[item.part][item.kind] += seconds
        by_name[item.name].append(seconds)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]
    return Breakdown(
        steps,
        phases.wall_us / 1e6 / steps,
        _covered_us(work) / 1e6 / steps if on_gpu else None,
        dict(by_phase),
        {part: dict(kinds) for part, kinds in by_part.items()},
        [{"name": name, "count": len(each) / steps, "s": sum(each)} for name, each in longest],
    )


def _of_gpu(
    kernels: list[dict[str, Any]], complete: list[dict[str, Any]], threads: _Threads, phases: _Phases
) -> Iterable[Work]:
    launched = {
        e["args"]["correlation"]: e for e in complete if e.get("cat") in LAUNCHES and "correlation" in e["args"]
    }
    for kernel in kernels:
        job = launched.get(kernel["args"].get("correlation"))
        phase = part = OTHER
        if job is not None:
            phase = phases.at(job["ts"])
            part = threads.part_at(job["tid"], job["ts"])
        kind = "memory copies" if kernel["cat"] != "kernel" else kind_of(kernel["name"])
        yield Work(kernel["name"], kind, phase, _named(part, phase), kernel["ts"], kernel["dur"])


def _of_host(threads: _Threads, phases: _Phases) -> Iterable[Work]:
    for event, own_us in threads.own_time(phases.thread):
        phase = phases.at(event["ts"])
        part = threads.part_at(event["tid"], event["ts"])
        yield Work(event["name"], kind_of(event["name"]), phase, _named(part, phase), event["ts"], own_us)


def _named(part: str, phase: str) -> str:
    """What the optimizer does is in no module."""
    return phase if part == OTHER and phase == "optimizer" else part


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), OTHER)


class _Phases:
    """The annotated phases, one after another on one thread."""

    def __init__(self, complete: list[dict[str, Any]]):
        spans = sorted((e["ts"], e["ts"] + e["dur"], e["name"][len(PHASE) :]) for e in complete if _is(e, PHASE))
        if not spans:
            raise ValueError("the trace has no annotated phases")
        self.thread = next(e["tid"] for e in complete if _is(e, PHASE))
        self._begins = [begin for begin, _, _ in spans]
        self._names = [name for _, _, name in spans]
        self._end = max(end for _, end, _ in spans)
        self.wall_us = self._end - self._begins[0]

    def at(self, ts: float) -> str:
        number = bisect_right(self._begins, ts) - 1
        return self._names[number] if number >= 0 and ts <= self._end else OTHER


class _Threads:
    """The nesting of what the host did on each thread."""

    def __init__(self, complete: list[dict[str, Any]], events: list[dict[str, Any]]):
        self._events: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for event in complete:
            if event.get("cat") in ("cpu_op", "user_annotation"):
                self._events[event["tid"]].append(event)
        self._begins, self._parents = {}, {}
        for tid, on_thread in self._events.items():
            on_thread.sort(key=lambda e: (e["ts"], -e["dur"]))
            self._begins[tid] = [e["ts"] for e in on_thread]
            self._parents[tid] = _parents(on_thread)
        starts = {e["id"]: (e["tid"], e["ts"]) for e in events if e.get("ph") == "s" and e.get("cat") == "fwdbwd"}
        # Backward operation -> the forward one that it is the gradient of.
        self._forward = {
            (e["tid"], e["ts"]): starts[e["id"]]
            for e in events
            if e.get("ph") == "f" and e.get("cat") == "fwdbwd" and e["id"] in starts
        }
        self._known: dict[tuple[Any, int], str] = {}

    def part_at(self, tid: Any, ts: float) -> str:
        """The part in which a thread was at a time: of the innermost annotation, or of the gradient being computed."""
        if tid not in self._events:
            return OTHER
        number = bisect_right(self._begins[tid], ts) - 1
        while number >= 0 and ts > self._events[tid][number]["ts"] + self._events[tid][number]["dur"]:
            number = self._parents[tid][number]
        return self._part_of(tid, number)

    def _part_of(self, tid: Any, number: int) -> str:
        way = []
        part = OTHER
        while number >= 0:
            if (known := self._known.get((tid, number))) is not None:
                part = known
                break
            way.append(number)
            event = self._events[tid][number]
            if _is(event, PART):
                part = event["name"][len(PART) :]
                break
            if (forward := self._forward.get((tid, event["ts"]))) is not None:
                part = self.part_at(*forward)
                break
            number = self._parents[tid][number]
        for passed in way:
            self._known[tid, passed] = part
        return part

    def own_time(self, tid: Any) -> Iterable[tuple[dict[str, Any], float]]:
        """Each operation of a thread with the microseconds that are not its children's."""
        on_thread = self._events[tid]
        own = [e["dur"] for e in on_thread]
        for event, parent in zip(on_thread, self._parents[tid], strict=True):
            if parent >= 0:
                own[parent] -= event["dur"]
        return zip(on_thread, (max(0.0, us) for us in own), strict=True)


def _is(event: dict[str, Any], prefix: str) -> bool:
    return event.get("cat") == "user_annotation" and event["name"].startswith(prefix)


def _parents(events: list[dict[str, Any]]) -> list[int]:
    """For events by start, the longer first: the number of the one around each, -1 for none."""
    parents: list[int] = []
    stack: list[int] = []
    for number, event in enumerate(events):
        while stack and event["ts"] >= events[stack[-1]]["ts"] + events[stack[-1]]["dur"]:
            stack.pop()
        parents.append(stack[-1] if stack else -1)
        stack.append(number)
    return parents


def _covered_us(work: Iterable[Work]) -> float:
    """Time in which at least one of them ran."""
    covered, end = 0.0, float("-inf")
    for begin, stop in sorted((item.begin_us, item.begin_us + item.duration_us) for item in work):
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return covered


def as_text(times: Breakdown) -> str:
    """Tables for people: phases, parts by kind, the longest kernels."""
    ms = lambda seconds: f"{1e3 * seconds:,.2f}"  # noqa: E731
    share = lambda seconds: f"{ratio(seconds, times.wall_s):.1%}"  # noqa: E731
    operations = "the GPU's kernels" if times.busy_s is not None else "the host's operations"
    lines = [f"{ms(times.wall_s)} ms a step, mean of {times.steps}; times are of {operations}", ""]
    phases = sorted(times.phases.items(), key=lambda item: -item[1])
    if times.busy_s is not None:
        phases.append(("idle", times.wall_s - times.busy_s))
    lines += [markdown_table(["phase", "ms", "of the step"], [[n, ms(s), share(s)] for n, s in phases]), ""]
    kinds = [*KINDS, *sorted({k for by_kind in times.parts.values() for k in by_kind} - {*KINDS, OTHER}), OTHER]
    rows = [
        [part, *(ms(by_kind[k]) if k in by_kind else "" for k in kinds), ms(sum(by_kind.values())), share(sum(by_kind.values()))]
        for part, by_kind in sorted(times.parts.items(), key=lambda item: -sum(item[1].values()))
    ]  # fmt: skip
    lines += [markdown_table(["part, ms", *kinds, "all", "of the step"], rows), ""]
    rows = [[t["name"][:90].replace("|", "/"), f"{t['count']:,.0f}", ms(t["s"]), share(t["s"])] for t in times.top]
    return "\n".join([*lines, markdown_table(["longest", "times a step", "ms", "of the step"], rows)])
