"""Fisher diagonals against the definition: fp64 autograd, one sample at a time, on every family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import tomfisher
from tomfisher import ops

NO_CHECKPOINTING = {"mamba2"}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_all_parameters_equal_the_definition(tiny: SimpleNamespace, family: str, checkpointing: bool) -> None:
    model = tiny.model(family)
    expected = tiny.definition(model, tiny.samples(5))
    if checkpointing:
        if family in NO_CHECKPOINTING:
            pytest.skip("this family has no gradient checkpointing in transformers")
        tiny.enable_checkpointing(model)
    F = tomfisher.fisher_diagonal(model, tiny.samples(5), params="all", progress=False)
    assert list(F) == [name for name, _ in model.named_parameters()]
    tiny.assert_exact(F, expected)


@pytest.mark.parametrize(
    ("count", "checkpointing"),
    [(1, False), (1, True), (9, False), (9, True)],
    ids=["1", "1-checkpointed", "9", "9-checkpointed"],
)
def test_batched_decoder_weights_equal_the_definition(
    tiny: SimpleNamespace, family: str, count: int, checkpointing: bool
) -> None:
    model = tiny.model(family)
    samples = tiny.samples(count)
    expected = tiny.definition(model, samples, "sum")
    if checkpointing:
        if family in NO_CHECKPOINTING:
            pytest.skip("this family has no gradient checkpointing in transformers")
        tiny.enable_checkpointing(model)
    F = tomfisher.fisher_diagonal(
        model, samples, params="decoder-linear", tokens_per_batch=100, reduction="sum", progress=False
    )
    tiny.assert_exact(F, expected)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_untied_models_are_captured_whole_and_in_batches(tiny: SimpleNamespace, checkpointing: bool) -> None:
    model = tiny.model("llama-gqa")
    samples = tiny.samples(9)
    expected = tiny.definition(model, samples)
    forwards: list[int] = []
    if checkpointing:
        tiny.enable_checkpointing(model)
    model.model.layers[0].self_attn.register_forward_hook(lambda m, args, out: forwards.append(len(out[0])))
    F = tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=1000, progress=False)
    assert set(F.methods.values()) == {"captured"}
    fastest, _ = ops.resolve("squared_gradient_", "auto", torch.device("cpu"))
    assert F.implementations == {"squared_gradient_@cpu": fastest}
    # behind the rules, the probe: batches of two and of three, then two single samples, then the two longest both
    # ways; the run: one batch of nine; twice each if recomputed
    sizes = [2, 3, 1, 1, 2, 1, 1, 9]
    last = [size for size in sizes for _ in range(2)] if checkpointing else sizes
    assert forwards[-len(last) :] == last
    tiny.assert_exact(F, expected)
