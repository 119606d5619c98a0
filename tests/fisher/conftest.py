"""Tiny random models of every family, ragged samples, and the definition in fp64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import tomfisher
from tomfisher.sample import IGNORED, Sample

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GPT2 = {"vocab_size": 53, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}

FAMILIES: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "llama-gqa": lambda: tf.LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "llama-tied": lambda: tf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED, tie_word_embeddings=False),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=False),
    "mistral": lambda: tf.MistralConfig(**GROUPED),
    "gemma3": lambda: tf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=16),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "opt": lambda: tf.OPTConfig(
        vocab_size=53,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SMALL, rotary_pct=0.25, tie_word_embeddings=False),
    "mpt": lambda: tf.MptConfig(vocab_size=53, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "mixtral": lambda: tf.MixtralConfig(**EXPERTS, num_local_experts=4),
    "qwen2-moe": lambda: tf.Qwen2MoeConfig(
        **EXPERTS, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=40
    ),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(**EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=24),
    "gpt-oss": lambda: tf.GptOssConfig(
        **EXPERTS, head_dim=8, num_local_experts=4, sliding_window=16, rope_parameters=ROPE
    ),
    "mamba": lambda: tf.MambaConfig(**MAMBA),
    "mamba2": lambda: tf.Mamba2Config(
        vocab_size=53,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
    ),
    "jamba": lambda: tf.JambaConfig(
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


def tiny_model(family: str) -> nn.Module:
    """A random model with dropout switched on (it must not act) and no parameter at a special value."""
    torch.manual_seed(1)
    config = FAMILIES[family]()
    for key in ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout"):
        if hasattr(config, key):
            setattr(config, key, 0.1)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def enable_checkpointing(model: nn.Module) -> None:
    """The method has another name since transformers 5.20 or so; both ends of the range are supported."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def ragged_samples(count: int, vocabulary: int = 53) -> list[Sample]:
    """Lengths 3 to 20, some with every token supervised, some with the last one only, some with gaps."""
    generator = random.Random(count)
    samples = []
    for index in range(count):
        length = generator.randint(3, 20)
        ids = torch.tensor([generator.randrange(3, vocabulary) for _ in range(length)])
        labels = ids.clone()
        if index % 3 == 1:
            labels[:-1] = IGNORED
        if index % 3 == 2:
            labels[1:-1:2] = IGNORED
        samples.append(Sample(ids, labels, name=f"s{index}"))
    return samples


def definition(model: nn.Module, samples: list[Sample], reduction: str = "mean") -> dict[str, Tensor]:
    """F_i = Σ_n (∂ℓ_n/∂θ_i)², every parameter, float64, one sample at a time, transformers' own loss."""
    reference = copy.deepcopy(model).double().eval()
    if hasattr(reference, "set_experts_implementation"):
        reference.set_experts_implementation("eager")  # the fused kernels have no float64
    F = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for sample in samples:
        reference.zero_grad()
        # Mamba casts its logits to float32 whatever the model's dtype; all before them is float64
        logits = reference(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1].double()
        loss = nn.functional.cross_entropy(
            logits, sample.labels[1:], ignore_index=IGNORED, reduction=reduction
        )
        loss.backward()
        for name, p in reference.named_parameters():
            if p.grad is not None:
                F[name] += p.grad.square()
    return F


def assert_exact(actual: tomfisher.FisherDiagonal, expected: dict[str, Tensor]) -> None:
    """Max-norm per tensor, 1e-5; a gradient that is zero in exact arithmetic may be rounding noise.

    fp32 rounding leaves about 1e-7 of the largest gradient where the true one is zero (a key's bias);
    squared and with a margin of ten per gradient that is 1e-12 of the largest entry.
    """
    noise = 1e-12 * max(float(F.max()) for F in expected.values())
    for name in actual:
        error = float((actual[name].double() - expected[name]).abs().max())
        scale = float(expected[name].abs().max())
        assert error <= 1e-5 * scale + noise, (
            f"{name}: {error / max(scale, 1e-300):.1e} ({actual.roads[name]})"
        )


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The helpers above: `tiny.model(family)`, `tiny.samples(n)`, `tiny.definition(...)`, `tiny.assert_exact(...)`."""
    return SimpleNamespace(
        model=tiny_model,
        samples=ragged_samples,
        definition=definition,
        assert_exact=assert_exact,
        enable_checkpointing=enable_checkpointing,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Any test with a `family` argument runs on every family."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", list(FAMILIES))
