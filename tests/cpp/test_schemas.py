"""Every operation of the extension does what its schema says: what it writes, what it returns, no hidden alias.

The operations of `torch.ops.tomfisher` call these, and carry the fake kernels for tracing (tests/ops/test_library.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("tomfisher._C")
ops = torch.ops.tomfisher_cpp

Arguments = tuple[object, ...]


def values(tmp_path: Path) -> str:
    path = tmp_path / "values.bin"
    path.write_bytes(torch.randn(20).numpy().tobytes())
    return str(path)


def fill() -> Arguments:
    return [torch.randn(3, 2), torch.randn(7)], [torch.tensor([0, 5]), torch.tensor([3])]


def entries() -> Arguments:
    return [torch.randn(3, 2), torch.randn(7)], torch.tensor([0, 5, 3]), [2, 1]


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
    "gather_entries": lambda _: (*entries(), torch.empty(3), 2),
    "put_entries": lambda _: (*entries(), torch.randn(3), 2),
    "fill_entries": lambda _: (*entries(), torch.empty(3), torch.ones(2, 2, dtype=torch.float64), 2),
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
    checks = ("test_schema", "test_autograd_registration")
    found = torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=checks)
    assert set(found.values()) == {"SUCCESS"}


def test_no_operation_is_forgotten() -> None:
    registered = torch._C._dispatch_get_all_op_names()
    assert {n.partition("::")[2] for n in registered if n.startswith("tomfisher_cpp::")} == set(CALLS)
