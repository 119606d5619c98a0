"""How often the host waits for the device in a run: once a batch, a handful a run, whatever the number of tensors."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tomfisher
from tomfisher.fisher import estimator, select_parameters
from tomfisher.fisher.probe import choose_methods
from tomfisher.fisher.stage import WholeModel
from tomfisher.runtime.device import to_device

# what makes the host wait for a value: `.item()`, `bool(tensor)`, `float(tensor)` and `if tensor`
VALUES = {torch.ops.aten._local_scalar_dense.default}


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, by where: values that are asked for, and copies to the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("cpu", "tolist", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in VALUES and _of_a_device(args[0])
        return func(*args, **(kwargs or {}))

    def _counted(self, method: Any) -> Any:
        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.count += _of_a_device(tensor)
            return method(tensor, *args, **kwargs)

        return counted


def _of_a_device(tensor: torch.Tensor) -> bool:
    """Ids, labels and positions (int64) live on the host; what a device computes is floating or boolean."""
    return tensor.dtype != torch.int64


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


@pytest.mark.parametrize(
    ("family", "params", "labels"),
    [
        ("llama-gqa", "decoder-linear", "empirical"),
        ("llama-gqa", "decoder-linear", "sampled"),
        ("gpt2", "all", "empirical"),
    ],
)
def test_the_host_waits_once_a_batch(
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    waits: Waits,
    family: str,
    params: str,
    labels: Any,
) -> None:
    model, samples = tiny.model(family), tiny.samples(8)
    per_batch: list[int] = []
    original = estimator.Run._one_batch

    def counted(self: Any, *args: Any) -> bool:
        before = waits.count
        done = original(self, *args)
        per_batch.append(waits.count - before)
        return done

    monkeypatch.setattr(estimator.Run, "_one_batch", counted)
    with waits:
        F = tomfisher.fisher_diagonal(
            model, samples, params, labels=labels, tokens_per_batch=40, progress=False
        )
        model_alone = -waits.count
        model(input_ids=samples[0].input_ids[None], use_cache=False)
        model_alone += waits.count  # transformers looks at its mask
    assert len(F) > 8 and len(per_batch) > 2
    assert max(per_batch) <= 1 + model_alone <= 2


def test_the_probe_waits_a_handful_of_times_whatever_the_number_of_tensors(
    tiny: SimpleNamespace, waits: Waits
) -> None:
    counts = Counter[str]()
    model, samples = tiny.model("llama-gqa"), tiny.samples(8)
    for params in ("decoder-linear", "model.layers.0.mlp.*"):
        before = waits.count
        with waits:
            choose_methods(WholeModel(model), select_parameters(model, params), samples)
        counts[params] = waits.count - before
    assert len(set(counts.values())) == 1 and max(counts.values()) <= 24  # two or three a forward


def test_a_tensor_of_the_host_goes_to_a_gpu_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: said.append("pinned") or t)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *args, **options: said.append((args, options)) or t)
    to_device(torch.zeros(2), torch.device("cuda"))
    assert said == ["pinned", ((torch.device("cuda"),), {"non_blocking": True})]
    to_device(torch.zeros(2), torch.device("cpu"))
    assert said[2:] == [((torch.device("cpu"),), {})]


@pytest.mark.parametrize("family", ["llama-tied", "mixtral", "gpt2"])  # mixtral has no fallback
def test_two_passes_give_what_one_gives(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, samples = tiny.model(family), tiny.samples(6)
    batches: list[int] = []
    original = estimator.Run._one_batch

    def sized(self: Any, batch: Any, entry: Any) -> bool:
        batches.append(len(batch.indices))
        return original(self, batch, entry)

    monkeypatch.setattr(estimator.Run, "_one_batch", sized)
    monkeypatch.setattr(estimator, "in_two_passes", lambda device: True)
    F = tomfisher.fisher_diagonal(model, samples, "all", tokens_per_batch=60, progress=False)
    tiny.assert_exact(F, tiny.definition(model, samples))
    alone = any(method.startswith("fallback") for method in F.methods.values())
    assert max(batches) > 1 and (batches.count(1) >= len(samples)) == alone
    monkeypatch.setattr(estimator, "in_two_passes", lambda device: False)
    once = tomfisher.fisher_diagonal(model, samples, "all", tokens_per_batch=60, progress=False)
    assert list(F) == list(once) and F.methods == once.methods


def test_the_budget_is_recorded(tiny: SimpleNamespace) -> None:
    F = tomfisher.fisher_diagonal(tiny.model("llama-gqa"), tiny.samples(4), progress=False)
    assert F.metadata["tokens_per_batch"] == {
        "asked": "auto",
        "taken": 512,
        "least": 512,
        "bytes_per_token": {},
    }
