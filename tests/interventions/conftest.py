"""Tiny models of every rotary layout with attention far from uniform, and what happens inside them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from tomfisher.analysis.collect import watching
from tomfisher.models.families import describe

SMALL = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNGROUPED = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
OWN = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "neox": lambda: tf.GPTNeoXConfig(**UNGROUPED, rope_parameters=PARTIAL),
    "cohere": lambda: tf.CohereConfig(**SMALL),
    "glm": lambda: tf.GlmConfig(**SMALL, head_dim=8),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "window": lambda: tf.MistralConfig(**SMALL, sliding_window=9),
    "both-ways": lambda: tf.Gemma3TextConfig(**SMALL, head_dim=8, use_bidirectional_attention=True),
    "upcast": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, reorder_and_upcast_attn=True),
}


def build(name, tiny_config, attn_implementation="eager"):
    config = OWN[name]() if name in OWN else tiny_config(name)
    torch.manual_seed(1)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def prompt(length=23, seed=5):
    choose = random.Random(seed)
    return [choose.randrange(3, 53) for _ in range(length)]


def logits(model, ids, **options):
    ids = torch.tensor(ids if isinstance(ids[0], list) else [ids])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def maps(model, ids):
    """Attention maps `[H, T, T]` of every attention layer, as transformers gives them."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    return [a[0] for a in out if a is not None]


def inside(model, ids):
    """What each attention layer gets for one prompt: q `[H, T, D]` and k `[H_kv, T, D]`."""
    found = {}
    with watching(describe(model), lambda layer, seen: found.update({layer: (seen.q[0], seen.k[0])})):
        logits(model, ids)
    return found


@pytest.fixture
def lab(tiny_config):
    return SimpleNamespace(
        build=lambda name, **options: build(name, tiny_config, **options),
        prompt=prompt,
        logits=logits,
        maps=maps,
        inside=inside,
    )
