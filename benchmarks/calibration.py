#!/usr/bin/env python3
"""The planner's constants as one GPU was measured to reach them, and how far the plan of its training step is off.

    python benchmarks/calibration.py work/gpu/h200.json --output h200_calibration.json

Takes a result of benchmarks/gpu.py: the lines of benchmarks/kernel_times.py and the result of benchmarks/train_step.py. Prints
Markdown, and writes the file that `launch/plan.py --calibration FILE` takes. Each constant is derived by the planner's own
formulas (recipe/planner/timing/kernels.py), from lines that did not fail and were measured at least three times, in bf16 where the
kernel computes; the median where there are several:

    matmul_efficiency     FLOP/s of matmuls of 4,096 or more in each dimension / share that tiles leave / the peak
    attention_efficiency  E, and attention_half H, of FLOP/s / the peak = E * length / (length + H), by least squares over
                          the lengths, two at least; PyTorch's attention on whole sequences, forward and backward
    hbm_efficiency        bytes/s of norms and an optimizer's update / the datasheet's
    grouped_gemm          FLOP/s of the grouped GEMM that this recipe runs on this GPU / share that tiles leave of an
                          expert's rows / the peak / matmul_efficiency; as many rows for each expert, forward and backward
    launch_s              seconds of an eager launch
    host_read_s           seconds that a GPU loses by a value that the host reads, with small kernels launched after it
    memory_gib            as CUDA reports it
    run_efficiency        planned seconds of a compiled ZeRO-1 step's kernels, with the constants above and without
                          imbalance of ranks, over its measured ones; of the flagship's slice where it was measured, of
                          one micro-batch

A constant that cannot be derived is left out, with the reason. A calibrated plan of a measured step has these constants and
no imbalance of ranks, since a single GPU has every expert; the plan beside it is what the planner says without knowing either.
The calibrated time of the step of run_efficiency is right by construction: the other steps are the check.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernel_constants import Derived, Line, kernel_constants, planned_kernels
from recipe.base.arguments import output_file
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.hardware import Accelerator, accelerator_of, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.strict import load_json, strict_model
from recipe.base.tables import markdown_table
from recipe.planner.calibration import FORMAT, WORDS, Calibration, problem_of
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import parsed
from recipe.planner.timing.timeline import EXPECTED, step_time
from recipe.planner.workload import RunFacts, Workload

MODELS = Path(__file__).resolve().parents[1] / "recipe/configs/models"
FACTS = ("date", "commit", "dirty", "driver")
ONE_RANK = 1.0  # assignments of the busiest rank over the mean, where there is one
SHOWN = {
    "matmul": ("rows", "inner", "columns"),
    "grouped_gemm": ("experts", "rows", "inner", "columns"),
    "attention": ("batch", "seq_length", "heads", "head_dim"),
}


@dataclass(frozen=True)
class Step:
    """A training step of this recipe: what the planner plans, and what was measured of it."""

    work: Workload
    measured: dict[str, Any]


def calibrated(kernels: list[Line], train_step: dict[str, Any] | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Every constant that the measurement shows, beside the planner's, and the plans before and after.

    Args:
        kernels: lines of benchmarks/kernel_times.py.
        train_step: the result of benchmarks/train_step.py, None if there is none.
        facts: device, date, commit, dirty, driver, packages and memory_gib, as a result of benchmarks/gpu.py has them.

    Returns:
        {format, gpu, device, date, commit, dirty, driver, packages, constants, run_efficiency_of, plans, kernels, notes}.
        `constants` has for each the measured value or None, the planner's, their ratio, the number of lines, and the reason
        where there is none: of tiny shapes, and of a GPU that recipe/base/hardware.py does not know, there is none.
    """
    device = str(facts.get("device"))
    known = accelerator_of(device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "gpu": known.name if known else None,
        "device": device,
        **{name: facts.get(name) for name in FACTS},
        "packages": facts.get("packages") or {},
    }
    if (reason := _why_none(device, facts)) is not None or known is None:
        constants = {name: _beside(Derived(reason=reason), None) for name in WORDS}
        notes = [f"no constant is derived: {reason}"]
        return result | {"constants": constants, "run_efficiency_of": None, "plans": {}, "kernels": [], "notes": notes}
    derived = {**kernel_constants(kernels, known), "memory_gib": _memory(facts)}
    derived = {name: _checked(name, d) for name, d in derived.items()}
    steps = _steps(train_step, known)
    source, derived["run_efficiency"] = _run_efficiency(steps, _replaced(known, derived))
    gpu = _replaced(known, derived)
    return result | {
        "constants": {name: _beside(d, getattr(known, name)) for name, d in derived.items()},
        "run_efficiency_of": source,
        "plans": _plans(steps, gpu),
        "kernels": planned_kernels(kernels, known, gpu),
        "notes": [f"{name} is not derived: {d.reason}" for name, d in derived.items() if d.value is None],
    }


def _why_none(device: str, facts: dict[str, Any]) -> str | None:
    """Why the lines say nothing of the planner's constants; None if they do."""
    if accelerator_of(device) is None:
        return (
            f"{device} is not in recipe/base/hardware.py; add its datasheet there, then `make gpu GPU='--only calibrated'` "
            "derives them from what was measured"
        )
    if facts.get("small"):
        return "tiny shapes were measured (--small), which show nothing of what a GPU reaches; measure without it"
    return None


def _memory(facts: dict[str, Any]) -> Derived:
    if facts.get("memory_gib") is None:
        return Derived(reason="the result does not say how much memory CUDA reports")
    return Derived(facts["memory_gib"], 1)


def _checked(name: str, derived: Derived) -> Derived:
    """As it is, or why it is nothing that a GPU reaches."""
    problem = None if derived.value is None else problem_of(name, derived.value)
    return derived if problem is None else Derived(reason=problem)


def _replaced(gpu: Accelerator, derived: dict[str, Derived]) -> Accelerator:
    values: dict[str, Any] = {name: d.value for name, d in derived.items() if d.value is not None}
    return replace(gpu, **values)


def _beside(derived: Derived, planned: float | None) -> dict[str, Any]:
    ratio = None if derived.value is None or planned is None else derived.value / planned
    return {
        "measured": derived.value,
        "planned": planned,
        "ratio": ratio,
        "lines": derived.lines,
        "reason": derived.reason,
    }


# Plans of the training step


def _steps(train_step: dict[str, Any] | None, gpu: Accelerator) -> dict[str, Step]:
    """Those of this recipe's that were measured, of a model of this recipe's; the flagship's slice comes first."""
    if train_step is None:
        return {}
    from benchmarks.contenders import CONTENDERS, Ours  # which imports torch

    case, contenders = train_step["case"], train_step["contenders"]
    measured = {name: (case, CONTENDERS.get(name), figures) for name, figures in contenders.items()}
    if flagship := train_step.get("flagship"):
        name = f"ours, ZeRO-1, slice of {flagship['case']['model']}"
        measured = {name: (flagship["case"], Ours(), flagship), **measured}
    return {
        name: Step(_workload(case, ours, gpu), figures)
        for name, (case, ours, figures) in measured.items()
        if "step_s" in figures and isinstance(ours, Ours) and (MODELS / case["model"]).is_dir()
    }


def _workload(case: dict[str, Any], ours: Any, gpu: Accelerator) -> Workload:
    from benchmarks.step_run.contender import Case  # which imports torch

    whole = load_model_shape(MODELS / case["model"])
    shape = whole.model_copy(update={"num_hidden_layers": case["layers"]})
    of_step = Case(shape, case["seq_length"], case["micro_batch"], case.get("recompute", "none"))
    config = ours.ds_config(of_step, bf16=case["precision"] == "bfloat16")
    run = RunFacts(of_step.seq_length, ours.recompute_of(of_step), compile=ours.compile)
    return Workload(shape, cluster_of(gpu.name, 1, None), parsed(config), run)


def _known(work: Workload, gpu: Accelerator) -> Workload:
    """With what was measured of the GPU, and the load of a single one."""
    run = replace(work.run, imbalance=ONE_RANK)
    return replace(work, cluster=replace(work.cluster, accelerator=gpu), run=run)


def _run_efficiency(steps: dict[str, Step], gpu: Accelerator) -> tuple[str | None, Derived]:
    """The step that it comes from, if it gives one, and the planned seconds of its kernels over its measured ones."""
    for name, step in steps.items():
        if step.work.ds.zero_optimization.stage == 1 and step.work.run.compile:
            kernels_s = step_time(_known(step.work, gpu), replace(EXPECTED, compute=1.0, imbalance=ONE_RANK)).step_s
            derived = _checked("run_efficiency", Derived(kernels_s / step.measured["step_s"], 1))
            return name if derived.value is not None else None, derived
    return None, Derived(
        reason="no compiled ZeRO-1 step of this recipe, of a model of recipe/configs/models, was measured"
    )


def _plans(steps: dict[str, Step], gpu: Accelerator) -> dict[str, Any]:
    """Planned and measured of each step; an error is planned over measured, less 1."""
    plans: dict[str, Any] = {}
    for name, step in steps.items():
        before, after = Plan(step.work), Plan(_known(step.work, gpu))
        plans[name] = {
            "step_s": _errors(step.measured["step_s"], before.expected.step_s, after.expected.step_s),
            "peak_gib": _errors(step.measured["peak_gib"], before.memory.peak_gib, after.memory.peak_gib),
        }
    return plans


def _errors(measured: float, planned: float, calibrated: float) -> dict[str, float]:
    return {"measured": measured, "planned": planned, "error": planned / measured - 1,
            "calibrated": calibrated, "calibrated_error": calibrated / measured - 1}  # fmt: skip


# Files and tables


def file_of(calibration: dict[str, Any]) -> dict[str, Any] | None:
    """The calibration file's content; None where no constant was derived."""
    measured = {name: c["measured"] for name, c in calibration["constants"].items() if c["measured"] is not None}
    if not measured:
        return None
    steps = {
        name: plan["step_s"]["measured"] / plan["step_s"]["calibrated"]
        for name, plan in calibration["plans"].items()
        if name != calibration["run_efficiency_of"]
    }
    names = ("format", "gpu", "device", *FACTS, "packages")
    content = {name: calibration[name] for name in names} | {"constants": measured, "steps": steps}
    strict_model(Calibration, content, "the measurement")
    return content


def markdown(calibration: dict[str, Any]) -> str:
    """Constants, plans and kernels as tables, and what was not derived."""
    known = any(c["planned"] is not None for c in calibration["constants"].values())
    tables = [_constants_table(calibration) if known else "", _plans_table(calibration), _kernels_table(calibration)]
    notes = "\n".join(f"- {note.replace('|', '/')}." for note in calibration["notes"])
    return "\n\n".join(part for part in (*tables, notes) if part)


def _constants_table(calibration: dict[str, Any]) -> str:
    rows = []
    for name, c in calibration["constants"].items():
        measured = ["", ""] if c["measured"] is None else [f"{c['measured']:.4g}", f"{c['ratio']:.2f}"]
        rows.append([WORDS[name], measured[0], f"{c['planned']:.4g}", measured[1], str(c["lines"])])
    return markdown_table([f"constant of {calibration['gpu']}", "measured", "planner's", "ratio", "from lines"], rows)


def _plans_table(calibration: dict[str, Any]) -> str:
    rows = []
    for name, plan in calibration["plans"].items():
        step, peak = plan["step_s"], plan["peak_gib"]
        own = " (calibrated: equal by construction)" if name == calibration["run_efficiency_of"] else ""
        rows.append([
            name + own, f"{1e3 * step['measured']:,.0f}", f"{1e3 * step['planned']:,.0f}", f"{step['error']:+.1%}",
            f"{1e3 * step['calibrated']:,.0f}", f"{step['calibrated_error']:+.1%}",
            f"{peak['measured']:.1f}", f"{peak['planned']:.1f}", f"{peak['error']:+.1%}",
            f"{peak['calibrated']:.1f}", f"{peak['calibrated_error']:+.1%}",
        ])  # fmt: skip
    head = ["training step", "measured ms", "planned ms", "error", "calibrated ms", "error", "measured GiB", "planned GiB",
            "error", "calibrated GiB", "error"]  # fmt: skip
    return markdown_table(head, rows) if rows else ""


def _kernels_table(calibration: dict[str, Any]) -> str:
    rows = []
    for kernel in calibration["kernels"]:
        measured, planned, after = (1e3 * kernel[key] for key in ("measured_s", "planned_s", "calibrated_s"))
        rows.append([
            f"{kernel['kernel']}, {kernel['case']}", kernel["pass"],
            " x ".join(f"{kernel['shape'][name]:,}" for name in SHOWN[kernel["kernel"]]),
            f"{measured:.3f}", f"{planned:.3f}", f"{planned / measured - 1:+.1%}", f"{after:.3f}", f"{after / measured - 1:+.1%}",
        ])  # fmt: skip
    head = ["kernel", "pass", "shape", "measured ms", "planned ms", "error", "calibrated ms", "error"]
    return markdown_table(head, rows, left=3) if rows else ""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, metavar="RESULT.json", help="written by benchmarks/gpu.py")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="where the calibration file is written")
    args = parser.parse_args(argv)
    calibration = calibrated(*_parts(load_json(args.result), args.result))
    if args.output is not None:
        content = file_of(calibration)
        if content is None:
            raise UserError(
                f"{args.result} calibrates nothing, so no file is written: {'; '.join(calibration['notes'])}"
            )
        write_json(args.output, content)
    print(markdown(calibration))


def _parts(result: Any, path: Path) -> tuple[list[Line], dict[str, Any] | None, dict[str, Any]]:
    """Lines, training step and facts of a result.

    Raises:
        UserError: it is no result of benchmarks/gpu.py.
    """
    parts = result if isinstance(result, dict) else {}
    kernels, train_step = parts.get("kernels"), parts.get("train_step")
    whole = isinstance(kernels, list) and all(isinstance(line, dict) for line in kernels)
    if not whole or not isinstance(train_step, dict | None) or not isinstance(parts.get("device"), str):
        raise UserError(
            f"{path} is no result of benchmarks/gpu.py, which has device, kernels and train_step; give such a file"
        )
    if train_step is not None and not {"case", "contenders"} <= train_step.keys():
        raise UserError(f"train_step of {path} is no result of benchmarks/train_step.py; measure it again")
    return kernels, train_step, parts


if __name__ == "__main__":
    sys.exit(main())
