"""Tiny random models of every family, ragged samples, and the definition in fp64."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import tomfisher
import truth
from tomfisher.sample import IGNORED, Sample


def tiny_model(config: tf.PretrainedConfig) -> nn.Module:
    """A random model with dropout switched on (it must not act) and no parameter at a special value."""
    torch.manual_seed(1)
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
            f"{name}: {error / max(scale, 1e-300):.1e} ({actual.methods[name]})"
        )


@pytest.fixture
def tiny(tiny_config: Callable[..., tf.PretrainedConfig]) -> SimpleNamespace:
    """The helpers above: `tiny.model(family)`, `tiny.samples(n)`, `tiny.definition(...)`, `tiny.assert_exact(...)`."""
    return SimpleNamespace(
        model=lambda family: tiny_model(tiny_config(family)),
        samples=ragged_samples,
        definition=truth.fisher,
        assert_exact=assert_exact,
        enable_checkpointing=enable_checkpointing,
    )
