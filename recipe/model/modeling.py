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
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.masking_utils import create_causal_mask
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from recipe.base.errors import UserError
from recipe.base.model_shape import MODEL_TYPE
from recipe.model.configuration import RecipeMoeConfig
from recipe.model.fusion import fusible
from recipe.model.loss import summed_loss, token_scores
from recipe.model.recompute import EVERYTHING, contexts, kept, unread
from recipe.model.routing.router import router_logits, scores_and_choice, weights_of

# transformers 5.24 renamed its caches' argument and output `past_key_values`; both names are taken here, by all versions.
CACHE = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# Lengths of packed documents, for flash attention.
ATTENTION_ARGUMENTS = frozenset(FlashAttentionKwargs.__annotations__)
RECORDED = ("hidden_states", "attentions", "router_logits")  # by `capture_outputs`, where output_... asks for them


def named(cache: Cache | None) -> dict[str, Any]:
    """A cache as a keyword argument, by the name that this transformers has for it."""
    return {CACHE: cache}


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
    """cos and sin, [B, S, rotary_dim], for half-split rotary embedding (arXiv 2104.09864), times YaRN's attention factor.

    The inverse frequencies are computed here and not kept as a buffer: `zero.Init` gives what a constructor
    makes the training dtype, and rounded to bf16 they put position 1,000 radians off.
    """
    frequencies, scaling = inverse_frequencies(config, position_ids.device)
    angles = position_ids[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def inverse_frequencies(config: Any, device: torch.device) -> tuple[torch.Tensor, float]:
    """Radians per position, [rotary_dim / 2] in fp32, and the factor on cos and sin, which YaRN alone has."""
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        with device:  # where their function makes its tensors at once; else it copies them, and a GPU's host waits
            return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device)
    rotary_dim = int(config.head_dim * rope["partial_rotary_factor"])
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    return 1.0 / rope["rope_theta"] ** exponents, 1.0


@fusible()
def rotate(x_BHSd: torch.Tensor, cos_BSr: torch.Tensor, sin_BSr: torch.Tensor) -> torch.Tensor:
    """Rotate the first `r` dimensions of each head; the rest passes through."""
    cos, sin = cos_BSr.unsqueeze(1), sin_BSr.unsqueeze(1)
    rotated, passed = x_BHSd.split((cos.shape[-1], x_BHSd.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, passed), dim=-1)


def eager_attention(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """Attention written out, which alone has weights to return."""
    key, value = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Grouped-query attention through transformers' attention interface (sdpa, flash, flex, eager)."""

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

    def forward(
        self, x_BSD, cos_sin, attention_mask, cache: Cache | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output [B, S, D], and the weights [B, H, S, S] where the implementation has them."""
        heads = (*x_BSD.shape[:-1], -1, self.head_dim)
        with kept("query_key_value"):
            query, key, value = (proj(x_BSD).view(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        query, key = rotate(query, *cos_sin), rotate(key, *cos_sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        with kept("attention"):
            out, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        out = out.reshape(*x_BSD.shape[:-1], -1)
        with kept("attention_projection"):
            return self.o_proj(out), weights


@fusible()
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (arXiv 2002.05202)."""
    return F.silu(gate) * up


class Mlp(nn.Module):
    """SwiGLU: a dense layer, or the shared experts of an MoE layer side by side as one.

    Args:
        keepable: name of the first two projections' results for `recipe.model.recompute`.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, keepable: str = "gate_up"):
        super().__init__()
        self.keepable = keepable
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with kept(self.keepable):
            gate, up = self.gate_proj(x), self.up_proj(x)
        hidden = swiglu(gate, up)
        with unread():
            return self.down_proj(hidden)


class Router(nn.Module):
    """Token-choice top-k router; `e_score_correction_bias` shifts the choice but not the weights.

    Top-k of biased scores, weighted by the unbiased ones (DeepSeek-V3, arXiv 2412.19437 eq. 12-16).
    """

    def __init__(self, config: RecipeMoeConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [T, E] in fp32; weights and numbers [T, K] of the chosen experts."""
        config = self.config
        bias_E: torch.Tensor = self.e_score_correction_bias  # type: ignore[assignment]
        logits_TE = router_logits(x_TD, self.weight)
        scores_TE, _, experts_TK = scores_and_choice(
            logits_TE,
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
        return logits_TE, weights_TK, experts_TK


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
            self.shared_experts = Mlp(
                config.hidden_size, config.moe_intermediate_size * config.n_shared_experts, "shared_gate_up"
            )

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        _, weights_TK, experts_TK = self.gate(x_TD)
        routed_BSD = self.experts(x_TD, weights_TK, experts_TK).view_as(x_BSD)
        return routed_BSD + self.shared_experts(x_BSD) if self.config.n_shared_experts else routed_BSD


class DecoderLayer(GradientCheckpointingLayer):
    """One layer; `recompute_layers` of the model makes it recompute itself in the backward pass."""

    _recompute = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, config: RecipeMoeConfig, layer_idx: int):
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        if layer_idx < config.first_k_dense_replace:
            self.mlp: nn.Module = Mlp(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MoeBlock(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether a forward pass is one to recompute: without gradients there is nothing to, and torch would warn of it."""
        return self._recompute and torch.is_grad_enabled()

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self._recompute = on

    def forward(self, x_BSD, cos_sin, attention_mask, cache: Cache | None, **kwargs) -> torch.Tensor:
        attended_BSD, _ = self.self_attn(self.input_layernorm(x_BSD), cos_sin, attention_mask, cache, **kwargs)
        x_BSD = x_BSD + attended_BSD
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
    _can_record_outputs = {
        "hidden_states": DecoderLayer,
        "attentions": Attention,
        "router_logits": OutputRecorder(Router, index=0),
    }
    # DeepSpeed (data_types.keep_in_fp32_modules) and transformers both read this list.
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called by transformers only for what a loaded checkpoint lacks; training uses `initialize_weights`.
        super()._init_weights(module)
        if isinstance(module, Router | Experts):
            for parameter in module.parameters(recurse=False):
                initialization.normal_(parameter, std=self.config.initializer_range)
            for buffer in module.buffers(recurse=False):
                initialization.zeros_(buffer)

    def recompute_layers(
        self, use_reentrant: bool, names_of: Callable[[int], Collection[str]] = lambda number: ()
    ) -> None:
        """Keep only each layer's input for the backward pass, by whichever name this transformers has for it.

        Args:
            names_of: which results (`recipe/planner/kept.py`) the layer of a number keeps besides; one that keeps everything
                is not recomputed. Not with `use_reentrant`, whose second pass knows nothing of the first.
        """
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": use_reentrant})
        if use_reentrant:
            return
        for layer in (module for module in self.modules() if isinstance(module, DecoderLayer)):
            names = names_of(layer.self_attn.layer_idx)
            layer.gradient_checkpointing = EVERYTHING not in names
            own_contexts = contexts(names)
            # In the place of the one function that transformers has just given to all layers.
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=own_contexts)


class RecipeMoeModel(RecipeMoePreTrainedModel):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: RecipeMoeConfig):
        config.check()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        *,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Hidden states [B, S, D] after the final norm; `RecipeMoeForCausalLM.forward` has the arguments."""
        attention_kwargs = self._attention_kwargs(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        x_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, cache, use_cache)
        # Without positions of the caller's there is one document a row, and transformers need not look for more,
        # which a GPU's host would wait for.
        documents = position_ids
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = (torch.arange(x_BSD.shape[1], device=x_BSD.device) + past).unsqueeze(0)
        # Where a cache is given, transformers look for no documents; one that is empty and grows has no say in the mask.
        history = None if isinstance(cache, DynamicCache) and past == 0 else cache
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BSD,
            attention_mask=attention_mask,
            position_ids=documents,
            **named(history),
        )
        cos_sin = rotary_cos_sin(self.config, position_ids, x_BSD.dtype)
        for layer in self.layers:
            # for flash attention, which finds documents in their positions where it is not given their lengths
            x_BSD = layer(x_BSD, cos_sin, mask, cache, position_ids=documents, **attention_kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(x_BSD), **named(cache))

    def _attention_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those of a forward pass's further arguments that attention gets; what nothing here reads is refused."""
        for name in kwargs.keys() - ATTENTION_ARGUMENTS - {f"output_{name}" for name in RECORDED}:
            raise TypeError(f"{type(self).__name__}.forward() has no argument '{name}'; leave it out")
        asked = {
            name for name in RECORDED if kwargs.get(f"output_{name}", getattr(self.config, f"output_{name}", False))
        }
        if "attentions" in asked and self.config._attn_implementation != "eager":
            raise UserError(
                f"attn_implementation {self.config._attn_implementation} has no attention weights to return; load the model "
                "with attn_implementation='eager', or leave output_attentions out"
            )
        if "router_logits" in asked and not all(isinstance(layer.mlp, MoeBlock | Mlp) for layer in self.layers):
            raise UserError("output_router_logits needs the model's own routers; ask an exported model, without AutoEP")
        return {name: value for name, value in kwargs.items() if name in ATTENTION_ARGUMENTS}

    def _cache(self, past_key_values: Cache | None, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache of a forward pass; a new one where it is asked for, by the configuration only in evaluation."""
        if past_key_values is not None and cache is not None:
            raise UserError("past_key_values and cache are two names of one argument; give one of them")
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and self.training and any(layer.gradient_checkpointing for layer in self.layers):
            raise UserError("layers that are recomputed would fill a cache twice; call eval(), or give use_cache=False")
        return cache


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

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take a head, also a plain layer, which `resize_token_embeddings` brings."""
        if new_embeddings.bias is not None:
            raise UserError("the model's head has no bias; set output embeddings without one")
        if type(new_embeddings) is nn.Linear:
            new_embeddings.__class__ = LanguageModelHead  # adds a way to call it, and no state
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        *,
        cache: Cache | None = None,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        targets: torch.Tensor | None = None,
        loss_chunk_tokens: int = 2048,
        per_token: bool = False,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits, or a loss.

        Args:
            position_ids: [B, S]; where they restart, another document begins and attention stops.
            past_key_values, cache: two names of the keys and values of earlier tokens.
            labels: HF convention, shifted here, -100 ignored: logits and the mean next-token loss.
            shift_labels: in place of labels, already shifted.
            num_items_in_batch: that the loss of labels is divided by, in place of their number here.
            logits_to_keep: number of last positions, or 1-D tensor of positions, that get logits; 0 for all.
            targets: [B, S], already shifted, -100 ignored: no logits, and the summed next-token loss,
                `loss_chunk_tokens` tokens at a time.
            per_token: with targets: their `token_scores` [B, S, 2] instead of the loss, without gradients.
            kwargs: output_hidden_states, output_attentions, output_router_logits, return_dict, and documents' lengths
                for flash attention (cu_seq_lens_q ...).

        Raises:
            UserError: arguments that exclude each other, or outputs that this model cannot give.
            TypeError: an argument that nothing reads.
        """
        labelled = labels is not None or shift_labels is not None
        if targets is not None:
            if labelled or isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
                raise UserError(
                    "targets ask for a loss without logits; leave labels, shift_labels and logits_to_keep out"
                )
            use_cache = bool(use_cache)  # of which a loss has no use
        elif per_token:
            raise UserError("per_token scores targets; give targets")
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
            cache=cache, return_dict=True, **kwargs,
        )  # fmt: skip
        hidden_BSD = outputs.last_hidden_state
        recorded = {name: outputs[name] for name in (*RECORDED, CACHE) if name in outputs}
        if targets is not None:
            loss = self.lm_head(hidden_BSD, targets, loss_chunk_tokens, per_token)
            return MoeCausalLMOutputWithPast(loss=loss, **recorded)
        logits_BSV = self.lm_head(positions_with_logits(hidden_BSD, logits_to_keep))
        loss = None
        if labelled:
            loss = self.loss_function(
                logits=logits_BSV, labels=labels, vocab_size=logits_BSV.shape[-1], shift_labels=shift_labels,
                num_items_in_batch=num_items_in_batch,
            )  # fmt: skip
        return MoeCausalLMOutputWithPast(loss=loss, logits=logits_BSV, **recorded)


def positions_with_logits(hidden_BSD: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last positions by number, or those of a 1-D tensor; all for 0."""
    if isinstance(logits_to_keep, torch.Tensor):
        if logits_to_keep.dim() != 1:
            raise UserError(f"logits_to_keep has {logits_to_keep.dim()} dimensions; give a number or positions in one")
        return hidden_BSD[:, logits_to_keep]
    return hidden_BSD[:, -logits_to_keep:] if logits_to_keep else hidden_BSD


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
AutoModel.register(RecipeMoeConfig, RecipeMoeModel)
# Files hold one tensor per expert and matrix, as those of glm4_moe do; the model holds experts together.
_LAYOUT = get_checkpoint_conversion_mapping("glm4_moe")
assert _LAYOUT, "transformers has no mapping of glm4_moe's files any more"
register_checkpoint_conversion_mapping(MODEL_TYPE, _LAYOUT, overwrite=True)
