"""Selection straight from a file: the in-memory answer, whatever the implementation."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tomfisher.ops import Span, topk

IMPLS = ["reference"] + (["cpp"] if importlib.util.find_spec("tomfisher._C") else [])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def write(path: Path, values: torch.Tensor, before: bytes = b"", after: bytes = b"") -> Path:
    path.write_bytes(before + values.contiguous().view(torch.uint8).numpy().tobytes() + after)
    return path


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.one_of(st.integers(1, 300), st.integers(65_000, 70_000), st.just(1_100_000)),
    dtype=st.sampled_from(DTYPES),
    where=st.floats(0, 1),
    gap=st.integers(0, 9),
    few=st.booleans(),
)
def test_equals_the_selection_in_memory(
    tmp_path: Path, impl: str, n: int, dtype: torch.dtype, where: float, gap: int, few: bool
) -> None:
    values = torch.randint(-2, 3, (n,)).to(dtype) if few else torch.randn(n).to(dtype)
    path = write(tmp_path / "x", values, b"x" * gap, b"yz")
    for k in {0, 1, n // 200, int(where * n), n}:
        found = topk(Span(path, gap, (n,), dtype), k, impl)
        expected = topk(values, k, impl="reference")
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.values, expected.values)
        assert found.threshold.item() == (expected.values[-1].item() if k else math.inf)


@pytest.mark.parametrize("impl", IMPLS)
def test_negative_zero_comes_back_as_zero(tmp_path: Path, impl: str) -> None:
    path = write(tmp_path / "x", torch.tensor([-1.0, -0.0, 0.0]))
    found = topk(Span(path, 0, (3,), torch.float32), 2, impl)
    assert found.indices.tolist() == [1, 2] and not torch.signbit(found.values).any()


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_requests_are_refused(tmp_path: Path, impl: str) -> None:
    path = write(tmp_path / "x", torch.tensor([1.0, math.nan, 2.0]))
    with pytest.raises(ValueError, match="NaN or infinity at flat index 1"):
        topk(Span(path, 0, (3,), torch.float32), 1, impl)
    for offset, numel in ((0, 4), (9, 1), (-4, 1), (0, 2**62), (2**63, 1), (0, -1)):
        with pytest.raises(ValueError, match="do not lie within"):
            topk(Span(path, offset, (numel,), torch.float32), 0, impl)
    with pytest.raises(ValueError, match="k must be between 0 and 1"):
        topk(Span(path, 0, (1,), torch.float32), 2, impl)
    with pytest.raises(TypeError, match=r"got torch\.int8"):
        topk(Span(path, 0, (1,), torch.int8), 0, impl)
    with pytest.raises(FileNotFoundError):
        topk(Span(tmp_path / "nothing", 0, (0,), torch.float32), 0, impl)
    assert topk(Span(path, 12, (0,), torch.float32), 0, impl).indices.tolist() == []


@pytest.mark.slow
@pytest.mark.skipif("cpp" not in IMPLS, reason="the C++ extension is not built")
def test_more_than_2_to_the_31_entries_in_bounded_memory(tmp_path: Path) -> None:
    n, path = 2**31 + 1000, tmp_path / "sparse"
    planted = {5: 1.0, 2**31 - 1: 3.0, 2**31: 3.0, 2**31 + 999: 2.0, 2**30: 0.5}
    with path.open("wb") as file:
        file.truncate(n * 4)
        for index, value in planted.items():
            file.seek(index * 4)
            file.write(torch.tensor([value]).numpy().tobytes())
    code = (
        "import resource, torch; from tomfisher.ops import Span, topk\n"
        "topk(Span(PATH, 0, (1000,), torch.float32), 7)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = topk(Span(PATH, 0, (N,), torch.float32), 7)\n"
        "print(found.indices.tolist(), found.values.tolist())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    code = code.replace("PATH", repr(os.fspath(path))).replace("(N,", f"({n},")
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
        )
    finally:
        path.unlink()
    answer, kilobytes = done.stdout.splitlines()
    # the two threes by index, and the first of the zeros after all that is planted
    expected = [2**31 - 1, 2**31, 2**31 + 999, 5, 2**30, 0, 1]
    assert answer == f"{expected} {[3.0, 3.0, 2.0, 1.0, 0.5, 0.0, 0.0]}"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(kilobytes) * unit <= 64 * 2**20
