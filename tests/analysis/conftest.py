"""Tiny models with attention that is far from uniform, ragged prompts, and direct computations."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from tomfisher.models.families import describe

SMALL = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
PLAIN = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
WIDE = {"vocab_size": 53, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OWN = {
    "gptj": lambda: tf.GPTJConfig(**WIDE, rotary_dim=4),
    "codegen": lambda: tf.CodeGenConfig(**WIDE, rotary_dim=4),
    "bigcode": lambda: tf.GPTBigCodeConfig(**WIDE),
    "bloom": lambda: tf.BloomConfig(vocab_size=53, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: tf.FalconConfig(**PLAIN),
    "falcon-grouped": lambda: tf.FalconConfig(**PLAIN, new_decoder_architecture=True, num_kv_heads=2),
    "phi": lambda: tf.PhiConfig(**SMALL),
    "stablelm": lambda: tf.StableLmConfig(**SMALL),
    "granite": lambda: tf.GraniteConfig(**SMALL, attention_multiplier=0.3),
    "starcoder2": lambda: tf.Starcoder2Config(**SMALL, sliding_window=9),
    "nemotron": lambda: tf.NemotronConfig(**SMALL),
    "helium": lambda: tf.HeliumConfig(**SMALL, head_dim=8),
    "ernie": lambda: tf.Ernie4_5Config(**SMALL, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=2.0, sliding_window=9),
    "cohere2": lambda: tf.Cohere2Config(**{**SMALL, "num_hidden_layers": 4}, sliding_window=9),
    "glm4": lambda: tf.Glm4Config(**SMALL, head_dim=8),
    "gpt-neo": lambda: tf.GPTNeoConfig(
        vocab_size=53,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=9,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **{**SMALL, "num_hidden_layers": 4},
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=9,
        use_qk_norm=False,
    ),
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "llama-yarn": lambda: tf.LlamaConfig(**SMALL, rope_parameters=YARN),
    "neox-half": lambda: tf.GPTNeoXConfig(
        **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, rope_parameters=HALF
    ),
    "glm": lambda: tf.GlmConfig(**SMALL, head_dim=8),
    "cohere": lambda: tf.CohereConfig(**SMALL),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "smollm3": lambda: tf.SmolLM3Config(**{**SMALL, "num_hidden_layers": 4}),
    "both-ways": lambda: tf.Gemma3TextConfig(**SMALL, head_dim=8, use_bidirectional_attention=True),
    "mistral-window": lambda: tf.MistralConfig(**SMALL, sliding_window=9),
}


def build(name, tiny_config, attn_implementation="eager"):
    config = OWN[name]() if name in OWN else tiny_config(name)
    torch.manual_seed(1)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ragged(lengths=(64, 7, 30, 2, 19, 64), vocabulary=53):
    choose = random.Random(5)
    return [[choose.randrange(3, vocabulary) for _ in range(length)] for length in lengths]


def projected(model, prompt):
    """q and k `[H, T, D]` of every attention layer before the rotation, from what the projections put out."""
    found, handles = {}, []
    layers = describe(model).attention
    for index, attention in layers.items():
        for part in ("q", "k"):
            place = getattr(attention, part)
            norm = getattr(attention.module, f"{part}_norm", None)
            module = norm or model.get_submodule(place.parameter.rpartition(".")[0])

            def hook(_, __, output, key=(index, part), place=place, normed=norm is not None):
                if normed:  # Gemma-3 normalises heads first, [1, H, T, D]; the others [1, T, H, D]
                    first = model.config.model_type == "gemma3_text"
                    output = output[0].transpose(0, 1) if first else output[0]
                else:
                    output = output.reshape(len(prompt), -1)[:, place.index.flatten()]
                    output = output.view(len(prompt), *place.index.shape)
                found[key] = output.transpose(0, 1).double()

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {index: (found[index, "q"], found[index, "k"]) for index in layers}


def rotate(x, rotary):
    """Turn each pair of `[H, T, D]` as a complex number by position times frequency."""
    if rotary is None:
        return x
    i, j = rotary.pairs.T
    turns = torch.arange(x.shape[1])[:, None] * rotary.frequencies.double()
    z = torch.complex(x[..., i], x[..., j]) * torch.polar(torch.ones_like(turns), turns)
    out = x.clone()
    out[..., i], out[..., j] = z.real * rotary.attention_factor, z.imag * rotary.attention_factor
    return out


def maps(model, prompt):
    """Attention maps `[H, T, T]` of every attention layer, as transformers gives them."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([prompt]), output_attentions=True, use_cache=False).attentions
    layers = list(describe(model).attention)
    found = [a for a in out if a is not None]
    assert len(found) == len(layers)
    return {index: a[0].double() for index, a in zip(layers, found, strict=True)}


@pytest.fixture
def lab(tiny_config):
    return SimpleNamespace(
        build=lambda name, **options: build(name, tiny_config, **options),
        prompts=ragged,
        projected=projected,
        rotate=rotate,
        maps=maps,
    )
