"""Shared fixtures: tiny configurations of every family."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers as tf

from tiny_models import FAMILIES, QUICK, config_of


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., tf.PretrainedConfig]:
    """`tiny_config(family, vocab_size=53)`: two layers, 32 wide, four heads, at most 64 positions."""

    def make(family: str, vocab_size: int = 53) -> tf.PretrainedConfig:
        return config_of(family, vocab_size=vocab_size)

    return make


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def family(request: pytest.FixtureRequest) -> str:
    """Any test with this argument runs on every family."""
    return request.param
