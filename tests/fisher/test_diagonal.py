from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import tomfisher


def test_two_runs_add_up_to_one(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(7)
    a, b = (
        tomfisher.fisher_diagonal(model, part, tokens_per_batch=1, progress=False)
        for part in (samples[:3], samples[3:])
    )
    both = a + b
    tiny.assert_exact(both, tiny.definition(model, samples))
    assert both.num_samples == 7 and both.num_tokens == sum(len(s) for s in samples)
    name = next(iter(both))
    assert torch.equal(both.mean()[name], both[name] / 7)


def test_what_cannot_be_added_is_refused(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(2)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    other = tomfisher.fisher_diagonal(model, samples, params="*.q_proj.weight", progress=False)
    with pytest.raises(ValueError, match=r"cover different parameters.*down_proj"):
        F + other
    summed = tomfisher.fisher_diagonal(model, samples, reduction="sum", progress=False)
    with pytest.raises(ValueError, match=r"defined differently in \['reduction'\]"):
        F + summed


def test_the_record_says_what_was_computed(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(2)
    F = tomfisher.fisher_diagonal(model, samples, params=["*.q_proj.weight"], progress=False)
    assert F.definition["labels"] == "empirical" and F.definition["reduction"] == "mean"
    assert F.metadata["params"] == ["*.q_proj.weight"]
    assert len(F.metadata["data_sha256"]) == 64
    changed = tomfisher.fisher_diagonal(model, tiny.samples(3), params="*.q_proj.weight", progress=False)
    assert changed.metadata["data_sha256"] != F.metadata["data_sha256"]
    assert F.metadata["model"]["model_type"] == "llama"
    assert "2 samples" in repr(F)
