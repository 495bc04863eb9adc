"""What is done, without anybody watching, when routing goes wrong; decided from a logged step's metrics.

All ranks see the same metrics, so they decide alike. A detector fires when its sign has held for `patience`
steps; its remedy then holds for `duration` steps, after which the detector watches again. The state is part
of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch

from recipe.base.run_config.routing import Collapse, LogitGrowth, Overload
from recipe.engine.moe.routing_control import RoutingControl

REVIVAL = 0.1  # added to a dead expert's bias: a tenth of the range of sigmoid scores


class Mitigator:
    """The detectors of a run.

    Args:
        state: of an earlier attempt, as `state` gave it: per detector the step since which its sign
            holds, and the step until which its remedy does.
    """

    def __init__(self, control: RoutingControl, state: dict[str, dict[str, int | None]] | None = None):
        self._control, settings = control, control.settings.mitigations
        detectors = {
            "collapse": settings.collapse,
            "overload": settings.overload,
            "logit_growth": settings.logit_growth,
        }
        self._detectors: dict[str, Any] = {
            name: detector for name, detector in detectors.items() if detector is not None
        }
        self.state = {name: dict((state or {}).get(name, {"since": None, "until": None})) for name in self._detectors}
        self._apply()

    def update(self, step: int, metrics: dict[str, Any]) -> list[dict[str, Any]]:
        """Look at a logged step.

        Returns:
            what happened, an event each: step, event, detector, and in `message` what a reader needs to know.
        """
        events: list[dict[str, Any]] = []

        def happened(kind: str, detector: str, message: str) -> None:
            events.append({"step": step, "event": kind, "detector": detector, "message": message})

        for name, settings in self._detectors.items():
            state, sign = self.state[name], _sign(settings, metrics)
            if state["until"] is not None:
                if step < state["until"]:
                    continue
                state["until"] = None
                happened("ended", name, f"{name}: the remedy has ended")
            if sign is None:
                state["since"] = None
                continue
            since = step if state["since"] is None else state["since"]
            state["since"] = since
            if step - since + 1 >= settings.patience:
                state["since"], state["until"] = None, step + settings.duration
                happened("fired", name, f"{name}: {sign}; {self._remedy(settings, metrics)}")
        self._apply()
        return events

    def _remedy(self, settings: Collapse | Overload | LogitGrowth, metrics: dict[str, Any]) -> str:
        """Do what is done once, and say what is done."""
        until = f"for {settings.duration} steps"
        if isinstance(settings, Overload):
            return f"capacity factor {settings.capacity_factor:g} {until}"
        if isinstance(settings, LogitGrowth):
            return f"z-loss coefficient times {settings.z_loss_factor:g} {until}"
        if settings.action == "raise_aux_loss":
            return f"aux loss coefficient times {settings.aux_loss_factor:g} {until}"
        dead_LE = torch.tensor(metrics["tokens_per_expert"]) == 0
        self._control.raise_bias(dead_LE, REVIVAL)
        return f"bias of {int(dead_LE.sum())} dead experts raised by {REVIVAL:g}"

    def _apply(self) -> None:
        """Set what the control goes by from the remedies that hold."""
        control, base = self._control, self._control.settings
        active = {name: settings for name, settings in self._detectors.items() if self.state[name]["until"] is not None}
        collapse, overload, logits = (active.get(name) for name in ("collapse", "overload", "logit_growth"))
        if collapse is not None and collapse.action == "raise_aux_loss":
            control.aux_loss_coef = base.aux_loss_coef * collapse.aux_loss_factor
        else:
            control.aux_loss_coef = base.aux_loss_coef
        control.z_loss_coef = base.z_loss_coef * (logits.z_loss_factor if logits else 1.0)
        control.capacity_factor = overload.capacity_factor if overload else base.capacity.factor


def _sign(settings: Collapse | Overload | LogitGrowth, metrics: dict[str, Any]) -> str | None:
    """What a detector sees, in words, or None when all is well."""
    routing = metrics["routing"]
    if isinstance(settings, Overload):
        return _beyond(routing["load_max_over_mean"], settings.max_over_mean, "load max/mean {:.1f} in MoE layer {}")
    if isinstance(settings, LogitGrowth):
        return _beyond(routing["max_logit"], settings.max_logit, "router logits up to {:.1f} in MoE layer {}")
    experts = len(metrics["tokens_per_expert"][0])
    dead = [number / experts for number in routing["dead_experts"]]
    certain = [-entropy for entropy in routing["entropy"]]
    return _beyond(dead, settings.dead_share, "{:.0%} of the experts dead in MoE layer {}") or _beyond(
        certain, -settings.min_entropy, "router entropy {:.2f} of its maximum in MoE layer {}", sign=-1
    )


def _beyond(values: list[float], limit: float, message: str, sign: int = 1) -> str | None:
    """The worst layer in words, if it is beyond the limit."""
    worst = max(range(len(values)), key=lambda layer: values[layer])
    return message.format(sign * values[worst], worst) if values[worst] > limit else None
