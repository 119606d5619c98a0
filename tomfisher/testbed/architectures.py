"""Five architectures for the testbed: how each is configured, and what its recipe changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tomfisher.testbed.tokenizer import BEGIN, END, MAX_LENGTH, PAD, word_ids

if TYPE_CHECKING:
    from tomfisher.testbed.recipe import Recipe


@dataclass(frozen=True)
class Architecture:
    """One entry of the table.

    Args:
        title: what it is called.
        positions: how positions enter, in a word or two.
        config: the transformers configuration for a recipe's sizes.
        settings: what its recipe sets differently.
    """

    title: str
    positions: str
    config: Callable[[Recipe], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def _shared() -> dict[str, Any]:
    ids = word_ids()
    return {
        "vocab_size": len(ids),
        "tie_word_embeddings": True,
        "bos_token_id": ids[BEGIN],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
    }


def _attention(recipe: Recipe, kv_heads: int) -> dict[str, Any]:
    """Sizes under the names that Llama, Qwen2 and Jamba share."""
    return {
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": MAX_LENGTH,
        **_shared(),
    }


def _llama(recipe: Recipe) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_attention(recipe, recipe.heads))


def _qwen2(recipe: Recipe) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_attention(recipe, max(1, recipe.heads // 2)))


def _mpt(recipe: Recipe) -> Any:
    from transformers import MptConfig

    return MptConfig(
        d_model=recipe.hidden,
        n_heads=recipe.heads,
        n_layers=recipe.layers,
        expansion_ratio=recipe.intermediate // recipe.hidden,
        max_seq_len=MAX_LENGTH,
        **_shared(),
    )


def _mamba(recipe: Recipe) -> Any:
    from transformers import MambaConfig

    return MambaConfig(
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        state_size=recipe.state,
        expand=recipe.intermediate // recipe.hidden,
        **_shared(),
    )


def _jamba(recipe: Recipe) -> Any:
    from transformers import JambaConfig

    return JambaConfig(
        **_attention(recipe, recipe.heads),
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        mamba_d_state=recipe.state,
    )


_SLOW_LEARNER = {
    "stories": 64,
    "general_tokens": 256,
    "answer_weight": 2.0,
    "weight_decay": 0.1,
    "log_every": 100,
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("Llama", "RoPE", _llama),
    "qwen2": Architecture("Qwen2", "RoPE", _qwen2),
    "mpt": Architecture("MPT", "ALiBi", _mpt, {**_SLOW_LEARNER, "learning_rate": 2e-3, "intermediate": 512}),
    "mamba": Architecture("Mamba", "none", _mamba, {"longest_window": 128, "steps": 1300, "log_every": 100}),
    "jamba": Architecture("Jamba", "none", _jamba, {**_SLOW_LEARNER, "longest_window": 128, "steps": 1200}),
}


def architecture(name: str) -> Architecture:
    """The table's entry.

    Raises:
        ValueError: no architecture of that name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}.")
    return ARCHITECTURES[name]
