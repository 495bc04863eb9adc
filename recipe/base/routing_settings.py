"""The run config's `routing:` section: balance, capacity and what is done when routing goes wrong.

The model's config.json owns what an exported model needs (scores, top-k, groups); this is for training alone.
docs/design.md argues the defaults.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recipe.base.strict import Section


class Capacity(Section):
    """How many assignments an expert takes in training; evaluation is always dropless."""

    mode: Literal["dropless", "drop", "reroute"] = "dropless"
    factor: float = Field(1.25, gt=0)  # of the fair share; drop and reroute
    scope: Literal["rank", "expert_parallel_group"] = "rank"  # whose micro-batch the share is of
    gives_way: Literal["lowest_score", "latest_position"] = "lowest_score"


class Collapse(Section):
    """Experts that no token reaches, or routers that are certain: a balance that must be pushed harder."""

    dead_share: float = Field(0.25, gt=0, le=1)  # of a layer's experts without a token in the step
    min_entropy: float = Field(0.2, ge=0, lt=1)  # of the mean token's scores, over ln(experts)
    patience: int = Field(50, gt=0)  # consecutive steps
    action: Literal["raise_aux_loss", "revive"] = "raise_aux_loss"
    aux_loss_factor: float = Field(10.0, gt=1)
    duration: int = Field(500, gt=0)  # steps that aux_loss_factor holds; the least between two revivals


class Overload(Section):
    """An expert far above the mean: capacity is tightened so that its rank neither waits nor runs out of memory."""

    max_over_mean: float = Field(4.0, gt=1)
    patience: int = Field(20, gt=0)
    capacity_factor: float = Field(1.0, gt=0)
    duration: int = Field(200, gt=0)


class LogitGrowth(Section):
    """Router logits that run away, which makes the choice a step function of rounding errors."""

    max_logit: float = Field(30.0, gt=0)
    patience: int = Field(50, gt=0)
    z_loss_factor: float = Field(10.0, gt=1)
    duration: int = Field(500, gt=0)


class Mitigations(Section):
    """Detectors and what they do, each null to switch it off. They see the steps that are logged."""

    collapse: Collapse | None = Collapse()
    overload: Overload | None = None  # needs a capacity to tighten
    logit_growth: LogitGrowth | None = LogitGrowth()


class Routing(Section):
    """Router losses against a language-model loss of weight 1, the expert bias, capacity, mitigations."""

    aux_loss_coef: float = Field(0.001, ge=0)
    aux_loss_scope: Literal["micro_batch", "sequence", "global_batch"] = "sequence"
    z_loss_coef: float = Field(0.001, ge=0)  # ST-MoE, arXiv 2202.08906
    bias_update_rate: float = Field(0.001, ge=0)  # DeepSeek-V3, arXiv 2412.19437 section 4.2; 0: no bias
    bias_freeze_share: float = Field(0.05, ge=0, le=1)  # of the run's tokens, at its end, without bias updates
    jitter: float = Field(0.0, ge=0, lt=1)  # Switch Transformers, arXiv 2101.03961, used 0.01
    capacity: Capacity = Capacity()
    mitigations: Mitigations = Mitigations()

    def problems(self) -> list[str]:
        """What cannot work together, one sentence each."""
        found, overload = [], self.mitigations.overload
        if overload is not None and self.capacity.mode == "dropless":
            found.append("routing.mitigations.overload tightens a capacity; set routing.capacity.mode drop or reroute")
        elif overload is not None and overload.capacity_factor >= self.capacity.factor:
            found.append(
                f"routing.mitigations.overload.capacity_factor {overload.capacity_factor:g} does not tighten "
                f"routing.capacity.factor {self.capacity.factor:g}; lower it"
            )
        collapse = self.mitigations.collapse
        if collapse is not None and collapse.action == "raise_aux_loss" and self.aux_loss_coef == 0:
            found.append(
                "routing.mitigations.collapse raises an aux loss whose routing.aux_loss_coef is 0; "
                "set one, choose action revive, or set collapse null"
            )
        logits = self.mitigations.logit_growth
        if logits is not None and self.z_loss_coef == 0:
            found.append(
                "routing.mitigations.logit_growth raises a z-loss whose routing.z_loss_coef is 0; set one, or null it"
            )
        return found
