"""The run config's `routing:` section: balance, capacity and what is done when routing goes wrong.

The model's config.json owns what an exported model needs (scores, top-k, groups); this is for training alone.
docs/design.md argues the defaults.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recipe.base.model_shape import ModelShape
from recipe.base.strict import Section


class Capacity(Section):
    """How many assignments an expert takes in training; evaluation is always dropless."""

    mode: Literal["dropless", "drop", "reroute"] = "dropless"
    """What becomes of assignments beyond an expert's capacity: `dropless` has no capacity, `drop` leaves them out,
    `reroute` gives them to the token's best expert that has room."""
    factor: float = Field(1.25, gt=0)
    """Capacity over the fair share, which is tokens * experts per token / experts; for drop and reroute. Lower:
    less memory and waiting, more drops. Switch Transformers used 1 to 2 (arXiv 2101.03961)."""
    scope: Literal["rank", "expert_parallel_group"] = "rank"
    """Whose micro-batch the share is of: of one rank, or of all ranks of an expert-parallel group."""
    gives_way: Literal["lowest_score", "latest_position"] = "lowest_score"
    """Which assignments a full expert turns down: those with the lowest score, or those of the latest tokens."""


class Collapse(Section):
    """Experts that no token reaches, or routers that are certain: a balance that must be pushed harder."""

    dead_share: float = Field(0.25, gt=0, le=1)
    """Share of a layer's experts without a token in the step, above which the layer has collapsed."""
    min_entropy: float = Field(0.2, ge=0, lt=1)
    """Mean entropy of a token's scores over its maximum, ln(experts), below which the layer has collapsed."""
    patience: int = Field(50, gt=0)
    """Consecutive steps with the sign before the action is taken."""
    action: Literal["raise_aux_loss", "revive"] = "raise_aux_loss"
    """`raise_aux_loss` multiplies the aux loss for a while; `revive` raises the bias of dead experts once."""
    aux_loss_factor: float = Field(10.0, gt=1)
    """Factor on `aux_loss_coef` while raise_aux_loss lasts."""
    duration: int = Field(500, gt=0)
    """Steps that `aux_loss_factor` holds; the least between two revivals."""


class Overload(Section):
    """An expert far above the mean: capacity is tightened so that its rank neither waits nor runs out of memory."""

    max_over_mean: float = Field(4.0, gt=1)
    """Tokens of a layer's busiest expert over the mean of its experts, above which it is overloaded."""
    patience: int = Field(20, gt=0)
    """Consecutive steps with the sign before the capacity is tightened."""
    capacity_factor: float = Field(1.0, gt=0)
    """`capacity.factor` meanwhile; must be lower than that."""
    duration: int = Field(200, gt=0)
    """Steps that the tighter capacity holds."""


class LogitGrowth(Section):
    """Router logits that run away, which makes the choice a step function of rounding errors."""

    max_logit: float = Field(30.0, gt=0)
    """Largest router logit of a step, above which they run away."""
    patience: int = Field(50, gt=0)
    """Consecutive steps with the sign before the z-loss is raised."""
    z_loss_factor: float = Field(10.0, gt=1)
    """Factor on `z_loss_coef` meanwhile."""
    duration: int = Field(500, gt=0)
    """Steps that the factor holds."""


class Mitigations(Section):
    """Detectors and what they do, each null to switch it off. They see the steps that are logged."""

    collapse: Collapse | None = Collapse()
    overload: Overload | None = None
    """Needs a capacity to tighten."""
    logit_growth: LogitGrowth | None = LogitGrowth()


class Routing(Section):
    """Router losses against a language-model loss of weight 1, the expert bias, capacity, mitigations."""

    aux_loss_coef: float = Field(0.001, ge=0)
    """Weight of the load-balancing loss, which pushes experts to equal load. 0: none. Raise it when loads stay
    apart, lower it when the language-model loss suffers."""
    aux_loss_scope: Literal["micro_batch", "sequence", "global_batch"] = "sequence"
    """Tokens over which loads are balanced: each sequence (DeepSeek-V3), each rank's micro-batch, or the whole
    batch, which leaves experts most room to specialise (arXiv 2501.11873)."""
    z_loss_coef: float = Field(0.001, ge=0)
    """Weight of the z-loss, which keeps router logits small; 0.001 is ST-MoE's (arXiv 2202.08906). 0: none."""
    bias_update: Literal["sign", "quantile"] = "sign"
    """How the expert bias, which balances without a loss, follows a step's tokens. `sign`: by `bias_update_rate` up
    for experts below the mean load, down above. `quantile`: at once to where every expert would have had its fair
    share of them; for models with `n_group` 1."""
    bias_update_rate: float = Field(0.001, ge=0)
    """Step of the expert bias under `sign`; 0.001 is DeepSeek-V3's (arXiv 2412.19437 section 4.2). 0: no bias.
    `quantile` has no rate."""
    bias_freeze_share: float = Field(0.05, ge=0, le=1)
    """Part of the run's tokens, at its end, without bias updates."""
    jitter: float = Field(0.0, ge=0, lt=1)
    """Multiplies the router's input in training by noise within 1 +- jitter. 0: none; Switch Transformers used 0.01
    (arXiv 2101.03961)."""
    capacity: Capacity = Capacity()
    mitigations: Mitigations = Mitigations()

    @property
    def trains_bias(self) -> bool:
        """Whether any step of a run moves the expert bias."""
        return (self.bias_update == "quantile" or self.bias_update_rate > 0) and self.bias_freeze_share < 1

    @property
    def bias_setting(self) -> str:
        """The key that decides how the expert bias moves, with its value."""
        return f"bias_update_rate {self.bias_update_rate:g}" if self.bias_update == "sign" else "bias_update quantile"

    def problems(self) -> list[str]:
        """What cannot work together, one sentence each."""
        problems, overload = [], self.mitigations.overload
        if overload is not None and self.capacity.mode == "dropless":
            problems.append(
                "routing.mitigations.overload tightens a capacity; set routing.capacity.mode drop or reroute"
            )
        elif overload is not None and overload.capacity_factor >= self.capacity.factor:
            problems.append(
                f"routing.mitigations.overload.capacity_factor {overload.capacity_factor:g} does not tighten "
                f"routing.capacity.factor {self.capacity.factor:g}; lower it"
            )
        collapse = self.mitigations.collapse
        if collapse is not None and collapse.action == "raise_aux_loss" and self.aux_loss_coef == 0:
            problems.append(
                "routing.mitigations.collapse raises an aux loss whose routing.aux_loss_coef is 0; "
                "set one, choose action revive, or set collapse null"
            )
        logits = self.mitigations.logit_growth
        if logits is not None and self.z_loss_coef == 0:
            problems.append(
                "routing.mitigations.logit_growth raises a z-loss whose routing.z_loss_coef is 0; set one, or null it"
            )
        return problems

    def problems_with(self, shape: ModelShape) -> list[str]:
        """What cannot work with a model, one sentence each."""
        if self.bias_update == "quantile" and shape.n_group > 1:
            return [
                f"routing.bias_update quantile needs the model's n_group 1, not {shape.n_group}: an expert's bias also decides "
                "whether its group is chosen, which no quantile of its own margins tells; set bias_update sign"
            ]
        return []
