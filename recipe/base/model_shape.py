"""The shape of a model, read strictly from its HF `config.json`, and what it costs.

Parameters and FLOPs are counted here, without torch, so that planning and MFU use one arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from recipe.base.strict import Section, load_json, strict_model

MODEL_TYPE = "recipe_moe"
IGNORED = -100  # a target without a loss, as in transformers


class RopeParameters(Section):
    """Rotary position embedding: base frequency and the fraction of each head that is rotated."""

    rope_type: Literal["default"] = "default"
    rope_theta: float = Field(10_000.0, gt=0)
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)


class ModelShape(Section):
    """Every number of `config.json` that shapes the model. Names are those of transformers' `glm4_moe`."""

    model_type: Literal["recipe_moe"]
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)  # of the dense layers
    moe_intermediate_size: int = Field(gt=0)  # of one expert
    num_hidden_layers: int = Field(gt=0)
    first_k_dense_replace: int = Field(ge=0)  # leading dense layers
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    use_qk_norm: bool = True
    attention_bias: bool = False
    attention_dropout: float = Field(0.0, ge=0, le=0)  # pretraining on fresh tokens needs none
    n_routed_experts: int = Field(ge=2)
    n_shared_experts: int = Field(ge=0)  # 0: none
    num_experts_per_tok: int = Field(gt=0)
    n_group: int = Field(1, gt=0)
    topk_group: int = Field(1, gt=0)
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax: no bias updates or shared experts, to export
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(1.0, gt=0)
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: float = Field(1e-5, gt=0)
    rope_parameters: RopeParameters = RopeParameters()
    max_position_embeddings: int = Field(gt=0)
    initializer_range: float = Field(0.02, gt=0)
    tie_word_embeddings: Literal[False] = False

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.first_k_dense_replace

    def problems(self) -> list[str]:
        """What cannot work together, one sentence each; empty when the shape is sound."""
        found = []
        if self.first_k_dense_replace >= self.num_hidden_layers:
            found.append(
                f"first_k_dense_replace {self.first_k_dense_replace} leaves no MoE layer of "
                f"num_hidden_layers {self.num_hidden_layers}; lower it"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            found.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            found.append(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds n_routed_experts {self.n_routed_experts}"
            )
        if self.n_routed_experts % self.n_group:
            found.append(f"n_group {self.n_group} does not divide n_routed_experts {self.n_routed_experts}")
        elif self.n_routed_experts // self.n_group < 2:
            found.append("a routing group needs at least 2 experts; lower n_group")
        elif self.topk_group > self.n_group:
            found.append(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        elif self.topk_group * (self.n_routed_experts // self.n_group) < self.num_experts_per_tok:
            found.append(
                f"topk_group {self.topk_group} groups hold fewer than num_experts_per_tok {self.num_experts_per_tok} experts"
            )
        rotary_dim = int(self.head_dim * self.rope_parameters.partial_rotary_factor)
        if rotary_dim % 2 or rotary_dim == 0:
            found.append(
                f"the rotated part of a head ({rotary_dim} of head_dim {self.head_dim}) must be even and positive"
            )
        return found

    def parameters(self) -> dict[str, int]:
        """Number of parameters by term; the sum is the model's total."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        if self.attention_bias:
            attention += self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads)
        norms_per_layer = 2 * self.hidden_size + (2 * self.head_dim if self.use_qk_norm else 0)
        return {
            "embedding": self.vocab_size * self.hidden_size,
            "lm_head": self.vocab_size * self.hidden_size,
            "attention": self.num_hidden_layers * attention,
            "norm": self.num_hidden_layers * norms_per_layer + self.hidden_size,
            "dense_mlp": self.first_k_dense_replace * 3 * self.hidden_size * self.intermediate_size,
            "router": self.num_moe_layers * self.n_routed_experts * self.hidden_size,
            "shared_experts": self.num_moe_layers * self.n_shared_experts * self._expert_parameters,
            "routed_experts": self.num_moe_layers * self.n_routed_experts * self._expert_parameters,
        }

    def active_parameters(self) -> dict[str, int]:
        """Number of parameters by term that take part in one token's forward pass."""
        active = self.parameters()
        active["routed_experts"] = self.num_moe_layers * self.num_experts_per_tok * self._expert_parameters
        return active

    def training_flops_per_token(self, seq_length: int) -> float:
        """Model FLOPs of forward and backward for one token: the MFU numerator, recompute not counted.

        6 FLOPs per active matmul parameter (2 forward, 4 backward; the embedding lookup is no matmul),
        plus the two attention matmuls over a causal context of seq_length / 2 on average, as in PaLM's
        appendix B (arXiv 2204.02311) with the causal half counted once.
        """
        active = self.active_parameters()
        matmul_parameters = sum(active.values()) - active["embedding"] - active["norm"]
        attention_width = self.num_attention_heads * self.head_dim
        # 2 matmuls * 2 FLOPs * 3 (forward + backward) * mean causal context
        attention = self.num_hidden_layers * 2 * 2 * 3 * attention_width * (seq_length / 2)
        return 6.0 * matmul_parameters + attention

    def hardware_flops_per_token(self, seq_length: int, *, recompute: bool) -> float:
        """FLOPs that are computed for one token, the HFU numerator: a recomputed layer runs its forward pass twice.

        Backward is twice a forward pass, so a second forward pass is a third more. The head is not recomputed.
        """
        model = self.training_flops_per_token(seq_length)
        head = 6.0 * self.parameters()["lm_head"]
        return model + (model - head) / 3 if recompute else model

    @property
    def _expert_parameters(self) -> int:
        return 3 * self.hidden_size * self.moe_intermediate_size  # gate, up, down


def load_model_shape(folder: str | Path) -> ModelShape:
    """Read `folder/config.json` strictly; raise `ConfigError` with every problem found."""
    path = Path(folder) / "config.json"
    return strict_model(ModelShape, load_json(path), path)
