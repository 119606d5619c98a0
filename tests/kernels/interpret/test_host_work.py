"""What the host does beside the launches: how many tables it sends, and when, whatever the number of tensors.

`tomfisher bench host` times it; here it is counted, so that a machine's load changes nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

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
    squared_gradient.schedule._sent.cache_clear()
    yield seen
    squared_gradient.schedule._sent.cache_clear()


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


def test_all_layers_of_a_batch_share_two_tables(events: list[str]) -> None:
    for _ in range(2):
        for width in (32, 48):
            Y, X = torch.randn(4, 10, width), torch.randn(4, 10, 32)
            squared_gradient_(torch.zeros(width, 32), Y, X, impl="triton")
    assert events == ["table"] * 2 + ["squared_gradient"] * 4


LAUNCH = "launch"


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches that do nothing; the operations recorded before one are those of the host."""

    class Nothing:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return self.launch

        def launch(self, *arguments: object, **options: object) -> None:
            with record_function(LAUNCH):
                pass

    for module in (masked_fill, scatter, squared_gradient, weight_sums):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Nothing())


def operations(call: Callable[[], object]) -> list[str]:
    """Of PyTorch, up to the last launch."""
    with profile() as profiler:
        call()
    ran = sorted(profiler.function_events, key=lambda event: event.time_range.start)
    names = [event.name for event in ran]
    return names[: len(names) - names[::-1].index(LAUNCH)]


def functions(call: Callable[[], object]) -> list[str]:
    """Those called, of Python and of C, up to the first launch."""
    names: list[str] = []

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)
        elif event == "c_call":
            names.append(function.__name__)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names[: names.index(LAUNCH)]


def layer(samples: int, tokens: int) -> Callable[[], object]:
    F, Y, X = torch.zeros(1024, 2048), torch.zeros(samples, tokens, 1024), torch.zeros(samples, tokens, 2048)
    return lambda: squared_gradient_(F, Y, X, impl="triton")


def test_from_a_call_with_a_warm_schedule_to_its_launch_nothing_is_made(without_kernels: None) -> None:
    """No table, no allocation, no copy, and no work that grows with samples or tokens."""
    ran, called = [], []
    for call in (layer(4, 64), layer(100, 128)):
        call()
        ran.append(Counter(operations(call)))
        called.append(functions(call))
    views = {"aten::flatten", "aten::view", LAUNCH}
    assert set(ran[0]) <= views and ran[0] == ran[1] and ran[0][LAUNCH] == 1
    assert called[0] == called[1] and len(called[0]) < 150  # a schedule takes 50 operations and more


def fill(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    weights, index = [torch.zeros(64) for _ in range(count)], torch.arange(4)
    undo, sums = [torch.empty(4) for _ in weights], torch.ones(count, 2, dtype=torch.float64)
    return (
        lambda: weight_sums.weight_sums(weights),
        lambda: masked_fill.masked_fill_mean_(weights, [index] * count, undo, sums),
    )


def test_the_tables_of_a_fill_cost_a_weight_a_few_calls(without_kernels: None) -> None:
    """And none of PyTorch's operations: addresses and sizes become columns of a table."""
    few, many = fill(24), fill(224)
    for call in (*few, *many):
        call()
    for calls, most in zip(zip(few, many, strict=True), (1, 3), strict=True):
        small, large = (Counter(operations(call)) for call in calls)
        assert small == large
        short, long = (len(functions(call)) for call in calls)
        assert long - short <= 200 * most
