"""A decoder as the planner's arithmetic sees it: matmuls of a token in each kind of layer, and what is routed.

Wider than `ModelShape`, which is what this recipe trains: published models that predictions are compared with have
two-matrix MLPs, latent attention or no experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.model_shape import ModelShape


@dataclass(frozen=True)
class Architecture:
    """Shape of a decoder. Widths are in elements; a matmul is (input width, output width) of one token."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    attention_width: int  # heads * width of a head, of queries and outputs
    attention_matmuls: tuple[tuple[int, int], ...]
    key_value_width: int
    mlp_matrices: int  # 3 for SwiGLU, 2 for a plain MLP
    dense_intermediate: int  # of layers without experts
    dense_layers: int
    experts: int = 0
    top_k: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    tied: bool = False

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def attention_parameters(self) -> int:
        return sum(a * b for a, b in self.attention_matmuls)

    def mlp_parameters(self, intermediate: int) -> int:
        return self.mlp_matrices * self.hidden * intermediate

    @property
    def expert_parameters(self) -> int:
        """Of all experts of one layer."""
        return self.experts * self.mlp_parameters(self.expert_intermediate)

    @property
    def other_parameters(self) -> int:
        """Of the model without its routed experts."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        moe = self.experts * self.hidden + self.mlp_parameters(self.shared_intermediate)
        dense = self.mlp_parameters(self.dense_intermediate)
        return (
            embeddings
            + self.layers * self.attention_parameters
            + self.dense_layers * dense
            + (self.moe_layers * moe if self.experts else 0)
        )

    @property
    def total_parameters(self) -> int:
        return self.other_parameters + self.moe_layers * self.expert_parameters

    @property
    def active_matmul_parameters(self) -> int:
        """Of the matmuls that one token takes part in; the embedding lookup is none, the head is one."""
        embedding = 0 if self.tied else self.vocab * self.hidden
        routed = self.moe_layers * self.top_k * self.mlp_parameters(self.expert_intermediate)
        return self.other_parameters - embedding + routed

    def flops_per_token(self, seq_length: int, *, causal_half: bool = True) -> float:
        """Model FLOPs of forward and backward of one token, as `ModelShape.training_flops_per_token` counts them.

        Megatron-LM counts attention over the full sequence; `causal_half=False` does too.
        """
        context = seq_length / 2 if causal_half else seq_length
        return 6.0 * self.active_matmul_parameters + self.layers * 12 * self.attention_width * context


def architecture_of(shape: ModelShape) -> Architecture:
    """This recipe's models."""
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    D = shape.hidden_size
    return Architecture(
        vocab=shape.vocab_size,
        hidden=D,
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        attention_width=query,
        attention_matmuls=((D, query), (D, key), (D, key), (query, D)),
        key_value_width=key,
        mlp_matrices=3,
        dense_intermediate=shape.intermediate_size,
        dense_layers=shape.first_k_dense_replace,
        experts=shape.n_routed_experts,
        top_k=shape.num_experts_per_tok,
        expert_intermediate=shape.moe_intermediate_size,
        shared_intermediate=shape.moe_intermediate_size * shape.n_shared_experts,
    )
