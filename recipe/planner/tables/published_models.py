"""Shapes of published models by name, from their HF configs or the papers' tables.

For predictions that are compared with published throughput; the recipe trains `ModelShape`s alone.
"""

from __future__ import annotations

import re

from recipe.planner.architecture import Architecture


def _gqa(hidden: int, heads: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, int], ...]:
    query, key = heads * head_dim, kv_heads * head_dim
    return ((hidden, query), (hidden, key), (hidden, key), (query, hidden))


def _llama(
    vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int,
    *, head_dim: int | None = None, experts: int = 0, top_k: int = 0, expert: int = 0, shared: int = 0, dense: int = 0,
) -> Architecture:  # fmt: skip
    """SwiGLU and grouped-query attention; with `experts`, MoE layers after `dense` leading ones."""
    head_dim = head_dim or hidden // heads
    return Architecture(
        vocab, hidden, layers, heads, heads * head_dim, _gqa(hidden, heads, kv_heads, head_dim), kv_heads * head_dim, 3,
        intermediate, dense if experts else layers, experts, top_k, expert, shared,
    )  # fmt: skip


def _latent(
    vocab: int, hidden: int, layers: int, heads: int, q_rank: int | None, intermediate: int,
    *, experts: int, top_k: int, expert: int, shared: int, dense: int,
) -> Architecture:  # fmt: skip
    """Multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434): 512 + 64 latent, heads of 128 + 64 and 128."""
    query = heads * (128 + 64)
    queries = ((hidden, q_rank), (q_rank, query)) if q_rank else ((hidden, query),)
    matmuls = (*queries, (hidden, 512 + 64), (512, heads * (128 + 128)), (heads * 128, hidden))
    # queries and keys are 192 wide, values 128: their mean counts
    return Architecture(
        vocab, hidden, layers, heads, heads * 160, matmuls, heads * 160, 3, intermediate, dense,
        experts, top_k, expert, shared,
    )  # fmt: skip


def gpt(vocab: int, hidden: int, layers: int, heads: int) -> Architecture:
    """GPT-2's block: four times as wide an MLP, as many keys as queries, tied embeddings."""
    return Architecture(
        vocab, hidden, layers, heads, hidden, _gqa(hidden, heads, heads, hidden // heads), hidden, 2,
        4 * hidden, layers, tied=True,
    )  # fmt: skip


def _hybrid(
    vocab: int, hidden: int, mamba: int, attention: int, *, mamba_in: int, mamba_out: int, heads: int, kv_heads: int,
    experts: int, top_k: int, expert: int, shared: int,
) -> Architecture:  # fmt: skip
    """Nemotron-H: as many MoE layers of two matrices as `mamba` mixers, and few attention layers, whose width is spread over all.

    A mixer counts by its projections; its scan and convolution, which are no matmuls, do not.
    """
    part = attention / mamba
    query, key = round(heads * 128 * part), round(kv_heads * 128 * part)
    matmuls = ((hidden, query), (hidden, key), (hidden, key), (hidden, mamba_in), (mamba_out, hidden), (query, hidden))
    return Architecture(
        vocab, hidden, mamba, heads, query, matmuls, key, 2, 0, 0, experts, top_k, expert, shared
    )  # fmt: skip


# name in lower case -> (shape, source); HF names are the folders of their config.json
MODELS: dict[str, tuple[Architecture, str]] = {
    "mixtral-8x7b": (_llama(32000, 4096, 32, 32, 8, 14336, experts=8, top_k=2, expert=14336), "mistralai/Mixtral-8x7B-v0.1"),
    "mixtral-8x22b": (_llama(32768, 6144, 56, 48, 8, 16384, experts=8, top_k=2, expert=16384), "mistralai/Mixtral-8x22B-v0.1"),
    "llama3-8x70b": (_llama(128256, 8192, 80, 64, 8, 28672, experts=8, top_k=2, expert=28672), "meta-llama/Meta-Llama-3-70B, 8 experts top-2 (arXiv 2504.14960, section 5)"),
    "qwen2-57b-a14b": (_llama(151936, 3584, 28, 28, 4, 18944, experts=64, top_k=8, expert=2560, shared=20480), "Qwen/Qwen2-57B-A14B"),
    "qwen3-30b-a3b": (_llama(151936, 2048, 48, 32, 4, 6144, head_dim=128, experts=128, top_k=8, expert=768), "Qwen/Qwen3-30B-A3B"),
    "qwen3-235b-a22b": (_llama(151936, 4096, 94, 64, 4, 12288, head_dim=128, experts=128, top_k=8, expert=1536), "Qwen/Qwen3-235B-A22B"),
    "gpt-oss-20b": (_llama(201088, 2880, 24, 64, 8, 2880, head_dim=64, experts=32, top_k=4, expert=2880), "openai/gpt-oss-20b (its sliding windows counted as full attention)"),
    "gpt-oss-120b": (_llama(201088, 2880, 36, 64, 8, 2880, head_dim=64, experts=128, top_k=4, expert=2880), "openai/gpt-oss-120b (its sliding windows counted as full attention)"),
    "dbrx": (_llama(100352, 6144, 40, 48, 8, 10752, experts=16, top_k=4, expert=10752), "databricks/dbrx-base"),
    "jetmoe-8b": (_llama(32000, 2048, 24, 32, 16, 5632, head_dim=128, experts=8, top_k=2, expert=5632), "jetmoe/jetmoe-8b (its two routed sets of 16 query heads counted as 32 heads of every token: its FLOPs, not all its parameters)"),
    "nemotron-3-nano-30b": (_hybrid(131072, 2688, 23, 6, mamba_in=10304, mamba_out=4096, heads=32, kv_heads=2, experts=128, top_k=6, expert=1856, shared=3712), "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 (scans of its Mamba-2 layers not counted)"),
    "olmoe-1b-7b": (_llama(50304, 2048, 16, 16, 16, 1024, experts=64, top_k=8, expert=1024), "allenai/OLMoE-1B-7B-0924"),
    "glm-4.5-air": (_llama(151552, 4096, 46, 96, 8, 10944, head_dim=128, experts=128, top_k=8, expert=1408, shared=1408, dense=1), "zai-org/GLM-4.5-Air"),
    "glm-4.5": (_llama(151552, 5120, 92, 96, 8, 12288, head_dim=128, experts=160, top_k=8, expert=1536, shared=1536, dense=3), "zai-org/GLM-4.5"),
    "deepseek-v2-lite": (_latent(102400, 2048, 27, 16, None, 10944, experts=64, top_k=6, expert=1408, shared=2816, dense=1), "deepseek-ai/DeepSeek-V2-Lite"),
    "moonlight-16b": (_latent(163840, 2048, 27, 16, None, 11264, experts=64, top_k=6, expert=1408, shared=2816, dense=1), "moonshotai/Moonlight-16B-A3B"),
    "deepseek-v2": (_latent(102400, 5120, 60, 128, 1536, 12288, experts=160, top_k=6, expert=1536, shared=3072, dense=1), "deepseek-ai/DeepSeek-V2"),
    "deepseek-v3": (_latent(129280, 7168, 61, 128, 1536, 18432, experts=256, top_k=8, expert=2048, shared=2048, dense=3), "deepseek-ai/DeepSeek-V3"),
    "kimi-k2": (_latent(163840, 7168, 61, 64, 1536, 18432, experts=384, top_k=8, expert=2048, shared=2048, dense=1), "moonshotai/Kimi-K2-Base"),
    "llama-7b": (_llama(32000, 4096, 32, 32, 32, 11008), "arXiv 2302.13971, Table 2"),
    "llama-13b": (_llama(32000, 5120, 40, 40, 40, 13824), "arXiv 2302.13971, Table 2"),
    "llama-33b": (_llama(32000, 6656, 60, 52, 52, 17920), "arXiv 2302.13971, Table 2"),
    "llama-65b": (_llama(32000, 8192, 80, 64, 64, 22016), "arXiv 2302.13971, Table 2"),
    "llama-2-7b": (_llama(32000, 4096, 32, 32, 32, 11008), "meta-llama/Llama-2-7b-hf"),
    "llama-2-13b": (_llama(32000, 5120, 40, 40, 40, 13824), "meta-llama/Llama-2-13b-hf"),
    "llama-2-70b": (_llama(32000, 8192, 80, 64, 8, 28672), "meta-llama/Llama-2-70b-hf"),
    "llama-3-8b": (_llama(128256, 4096, 32, 32, 8, 14336), "meta-llama/Meta-Llama-3-8B"),
    "llama-3-70b": (_llama(128256, 8192, 80, 64, 8, 28672), "meta-llama/Meta-Llama-3-70B"),
    "llama-3-405b": (_llama(128256, 16384, 126, 128, 8, 53248), "meta-llama/Llama-3.1-405B"),
    "gpt-3 175b": (gpt(51200, 12288, 96, 96), "arXiv 2005.14165, Table 2.1; vocabulary of arXiv 2104.04473"),
    "gpt 1t": (gpt(51200, 25600, 128, 160), "arXiv 2104.04473, Table 1"),
    "gpt-181b": (gpt(250880, 14336, 72, 64), "bigscience train/tr11-176B-ml/chronicles-prequel.md, 48 node contenders"),
    "gpt-183b": (gpt(250880, 14400, 72, 96), "bigscience train/tr11-176B-ml/chronicles-prequel.md, GPT-200B with 6 layers on each of 12 stages"),
    "gpt-187b": (gpt(250880, 13824, 80, 64), "bigscience train/tr11-176B-ml/chronicles-prequel.md, 48 node contenders"),
    "gpt-200b": (gpt(250880, 14400, 80, 96), "bigscience train/tr11-176B-ml/chronicles-prequel.md, Best TFLOPs"),
    "bloom-176b": (gpt(250880, 14336, 70, 112), "bigscience/bloom"),
    "opt-175b": (gpt(50272, 12288, 96, 96), "arXiv 2205.01068, Table 1"),
    "22b": (gpt(51200, 6144, 48, 64), "arXiv 2205.05198, Table 3"),
    "175b": (gpt(51200, 12288, 96, 96), "arXiv 2205.05198, Table 3"),
    "530b": (gpt(51200, 20480, 105, 128), "arXiv 2205.05198, Table 3"),
    "1t": (gpt(51200, 25600, 128, 160), "arXiv 2205.05198, Table 3"),
}  # fmt: skip

GPT_VOCABULARY = 50304  # GPT-2's, padded


def published_model(name: str) -> tuple[Architecture, str] | None:
    """The shape that a row's model name begins with or is, and its source."""
    wanted = re.sub(r"[_\s]+", " ", name.lower()).strip()
    for known in sorted(MODELS, key=len, reverse=True):
        if wanted == known or re.match(rf"{re.escape(known)}(\b|$)", wanted.replace("meta-", "")):
            return MODELS[known]
    return None


def dense_gpt(hidden: int, total_parameters: float, layers: int | None, vocab: int) -> Architecture | None:
    """A GPT of that width and size: 12 h^2 parameters a layer. None if no whole number of layers is near."""
    exact = (total_parameters - vocab * hidden) / (12 * hidden**2)
    layers = layers or round(exact)
    if layers < 1 or abs(exact - layers) > 0.06 * layers + 0.5:
        return None
    head = next(d for d in (128, 144, 100, 96, 80, 64, 1) if hidden % d == 0)
    return gpt(vocab, hidden, layers, hidden // head)


def moe_of_size(hidden: int, layers: int, experts: int, top_k: int, total_parameters: float) -> Architecture:
    """An MoE model of that many parameters, all layers routed: SwiGLU experts as wide as what attention leaves for them."""
    heads, vocab = max(1, hidden // 128), 128_000
    kv_heads = max(1, heads // 8)
    attention = sum(a * b for a, b in _gqa(hidden, heads, kv_heads, 128))
    left = (total_parameters - 2 * vocab * hidden) / layers - attention
    width = max(1, round(left / (experts * 3 * hidden)))
    return _llama(vocab, hidden, layers, heads, kv_heads, 0, head_dim=128, experts=experts, top_k=top_k, expert=width)
