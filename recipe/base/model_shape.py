"""The shape of a model, read strictly from its HF `config.json`, and what it costs.

Parameters and FLOPs are counted here, without torch, so that planning and MFU use one arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from recipe.base.strict import Section, load_json, strict_model

MODEL_TYPE = "recipe_moe"
IGNORED = -100  # a target without a loss, as in transformers


class RopeParameters(Section):
    """Rotary position embedding: base frequency, the fraction of each head that is rotated, and scaling to longer contexts.

    Names and meanings are those of transformers; keys that are not set are in no dump, so a config.json holds what it is given.
    """

    rope_type: Literal["default", "yarn"] = "default"
    """`default`: frequencies as they are. `yarn`: low ones divided by `factor`, high ones as they are (arXiv 2309.00071)."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the frequencies; larger for longer contexts. 10,000 is RoFormer's (arXiv 2104.09864)."""
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    """Share of each head that is rotated."""
    factor: float | None = Field(None, ge=1)
    """YaRN: the longer context over `original_max_position_embeddings`."""
    original_max_position_embeddings: int | None = Field(None, gt=0)
    """YaRN: the longest sequence before the context was extended, in tokens."""
    attention_factor: float | None = Field(None, gt=0)
    """YaRN: factor on rotated queries and keys. Null: 0.1 ln(factor) + 1, the paper's."""
    beta_fast: float | None = Field(None, gt=0)
    """YaRN: frequencies that turn more often than this within the original context stay as they are. Null: 32, the paper's."""
    beta_slow: float | None = Field(None, gt=0)
    """YaRN: frequencies that turn less often than this within the original context are divided by `factor`. Null: 1, the paper's."""
    mscale: float | None = Field(None, gt=0)
    """YaRN: with `mscale_all_dim`, `attention_factor` is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)."""
    mscale_all_dim: float | None = Field(None, gt=0)
    """YaRN: see `mscale`."""
    truncate: bool | None = None
    """YaRN: whether the two bounds between frequencies are rounded to whole ones. Null: they are."""

    @model_serializer(mode="wrap")
    def _set_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def scaling(self) -> dict[str, Any]:
        """The keys of YaRN that are set."""
        return self.model_dump(exclude={"rope_type", "rope_theta", "partial_rotary_factor"})

    @property
    def reach(self) -> int | None:
        """Tokens that YaRN is scaled for; None without it."""
        if self.factor is None or self.original_max_position_embeddings is None:
            return None
        return round(self.factor * self.original_max_position_embeddings)

    def problems(self, longest: int) -> list[str]:
        """What cannot work together, one sentence each.

        Args:
            longest: `max_position_embeddings` of the model.
        """
        if self.rope_type == "default":
            return [f"rope_parameters: {name} is for rope_type yarn; set that, or remove it" for name in self.scaling]
        needed = ("factor", "original_max_position_embeddings")
        if missing := [name for name in needed if getattr(self, name) is None]:
            return [f"rope_parameters: rope_type yarn needs {' and '.join(missing)}; set what is missing"]
        return [*self._range_problems(longest), *self._attention_problems()]

    def _range_problems(self, longest: int) -> list[str]:
        original, reach = self.original_max_position_embeddings, self.reach
        assert original is not None
        assert reach is not None
        problems = []
        if self.rope_theta <= 1:
            problems.append(f"rope_parameters: rope_theta {self.rope_theta:g} must exceed 1 with rope_type yarn")
        if original > longest:
            problems.append(
                f"rope_parameters: original_max_position_embeddings {original} exceeds max_position_embeddings {longest}, the longest "
                "sequence after the extension; exchange them, or raise max_position_embeddings"
            )
        elif reach < longest:
            problems.append(
                f"rope_parameters: factor {self.factor:g} times original_max_position_embeddings {original} is less than "
                f"max_position_embeddings {longest}; set factor {longest / original}"
            )
        fast, slow = self.beta_fast or 32.0, self.beta_slow or 1.0  # transformers' where they are not set
        if fast < slow:
            problems.append(
                f"rope_parameters: beta_fast {fast:g} is less than beta_slow {slow:g}; exchange them (32 and 1 where not set)"
            )
        return problems

    def _attention_problems(self) -> list[str]:
        scales = [name for name in ("mscale", "mscale_all_dim") if getattr(self, name) is not None]
        if scales and self.attention_factor is not None:
            return [
                f"rope_parameters: attention_factor leaves {' and '.join(scales)} without effect; remove one of them"
            ]
        if len(scales) == 1:
            return [f"rope_parameters: {scales[0]} has no effect alone; set mscale and mscale_all_dim, or none of them"]
        return []


class ModelShape(Section):
    """Every number of `config.json` that shapes the model. Names are those of transformers' `glm4_moe`."""

    model_type: Literal["recipe_moe"]
    """Marks a config.json as one of this recipe."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding and of the head, in tokens; at least the tokenizer's."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    intermediate_size: int = Field(gt=0)
    """Inner width of the MLP of the dense layers."""
    moe_intermediate_size: int = Field(gt=0)
    """Inner width of one expert's MLP."""
    num_hidden_layers: int = Field(gt=0)
    """Decoder layers, dense and MoE."""
    first_k_dense_replace: int = Field(ge=0)
    """Leading layers with a dense MLP instead of experts."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads; fewer than query heads: grouped-query attention (arXiv 2305.13245). Divides the query
    heads."""
    head_dim: int = Field(gt=0)
    """Width of one head."""
    use_qk_norm: bool = True
    """RMSNorm on the queries and keys of each head, which keeps attention logits small."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_dropout: float = Field(0.0, ge=0, le=0)
    """Must be 0: pretraining on fresh tokens needs none."""
    n_routed_experts: int = Field(ge=2)
    """Experts of a layer that the router chooses from."""
    n_shared_experts: int = Field(ge=0)
    """Experts of a layer that every token passes, as one MLP of their joint width. 0: none."""
    num_experts_per_tok: int = Field(gt=0)
    """Routed experts that a token is sent to, the router's top-k."""
    n_group: int = Field(1, gt=0)
    """Groups that experts are divided into, to limit a token to some of them. 1: no limit."""
    topk_group: int = Field(1, gt=0)
    """Groups that a token's experts may come from."""
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    """Makes scores of router logits. A softmax model can be exported only without bias updates and shared experts."""
    norm_topk_prob: bool = True
    """Scale the weights of a token's experts to a sum of 1."""
    routed_scaling_factor: float = Field(1.0, gt=0)
    """Factor on the sum of the routed experts' outputs; 2.5 in DeepSeek-V3's config.json."""
    hidden_act: Literal["silu"] = "silu"
    """Activation of the MLPs: SwiGLU's (arXiv 2002.05202)."""
    rms_norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square in RMSNorm, so that nothing is divided by zero."""
    rope_parameters: RopeParameters = RopeParameters()
    max_position_embeddings: int = Field(gt=0)
    """Longest sequence, in tokens."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    tie_word_embeddings: Literal[False] = False
    """Must be false: embedding and head have weights of their own."""

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.first_k_dense_replace

    def problems(self) -> list[str]:
        """What cannot work together, one sentence each; empty when the shape is sound."""
        problems = []
        if self.first_k_dense_replace >= self.num_hidden_layers:
            problems.append(
                f"first_k_dense_replace {self.first_k_dense_replace} leaves no MoE layer of "
                f"num_hidden_layers {self.num_hidden_layers}; lower it"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            problems.append(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds n_routed_experts {self.n_routed_experts}"
            )
        if self.n_routed_experts % self.n_group:
            problems.append(f"n_group {self.n_group} does not divide n_routed_experts {self.n_routed_experts}")
        elif self.n_routed_experts // self.n_group < 2:
            problems.append("a routing group needs at least 2 experts; lower n_group")
        elif self.topk_group > self.n_group:
            problems.append(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        elif self.topk_group * (self.n_routed_experts // self.n_group) < self.num_experts_per_tok:
            problems.append(
                f"topk_group {self.topk_group} groups hold fewer than num_experts_per_tok {self.num_experts_per_tok} experts"
            )
        rotary_dim = int(self.head_dim * self.rope_parameters.partial_rotary_factor)
        if rotary_dim % 2 or rotary_dim == 0:
            problems.append(
                f"the rotated part of a head ({rotary_dim} of head_dim {self.head_dim}) must be even and positive"
            )
        return problems + self.rope_parameters.problems(self.max_position_embeddings)

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

    @property
    def _expert_parameters(self) -> int:
        return 3 * self.hidden_size * self.moe_intermediate_size  # gate, up, down


def load_model_shape(folder: str | Path) -> ModelShape:
    """Read `folder/config.json` strictly; raise `ConfigError` with every problem found."""
    path = Path(folder) / "config.json"
    return strict_model(ModelShape, load_json(path), path)
