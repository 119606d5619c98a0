"""What the host does beside the launches: how many tables it sends, and when, whatever the number of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from tomfisher.kernels import masked_fill, scatter, square_accumulate, squared_gradient, tables, weight_sums
from tomfisher.ops import squared_gradient_


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tables sent to the device and kernels launched, in order."""
    seen: list[str] = []

    def sent(array: np.ndarray, device: torch.device) -> Tensor:
        seen.append("table")
        return torch.from_numpy(array)

    class Spied:
        def __init__(self, kernel: Any, name: str) -> None:
            self._kernel, self._name = kernel, name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            seen.append(self._name)
            return self._kernel[grid]

    for module in (tables, masked_fill, squared_gradient.schedule):
        monkeypatch.setattr(module, "sent", sent)
    for module in (masked_fill, scatter, square_accumulate, squared_gradient, weight_sums):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Spied(getattr(module, name), name.removesuffix("_kernel")))
    squared_gradient.schedule._build.cache_clear()
    yield seen
    squared_gradient.schedule._build.cache_clear()


FILL = ["table", "sums", "fold", "table", "table", "table", "gather", "fold", "scatter"]


@pytest.mark.parametrize("count", [1, 50])
def test_a_first_fill_starts_the_sums_before_it_makes_its_own_tables(count: int, events: list[str]) -> None:
    weights = [torch.randn(300) for _ in range(count)]
    indices = [torch.arange(7)] * count
    masked_fill.masked_fill_mean_(weights, indices, [torch.empty(7)] * count, None)
    assert events == FILL


def test_every_further_dtype_costs_two_tables_and_three_launches(events: list[str]) -> None:
    weights = [torch.randn(300), torch.randn(40).bfloat16(), torch.randn(9)]
    sums = weight_sums.weight_sums(weights)
    events.clear()
    masked_fill.masked_fill_mean_(weights, [torch.arange(3)] * 3, [w.new_empty(3) for w in weights], sums)
    assert sorted(events) == sorted([*FILL[3:], "table", "table", "gather", "fold", "scatter"])


@pytest.mark.parametrize("count", [1, 50])
def test_squares_of_many_gradients_are_one_table_and_one_launch(count: int, events: list[str]) -> None:
    square_accumulate.square_accumulate_([torch.zeros(99)] * count, [torch.randn(99)] * count)
    assert events == ["table", "square_accumulate"]


def test_all_layers_of_a_batch_share_three_tables(events: list[str]) -> None:
    for _ in range(2):
        for width in (32, 48):
            Y, X = torch.randn(4, 10, width), torch.randn(4, 10, 32)
            squared_gradient_(torch.zeros(width, 32), Y, X, impl="triton")
    assert events == ["table"] * 3 + ["squared_gradient"] * 4
