"""What the benchmarks run on: built-in models, Llamas of known shapes with random weights, and their layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from tomfisher import testbed
from tomfisher.models import load_model
from tomfisher.models.load import DTYPES, load_structure, resolve_device
from tomfisher.sample import Sample
from tomfisher.tasks import corpus

# arguments of transformers' LlamaConfig
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "llama-14m": {
        "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
        "num_attention_heads": 6, "num_key_value_heads": 2,
    },
    # the sizes of HuggingFaceTB/SmolLM2-135M and -360M
    "llama-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "llama-360m": {
        "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5, "tie_word_embeddings": True,
    },
    # meta-llama/Llama-3.2-1B and -3B
    "llama3-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "llama3-3b": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    # meta-llama/Meta-Llama-3-8B and -70B
    "llama3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "llama3-70b": {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    },
}  # fmt: skip
# models of other families whose shapes are asked for, but never made: model type and arguments of its config
ON_PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    # deepseek-ai/DeepSeek-V3
    "deepseek-v3": ("deepseek_v3", {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    }),
}  # fmt: skip


class Layer(NamedTuple):
    """A weight matrix of a decoder layer: what shares its shape, and the shape."""

    name: str
    d_out: int
    d_in: int


def linear_layers(config: str) -> list[Layer]:
    """The seven weight matrices of one decoder layer."""
    sizes = _sizes(config)
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    return [
        Layer("q", hidden, hidden),
        Layer("k", keys, hidden),
        Layer("v", keys, hidden),
        Layer("o", hidden, hidden),
        Layer("gate", inner, hidden),
        Layer("up", inner, hidden),
        Layer("down", hidden, inner),
    ]


def distinct_layers(config: str) -> list[Layer]:
    """The distinct shapes of `linear_layers`, named after all that have them, such as "q/o"."""
    names: dict[tuple[int, int], list[str]] = {}
    for layer in linear_layers(config):
        names.setdefault((layer.d_out, layer.d_in), []).append(layer.name)
    return [Layer("/".join(who), *shape) for shape, who in names.items()]


def head(config: str) -> Layer:
    """The output matrix."""
    return Layer("head", _sizes(config)["vocab_size"], _sizes(config)["hidden_size"])


def decoder_shapes(config: str) -> list[tuple[int, int]]:
    """Shapes of all weight matrices of all decoder layers."""
    return [(layer.d_out, layer.d_in) for layer in linear_layers(config)] * _sizes(config)[
        "num_hidden_layers"
    ]


def task_of(model: str) -> str:
    """The task whose words a built-in model knows: that of a testbed model's own language, else "false-belief"."""
    return testbed.texts_of(model).get("task", "false-belief")


def random_llama(config: str, dtype: str = "fp32", device: str = "cpu", seed: int = 0) -> nn.Module:
    """A Llama with random weights, made where it shall live.

    Args:
        config: a name in `CONFIGS`.
        dtype: "fp32", "bf16", "fp16" or "fp64".
        device: where.
        seed: of the weights.

    Returns:
        The model in evaluation mode.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**_sizes(config)), dtype=DTYPES[dtype])
    return model.eval()


def without_weights(model: str, trust_remote_code: bool = False, revision: str | None = None) -> nn.Module:
    """A model as its config describes it, on the device meta: shapes without values.

    Args:
        model: a name in `CONFIGS` or `ON_PAPER`, what `load_model` takes, or a config.json.
        trust_remote_code: let transformers run code that comes with the model.
        revision: of a hub model.
    """
    if model in CONFIGS:
        return random_llama(model, device="meta")
    if model in ON_PAPER:
        from transformers import AutoConfig, AutoModelForCausalLM

        kind, sizes = ON_PAPER[model]
        with torch.device("meta"):
            structure: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        return structure.eval()
    return load_structure(model, trust_remote_code, revision)


def inputs(
    model: str, config: str | None, dtype: str, device: str | None, samples: int, length: int
) -> tuple[nn.Module, list[Sample]]:
    """A model and fully supervised samples of one length.

    Args:
        model: what `load_model` takes; not used with `config`.
        config: a name in `CONFIGS` for random weights and random tokens, or None.
        dtype: of the weights.
        device: where; None picks.
        samples: how many.
        length: tokens of each.

    Returns:
        The model and the samples.
    """
    place = str(resolve_device(device))
    if config is not None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(_sizes(config)["vocab_size"], (samples, length), generator=generator)
        return random_llama(config, dtype, place), [Sample(input_ids=row, labels=row) for row in ids]
    loaded = load_model(model, dtype=dtype, device=place)
    text = corpus.load("testbed" if model.startswith("testbed") else "python-reference")
    return loaded.model, corpus.windows(loaded.tokenizer, text, length=length, n=samples)


def _sizes(config: str) -> dict[str, Any]:
    if config not in CONFIGS:
        raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {config!r}.")
    return CONFIGS[config]
