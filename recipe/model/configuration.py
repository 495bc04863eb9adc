"""The HuggingFace configuration of our MoE decoder.

The fields and their meaning are those of transformers' `Glm4MoeConfig`, plus `scoring_func`. The strict
reader of `config.json` is `recipe.base.model_shape.ModelShape`; a test keeps the two sets of fields equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from recipe.base.model_shape import MODEL_TYPE, ModelShape, RopeParameters, load_model_shape
from recipe.base.strict import strict_model


@strict
class RecipeMoeConfig(PreTrainedConfig):
    """Shape of the decoder; see `ModelShape` for what each field means and which values fit together."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"num_local_experts": "n_routed_experts"}

    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    use_qk_norm: bool = True
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_parameters: Any = None
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        given = {name: value for name, value in self.rope_parameters.items() if value is not None}
        self.rope_parameters = {**RopeParameters().model_dump(), **given}

    def check(self) -> None:
        """Refuse values that the model does not implement; strict typing has let them through.

        Raises:
            ConfigError: names each of them.
        """
        values = {name: getattr(self, name) for name in ModelShape.model_fields}
        values["first_k_dense_replace"] = 0  # any number can be built, as the corruption check's dense layer is
        strict_model(ModelShape, values, type(self).__name__)

    def shape(self) -> ModelShape:
        """The shape that this configuration was made of."""
        return ModelShape.model_validate({name: getattr(self, name) for name in ModelShape.model_fields})

    @classmethod
    def from_shape(cls, shape: ModelShape) -> RecipeMoeConfig:
        values = shape.model_dump(exclude={"model_type"})
        return cls(architectures=["RecipeMoeForCausalLM"], **values)

    @classmethod
    def from_folder(cls, folder: str | Path) -> RecipeMoeConfig:
        """Read `folder/config.json` strictly; raises `ConfigError` on unknown keys or a shape that cannot work."""
        return cls.from_shape(load_model_shape(folder))


AutoConfig.register(MODEL_TYPE, RecipeMoeConfig)
