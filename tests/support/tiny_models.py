"""Small random models of many families: two layers, 32 wide, four heads, 53 tokens, unless an entry says otherwise."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import Tensor

PLAIN: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SMALLEST: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
WIDE = {"vocab_size": 53, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
# of families whose special tokens lie beyond the vocabulary by default
SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONG = {**PLAIN, **SPECIALS, "max_position_embeddings": 128}
LONG_GROUPED = {**LONG, "num_key_value_heads": 2}
DEEP = {**LONG_GROUPED, "num_hidden_layers": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# on these, what concerns any model is tried
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("Llama", {**GROUPED, "tie_word_embeddings": False}),
    "llama-tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8, "tie_word_embeddings": False}),
    "mistral": ("Mistral", GROUPED),
    "gemma3": ("Gemma3Text", {**GROUPED, "head_dim": 8, "sliding_window": 16}),
    "gpt2": ("GPT2", WIDE),
    "opt": (
        "OPT",
        {
            **{k: v for k, v in PLAIN.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
    ),
    "gpt-neox": ("GPTNeoX", {**PLAIN, "rotary_pct": 0.25, "tie_word_embeddings": False}),
    "mpt": ("Mpt", {"vocab_size": 53, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "mixtral": ("Mixtral", {**EXPERTS, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2Moe",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24}),
    "gpt-oss": (
        "GptOss",
        {**EXPERTS, "head_dim": 8, "num_local_experts": 4, "sliding_window": 16, "rope_parameters": ROPE},
    ),
    "mamba": (
        "Mamba",
        {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    ),
    "mamba2": (
        "Mamba2",
        {
            "vocab_size": 53,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
        },
    ),
    "jamba": (
        "Jamba",
        {
            **EXPERTS,
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
}
# of them and those below, the ones that run before a commit; the others too are marked slow: linear layers, Conv1D,
# experts, a state, one projection for queries, keys and values
QUICK = ("llama-gqa", "gpt2", "mixtral", "mamba", "falcon")
# and these have an attention of another kind
ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LONG_GROUPED),
    "llama-yarn": (
        "Llama",
        {
            **LONG_GROUPED,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "neox-half": ("GPTNeoX", {**LONG, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}),
    "mistral-window": ("Mistral", {**LONG_GROUPED, "sliding_window": 9}),
    "both-ways": ("Gemma3Text", {**LONG_GROUPED, "head_dim": 8, "use_bidirectional_attention": True}),
    "gpt2-upcast": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "reorder_and_upcast_attn": True}),
    "gptj": ("GPTJ", {**WIDE, "n_positions": 128, "rotary_dim": 4}),
    "codegen": ("CodeGen", {**WIDE, "n_positions": 128, "rotary_dim": 4}),
    "bigcode": ("GPTBigCode", {**WIDE, "n_positions": 128}),
    "bloom": ("Bloom", {"vocab_size": 53, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", LONG),
    "falcon-grouped": ("Falcon", {**LONG, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("Falcon", {**LONG, "alibi": True, "multi_query": False}),
    "phi": ("Phi", LONG_GROUPED),
    "phi3": ("Phi3", LONG_GROUPED),
    "stablelm": ("StableLm", LONG_GROUPED),
    "stablelm-norm": ("StableLm", {**LONG_GROUPED, "qk_layernorm": True}),
    "persimmon": ("Persimmon", LONG),
    "granite": ("Granite", {**LONG_GROUPED, "attention_multiplier": 0.3}),
    "starcoder2": ("Starcoder2", {**LONG_GROUPED, "sliding_window": 9}),
    "nemotron": ("Nemotron", LONG_GROUPED),
    "helium": ("Helium", {**LONG_GROUPED, "head_dim": 8}),
    "ernie": ("Ernie4_5", {**LONG_GROUPED, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {**LONG_GROUPED, "head_dim": 8, "attn_logit_softcapping": 2.0, "sliding_window": 9},
    ),
    "cohere": ("Cohere", LONG_GROUPED),
    "cohere2": ("Cohere2", {**DEEP, "sliding_window": 9}),
    "glm": ("Glm", {**LONG_GROUPED, "head_dim": 8}),
    "glm4": ("Glm4", {**LONG_GROUPED, "head_dim": 8}),
    "smollm3": ("SmolLM3", DEEP),
    "olmo2": ("Olmo2", LONG_GROUPED),
    "nanochat": ("NanoChat", LONG_GROUPED),
    "hunyuan": ("HunYuanDenseV1", {**LONG_GROUPED, "head_dim": 8}),
    "dbrx": (
        "Dbrx",
        {
            "vocab_size": 53,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        },
    ),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": 53,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 9,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
        },
    ),
    "llama4": (
        "Llama4Text",
        {
            **DEEP,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 9,
            "use_qk_norm": False,
        },
    ),
    "bert": ("Bert", {**LONG, "is_decoder": True}),
    "xglm": (
        "XGLM",
        {
            "vocab_size": 53,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "pad_token_id": 0,
        },
    ),
}


def config_of(name: str, **changes: Any) -> tf.PretrainedConfig:
    """The configuration of an entry, with other settings where a test needs them."""
    kind, settings = (FAMILIES | ATTENTION)[name]
    return getattr(tf, f"{kind}Config")(**{**settings, **changes})


def random_model(
    config: str | tf.PretrainedConfig, noise: float = 0.0, seed: int = 1, **options: Any
) -> tf.PreTrainedModel:
    """A model in evaluation mode, of an entry or of a configuration.

    Args:
        config: which.
        noise: standard deviation of what is added to every weight, so that attention is far from uniform.
        seed: of both.
        options: of `AutoModelForCausalLM.from_config`.
    """
    torch.manual_seed(seed)
    config = config_of(config) if isinstance(config, str) else config
    model = tf.AutoModelForCausalLM.from_config(config, **options).eval()
    if noise:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * noise)
    return model


def smallest_llama(**changes: Any) -> tf.LlamaForCausalLM:
    """Two layers, 16 wide, two heads, 16 tokens, for what is saved, spoilt and loaded; other settings where needed."""
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**SMALLEST, "num_key_value_heads": 1, **changes})).eval()


def attention_maps(model: tf.PreTrainedModel, ids: list[int]) -> list[Tensor]:
    """`[H, T, T]` of every attention layer, as transformers gives them."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    return [found[0] for found in out if found is not None]
