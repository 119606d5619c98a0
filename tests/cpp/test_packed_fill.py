"""What the packed operations check themselves, whatever Python has let through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tomfisher.ops import FillTable, masked_fill_mean_, weight_sums

pytest.importorskip("tomfisher._C")
ops = torch.ops.tomfisher_cpp


def arguments(weight: Tensor) -> dict[str, Tensor]:
    """One weight, two of its entries."""
    row = [weight.data_ptr(), weight.numel(), 2, 0, 2, 0]
    return {
        "table": torch.tensor([row]),
        "positions": torch.tensor([1, 3]),
        "log": torch.zeros(1, dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positions", torch.tensor([1, 4]), "Position 4 is outside"),
        ("positions", torch.tensor([-1, 2]), "Position -1 is outside"),
        ("positions", torch.tensor([1]), "reaches out of"),
        ("positions", torch.tensor([1, 3]).int(), "must be int64"),
        ("log", torch.zeros(0, dtype=torch.int64), "reaches out of"),
        ("log", torch.zeros(4), "must be int64"),
        ("table", torch.zeros(2, 6, dtype=torch.int64), r"int64 \[weights, 6\]"),
        ("table", torch.zeros(1, 6), r"int64 \[weights, 6\]"),
        ("column", (3, -1), "reaches out of"),
        ("column", (3, 3), "reaches out of"),
        ("column", (4, 3), "reaches out of"),
        ("column", (4, 2**62), "reaches out of"),
        ("column", (5, 4), "reaches out of"),
        ("column", (5, -8), "reaches out of"),
        ("column", (5, 8), "reaches out of"),
    ],
)
def test_what_could_reach_out_of_bounds_is_refused(name, value, message) -> None:
    weight = torch.arange(4.0)
    given, sums = arguments(weight), weight_sums([weight])
    if name == "column":
        given["table"][0, value[0]] = value[1]
    else:
        given[name] = value
    with pytest.raises(RuntimeError, match=message):
        ops.packed_fill_mean_([weight], *given.values(), sums, 1)
    with pytest.raises(RuntimeError, match=message):
        ops.packed_scatter_([weight], *given.values(), None, 1)
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_sums_and_full_masks_are_refused_too() -> None:
    weight = torch.arange(4.0)
    given = arguments(weight)
    for sums in (torch.zeros(1, 2), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="sums must be"):
            ops.packed_fill_mean_([weight], *given.values(), sums, 1)
    small = torch.arange(2.0)
    given = arguments(small) | {"positions": torch.tensor([0, 1])}
    with pytest.raises(RuntimeError, match="masked entirely"):
        ops.packed_fill_mean_([small], *given.values(), weight_sums([small]), 1)


@pytest.mark.parametrize(("column", "value"), [(0, 64), (1, 5), (2, 0), (2, 3)])
def test_a_row_that_is_of_another_weight_is_reported(column: int, value: int) -> None:
    weights = [torch.arange(4.0), torch.arange(4.0)]
    given = arguments(weights[1])
    given["table"] = torch.cat([arguments(weights[0])["table"], given["table"]])
    given["table"][1, column] = value
    assert ops.packed_fill_mean_(weights, *given.values(), weight_sums(weights), 1) == -3
    assert ops.packed_scatter_(weights, *given.values(), None, 1) == -3
    assert all(weight.tolist() == [0.0, 1.0, 2.0, 3.0] for weight in weights)


def test_a_weight_on_another_device_is_reported() -> None:
    weight = torch.arange(4.0)
    away = torch.empty(4, device="meta")
    assert ops.packed_scatter_([away], *arguments(weight).values(), None, 1) == -2


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_long_lists_have_the_bits_of_the_list_operation(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, generator=generator) for n in (70_000, 9, 20_000)]
    before, copies = [w.clone() for w in weights], [w.clone() for w in weights]
    indices = [torch.randperm(w.numel(), generator=generator)[: w.numel() // 2] for w in weights]
    sums, now = weight_sums(weights), torch.get_num_threads()
    masked_fill_mean_(copies, indices, sums=sums, impl="cpp")
    table = FillTable(weights, indices, "cpp")
    torch.set_num_threads(threads)
    try:
        table.fill_mean(sums)
        assert all(torch.equal(w, c) for w, c in zip(weights, copies, strict=True))
        table.undo()
    finally:
        torch.set_num_threads(now)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
