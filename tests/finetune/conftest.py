"""Tiny random models and samples over a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from bits import bits as bits_of
from bits import state_of
from tomfisher import Sample, SparseMask


@pytest.fixture
def tiny(tiny_config: Any) -> Callable[..., Any]:
    """`tiny("llama-tied", torch.float32)`: a random model in training mode, as some callers leave it."""

    def make(family: str = "llama-gqa", dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(5)
        return tf.AutoModelForCausalLM.from_config(tiny_config(family)).to(dtype).train()

    return make


@pytest.fixture
def samples() -> list[Sample]:
    """Ten sequences of 6 to 10 tokens whose last two are supervised."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(10):
        ids = torch.randint(53, (6 + i % 5,), generator=generator)
        labels = torch.full_like(ids, -100)
        labels[-2:] = ids[-2:]
        made.append(Sample(ids, labels, f"s{i}"))
    return made


@pytest.fixture
def some_mask() -> Callable[..., SparseMask]:
    """`some_mask(model, share=0.05)`: a random share of every decoder matrix and of the embedding."""

    def make(model: Any, share: float = 0.05, seed: int = 0) -> SparseMask:
        generator = torch.Generator().manual_seed(seed)
        indices, shapes = {}, {}
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                order = torch.randperm(parameter.numel(), generator=generator)
                indices[name] = order[: max(1, int(share * parameter.numel()))].sort().values
                shapes[name] = tuple(parameter.shape)
        return SparseMask(indices, shapes)

    return make


@pytest.fixture
def bits() -> Callable[[Any], dict[str, torch.Tensor]]:
    """`bits(model)`: every parameter and buffer as integers."""
    return lambda model: {name: bits_of(tensor) for name, tensor in state_of(model).items()}
