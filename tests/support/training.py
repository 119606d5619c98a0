"""What trainings are tried on: tiny models in training mode, samples over a few tokens, masks of some entries."""

from __future__ import annotations

from typing import Any

import torch

from tiny_models import random_model
from tomfisher import Sample, SparseMask


def trainable_model(family: str = "llama-gqa", dtype: torch.dtype = torch.float32) -> Any:
    """A random model in training mode, as some callers leave it."""
    return random_model(family, seed=5).to(dtype).train()


def training_samples() -> list[Sample]:
    """Ten sequences of 6 to 10 tokens whose last two are supervised."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(10):
        ids = torch.randint(53, (6 + i % 5,), generator=generator)
        labels = torch.full_like(ids, -100)
        labels[-2:] = ids[-2:]
        made.append(Sample(ids, labels, f"s{i}"))
    return made


def some_mask(model: Any, share: float = 0.05, seed: int = 0) -> SparseMask:
    """A random share of every decoder matrix and of the embedding."""
    generator = torch.Generator().manual_seed(seed)
    indices, shapes = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            order = torch.randperm(parameter.numel(), generator=generator)
            indices[name] = order[: max(1, int(share * parameter.numel()))].sort().values
            shapes[name] = tuple(parameter.shape)
    return SparseMask(indices, shapes)
