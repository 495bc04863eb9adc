"""The MoE decoder, whole and explicit.

Leading dense layers, then MoE layers: grouped-query attention with QK-norm and rotary positions, RMSNorm
before each block, SwiGLU experts with shared experts beside them. Parameter names and arithmetic are those
of transformers' `Glm4MoeForCausalLM`, so that exporting a checkpoint changes its `config.json` and nothing
else. DeepSpeed's AutoEP replaces each `MoeBlock` by its expert-parallel layer in training; this file is the
reference it is compared with, and what evaluates an exported model without DeepSpeed.

Legend: B sequences, S positions, T = B*S tokens, D hidden size, H heads, E experts, F expert width, K top-k.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe.model.configuration import RecipeMoeConfig
from recipe.model.fusion import fusible
from recipe.model.loss import next_token_loss, summed_loss, token_scores
from recipe.model.routing.choice import router_logits, scores_and_choice, weights_of


@fusible()
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight, with the mean square in fp32 (arXiv 1910.07467)."""
    x_fp32 = x.float()
    x_fp32 = x_fp32 * torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + eps)
    return weight * x_fp32.to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


def rotary_cos_sin(config: Any, position_ids: torch.Tensor, dtype: torch.dtype):
    """cos and sin, [B, S, rotary_dim], for half-split rotary embedding (arXiv 2104.09864).

    The inverse frequencies are computed here and not kept as a buffer: `zero.Init` gives what a constructor
    makes the training dtype, and rounded to bf16 they put position 1,000 radians off.
    """
    rope = config.rope_parameters
    rotary_dim = int(config.head_dim * rope["partial_rotary_factor"])
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=position_ids.device) / rotary_dim
    inverse_frequencies = 1.0 / rope["rope_theta"] ** exponents
    angles = position_ids[..., None].float() * inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@fusible()
def rotate(x_BHSd: torch.Tensor, cos_BSr: torch.Tensor, sin_BSr: torch.Tensor) -> torch.Tensor:
    """Rotate the first `r` dimensions of each head; the rest passes through."""
    cos, sin = cos_BSr.unsqueeze(1), sin_BSr.unsqueeze(1)
    rotated, passed = x_BHSd.split((cos.shape[-1], x_BHSd.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, passed), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention through transformers' attention interface (sdpa, flash, flex)."""

    def __init__(self, config: RecipeMoeConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)
        self.use_qk_norm = config.use_qk_norm
        if self.use_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x_BSD, cos_sin, attention_mask, past_key_values: Cache | None, **kwargs) -> torch.Tensor:
        heads = (*x_BSD.shape[:-1], -1, self.head_dim)
        query, key, value = (proj(x_BSD).view(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        query, key = rotate(query, *cos_sin), rotate(key, *cos_sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(*x_BSD.shape[:-1], -1))


@fusible()
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (arXiv 2002.05202)."""
    return F.silu(gate) * up


class Mlp(nn.Module):
    """SwiGLU: a dense layer, or the shared experts of an MoE layer side by side as one."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Router(nn.Module):
    """Token-choice top-k router; `e_score_correction_bias` shifts the choice but not the weights.

    Top-k of biased scores, weighted by the unbiased ones (DeepSeek-V3, arXiv 2412.19437 eq. 12-16).
    """

    def __init__(self, config: RecipeMoeConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        bias_E: torch.Tensor = self.e_score_correction_bias  # type: ignore[assignment]
        scores_TE, _, experts_TK = scores_and_choice(
            router_logits(x_TD, self.weight),
            bias_E,
            config.scoring_func,
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
        )
        weights_TK = weights_of(
            scores_TE,
            experts_TK,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
        )
        return weights_TK, experts_TK


class Experts(nn.Module):
    """All routed experts of a layer as two 3-D weights, gate and up fused."""

    def __init__(self, config: RecipeMoeConfig):
        super().__init__()
        E, F_, D = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F_, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F_))

    def forward(self, x_TD: torch.Tensor, weights_TK: torch.Tensor, experts_TK: torch.Tensor) -> torch.Tensor:
        out_TD = torch.zeros_like(x_TD)
        for expert in experts_TK.unique().tolist():
            token, slot = torch.where(experts_TK == expert)
            gate, up = F.linear(x_TD[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            expert_out = F.linear(F.silu(gate) * up, self.down_proj[expert])
            out_TD.index_add_(0, token, (expert_out * weights_TK[token, slot, None]).to(out_TD.dtype))
        return out_TD


class MoeBlock(nn.Module):
    """Routed experts, plus shared experts where the model has them."""

    def __init__(self, config: RecipeMoeConfig):
        super().__init__()
        self.config = config
        self.experts = Experts(config)
        self.gate = Router(config)
        if config.n_shared_experts:
            self.shared_experts = Mlp(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        routed_BSD = self.experts(x_TD, *self.gate(x_TD)).view_as(x_BSD)
        return routed_BSD + self.shared_experts(x_BSD) if self.config.n_shared_experts else routed_BSD


class DecoderLayer(GradientCheckpointingLayer):
    """One layer; `gradient_checkpointing_enable` of the model makes it recompute itself in the backward pass."""

    def __init__(self, config: RecipeMoeConfig, layer_idx: int):
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        if layer_idx < config.first_k_dense_replace:
            self.mlp: nn.Module = Mlp(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MoeBlock(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        return nn.Module.__call__(self, *args, **kwargs)  # nothing to recompute, and torch would warn of it

    def forward(self, x_BSD, cos_sin, attention_mask, past_key_values: Cache | None, **kwargs) -> torch.Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos_sin, attention_mask, past_key_values, **kwargs)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class RecipeMoePreTrainedModel(PreTrainedModel):
    config_class = RecipeMoeConfig
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    # DeepSpeed (data_types.keep_in_fp32_modules) and transformers both read this list.
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called by transformers only for what a loaded checkpoint lacks; training uses `initialize_weights`.
        super()._init_weights(module)
        for parameter in module.parameters(recurse=False):
            if isinstance(module, Router | Experts):
                nn.init.normal_(parameter, std=self.config.initializer_range)


class RecipeMoeModel(RecipeMoePreTrainedModel):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: RecipeMoeConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs
    ) -> torch.Tensor:
        """Hidden states [B, S, D] after the final norm."""
        x_BSD = self.embed_tokens(input_ids)
        # Without positions of the caller's there is one document a row, and transformers need not look for more,
        # which a GPU's host would wait for.
        documents = position_ids
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + x_BSD.shape[1], device=x_BSD.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BSD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=documents,
        )
        cos_sin = rotary_cos_sin(self.config, position_ids, x_BSD.dtype)
        for layer in self.layers:
            # for flash attention, which finds documents in their positions where it is not given their lengths
            x_BSD = layer(x_BSD, cos_sin, mask, past_key_values, position_ids=documents, **kwargs)
        return self.norm(x_BSD)


class LanguageModelHead(nn.Linear):
    """Hidden states to logits; or, given targets, straight to the summed loss or to each token's scores."""

    def forward(
        self,
        hidden_BSD: torch.Tensor,
        targets_BS: torch.Tensor | None = None,
        chunk_tokens: int = 1,
        per_token: bool = False,
    ) -> torch.Tensor:
        # A module's forward, so that ZeRO-3 gathers the weight for the loss as it does for the logits.
        if targets_BS is None:
            return super().forward(hidden_BSD)
        if per_token:
            scores = token_scores(hidden_BSD.flatten(0, 1), self.weight, targets_BS.flatten(), chunk_tokens)
            return scores.unflatten(0, targets_BS.shape)
        return summed_loss(hidden_BSD.flatten(0, 1), self.weight, targets_BS.flatten(), chunk_tokens)


class RecipeMoeForCausalLM(RecipeMoePreTrainedModel, GenerationMixin):
    """The decoder with its language-model head."""

    def __init__(self, config: RecipeMoeConfig):
        super().__init__(config)
        self.model = RecipeMoeModel(config)
        self.lm_head = LanguageModelHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        targets: torch.Tensor | None = None,
        loss_chunk_tokens: int = 2048,
        per_token: bool = False,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits, or a loss.

        Args:
            position_ids: [B, S]; where they restart, another document begins and attention stops.
            labels: HF convention, shifted here, -100 ignored: logits and the mean next-token loss.
            targets: [B, S], already shifted, -100 ignored: no logits, and the summed next-token loss,
                `loss_chunk_tokens` tokens at a time.
            per_token: with targets: their `token_scores` [B, S, 2] instead of the loss, without gradients.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_BSD = self.model(input_ids, attention_mask, position_ids, past_key_values, **kwargs)
        if targets is not None:
            return MoeCausalLMOutputWithPast(loss=self.lm_head(hidden_BSD, targets, loss_chunk_tokens, per_token))
        logits_BSV = self.lm_head(hidden_BSD[:, -logits_to_keep:] if logits_to_keep else hidden_BSD)
        loss = None if labels is None else next_token_loss(logits_BSV[:, :-1], labels[:, 1:])
        return MoeCausalLMOutputWithPast(loss=loss, logits=logits_BSV, past_key_values=past_key_values)  # type: ignore[arg-type]


def initialize_parameter(
    parameter: torch.Tensor, name: str, config: RecipeMoeConfig, seed: int, device: torch.device | None = None
) -> None:
    """Fill one full parameter in place: norms with 1, biases with 0, the rest normal(0, initializer_range).

    The random stream depends on the seed and the parameter's name alone, so the weights are the same
    whatever the number of ranks, the order of construction, the partitioning and the precision.

    Args:
        device: that draws, the parameter's if None; a GPU draws billions in the time a CPU needs for millions, and others.
    """
    if name.endswith("bias"):
        parameter.zero_()
    elif "norm" in name.split(".")[-2]:
        parameter.fill_(1.0)
    else:
        device = parameter.device if device is None else device
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device)
        parameter.copy_(drawn.normal_(0.0, config.initializer_range, generator=generator))


AutoModelForCausalLM.register(RecipeMoeConfig, RecipeMoeForCausalLM)
