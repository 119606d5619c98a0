"""Every operation of the extension does what its schema says: what it writes, what it returns, no hidden alias.

The operations of `torch.ops.tomfisher` call these, and carry the fake kernels for tracing (tests/ops/test_library.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.schema_check_mode import SchemaCheckMode

from tomfisher.ops import weight_sums

pytest.importorskip("tomfisher._C")
ops = torch.ops.tomfisher_cpp

Arguments = tuple[object, ...]


def values(tmp_path: Path) -> str:
    path = tmp_path / "values.bin"
    path.write_bytes(torch.randn(20).numpy().tobytes())
    return str(path)


def fill() -> Arguments:
    return [torch.randn(3, 2), torch.randn(7)], [torch.tensor([0, 5]), torch.tensor([3])]


def packed() -> Arguments:
    weight = torch.arange(4.0)
    row = [weight.data_ptr(), weight.numel(), 2, 0, 2, 0]
    return [weight], torch.tensor([row]), torch.tensor([1, 3])


CALLS: dict[str, Callable[[Path], Arguments]] = {
    "cpu_isa": lambda _: (),
    "squared_gradient_": lambda _: (
        torch.zeros(2, 5, 3), torch.randn(9, 5), torch.randn(9, 3), [0, 4], [4, 9], [1, 0], 2,
    ),
    "square_accumulate_": lambda _: (
        [torch.zeros(3, 2), torch.zeros(7)], [torch.randn(3, 2), torch.randn(7)], 2,
    ),
    "weight_sums": lambda _: (fill()[0], 2),
    "masked_fill_mean_": lambda _: (*fill(), [torch.empty(2), torch.empty(1)], None, 2),
    "scatter_": lambda _: (*fill(), [torch.randn(2), torch.randn(1)], 2),
    "packed_fill_mean_": lambda _: (
        *packed(), torch.zeros(1, dtype=torch.int64), weight_sums([torch.arange(4.0)]), 1,
    ),
    "packed_scatter_": lambda _: (
        *packed(), torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1,
    ),
    "select": lambda _: (
        [torch.randn(20), torch.randn(7)], [4, 2], torch.tensor([0.5], dtype=torch.float64), 2,
    ),
    "select_across": lambda _: ([torch.randn(20), torch.randn(7)], 6, 2),
    "select_file": lambda path: (
        values(path), 0, 20, torch.float32, 4, torch.tensor([0.5], dtype=torch.float64), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_schema_holds(name: str, tmp_path: Path) -> None:
    arguments = CALLS[name](tmp_path)
    if name.startswith("packed"):
        # their table holds the weights' addresses, so the copies that opcheck makes would be refused
        with SchemaCheckMode():
            assert getattr(ops, name)(*arguments) == -1
        return
    checks = ("test_schema", "test_autograd_registration")
    found = torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=checks)
    assert set(found.values()) == {"SUCCESS"}


def test_no_operation_is_forgotten() -> None:
    registered = torch._C._dispatch_get_all_op_names()
    assert {n.partition("::")[2] for n in registered if n.startswith("tomfisher_cpp::")} == set(CALLS)
