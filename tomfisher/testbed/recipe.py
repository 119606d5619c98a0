"""How each testbed model is built and trained: sizes, settings, and a table of five architectures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tomfisher.testbed.tokenizer import BEGIN, END, MAX_LENGTH, PAD, word_ids

SECOND_ORDER_STEPS = 1500


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the thread count and the torch version.

    Args:
        steps: optimiser steps.
        seed: of the initial weights and of the training text.
        stories: stories per step.
        general_tokens: tokens of general text per step, as windows of 128, 256 or 512 tokens.
        answer_weight: the mean loss of the answer tokens is added to the mean loss of all tokens, times this.
        slips: fraction of the training answers that are wrong, evenly over conditions and questions. It keeps the
            model's certainty bounded, so that no story's gradient vanishes and the Fisher diagonal of right
            answers sees all of them; held-out stories have none.
        learning_rate: peak of AdamW's rate; linear warm-up, then cosine decay to a tenth.
        warmup: warm-up steps.
        weight_decay: of the weight matrices.
        log_every: steps between two entries of the log.
        hidden: model width.
        intermediate: width of the feed-forward layers.
        layers: decoder layers.
        heads: attention heads.
        architecture: "llama", "qwen2", "mpt", "mamba" or "jamba".
        second_order: tell second-order stories too, as often as those of either first-order family.
        longest_window: of general text, in tokens.
        state: numbers that a state-space layer remembers per channel.

    Raises:
        ValueError: a size that leaves nothing to train on, or an unknown architecture.
    """

    steps: int = 1200
    seed: int = 1
    stories: int = 32
    general_tokens: int = 512
    answer_weight: float = 1.0
    slips: float = 0.1
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1.0
    log_every: int = 250
    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    architecture: str = "llama"
    second_order: bool = False
    longest_window: int = 512
    state: int = 8

    def __post_init__(self) -> None:
        smallest_of = {"steps": 1, "stories": 1, "general_tokens": 2, "longest_window": 2, "log_every": 1}
        for name, smallest in smallest_of.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}.")
        if not 0 <= self.slips < 0.5:
            raise ValueError(f"slips must be at least 0 and below 0.5, got {self.slips}.")
        architecture(self.architecture)

    @classmethod
    def of(cls, name: str, second_order: bool = False, **given: Any) -> Recipe:
        """The recipe of an architecture: what its table entry sets differently, then what is given."""
        steps = {"steps": SECOND_ORDER_STEPS} if second_order else {}
        settings = {**steps, **architecture(name).settings, **given}
        return cls(architecture=name, second_order=second_order, **settings)

    def config(self) -> Any:
        """The transformers configuration of the model."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.architecture, **architecture(self.architecture).sizes(self))

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0)."""
        return warm_cosine(step, self.steps, self.warmup, self.learning_rate)


def warm_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up to `peak`, then cosine decay to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Architecture:
    """One entry of the table.

    Args:
        title: what it is called.
        positions: how positions enter, in a word or two.
        sizes: settings of the transformers configuration, whose model type is the entry's name, for a recipe.
        settings: what its recipe sets differently.
    """

    title: str
    positions: str
    sizes: Callable[[Recipe], dict[str, Any]]
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


def _llama(recipe: Recipe) -> dict[str, Any]:
    return _attention(recipe, recipe.heads)


def _qwen2(recipe: Recipe) -> dict[str, Any]:
    return _attention(recipe, max(1, recipe.heads // 2))


def _mpt(recipe: Recipe) -> dict[str, Any]:
    return {
        "d_model": recipe.hidden,
        "n_heads": recipe.heads,
        "n_layers": recipe.layers,
        "expansion_ratio": recipe.intermediate // recipe.hidden,
        "max_seq_len": MAX_LENGTH,
        **_shared(),
    }


def _mamba(recipe: Recipe) -> dict[str, Any]:
    return {
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "state_size": recipe.state,
        "expand": recipe.intermediate // recipe.hidden,
        **_shared(),
    }


def _jamba(recipe: Recipe) -> dict[str, Any]:
    return {
        **_attention(recipe, recipe.heads),
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_d_state": recipe.state,
    }


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
