"""Shared fixtures: tiny configurations of every family."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers as tf


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}

FAMILIES: dict[str, Callable[..., tf.PretrainedConfig]] = {
    "llama-gqa": lambda **k: tf.LlamaConfig(**k, **GROUPED, tie_word_embeddings=False),
    "llama-tied": lambda **k: tf.LlamaConfig(**k, **GROUPED, tie_word_embeddings=True),
    "qwen2": lambda **k: tf.Qwen2Config(**k, **GROUPED, tie_word_embeddings=False),
    "qwen3": lambda **k: tf.Qwen3Config(**k, **GROUPED, head_dim=8, tie_word_embeddings=False),
    "mistral": lambda **k: tf.MistralConfig(**k, **GROUPED),
    "gemma3": lambda **k: tf.Gemma3TextConfig(**k, **GROUPED, head_dim=8, sliding_window=16),
    "gpt2": lambda **k: tf.GPT2Config(**k, **GPT2),
    "opt": lambda **k: tf.OPTConfig(
        **k,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "gpt-neox": lambda **k: tf.GPTNeoXConfig(**k, **SMALL, rotary_pct=0.25, tie_word_embeddings=False),
    "mpt": lambda **k: tf.MptConfig(**k, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "mixtral": lambda **k: tf.MixtralConfig(**k, **EXPERTS, num_local_experts=4),
    "qwen2-moe": lambda **k: tf.Qwen2MoeConfig(
        **k, **EXPERTS, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=40
    ),
    "qwen3-moe": lambda **k: tf.Qwen3MoeConfig(
        **k, **EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=24
    ),
    "gpt-oss": lambda **k: tf.GptOssConfig(
        **k, **EXPERTS, head_dim=8, num_local_experts=4, sliding_window=16, rope_parameters=ROPE
    ),
    "mamba": lambda **k: tf.MambaConfig(**k, **MAMBA),
    "mamba2": lambda **k: tf.Mamba2Config(
        **k,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
    ),
    "jamba": lambda **k: tf.JambaConfig(
        **k,
        **EXPERTS,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., tf.PretrainedConfig]:
    """`tiny_config(family, vocab_size=53)`: two layers, 32 wide, four heads, at most 64 positions."""

    def make(family: str, vocab_size: int = 53) -> tf.PretrainedConfig:
        return FAMILIES[family](vocab_size=vocab_size)

    return make


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Any test with this argument runs on every family."""
    return request.param
