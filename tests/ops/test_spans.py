"""Headers of safetensors files: what the library writes is read, everything hostile is refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tomfisher.ops.spans import read_spans

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "c": torch.arange(5, dtype=torch.float64),
}


def stored(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_spans_are_where_the_bytes_are(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x", metadata={"format": "pt"})
    spans = read_spans(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    assert set(spans) == set(TENSORS)
    for name, tensor in TENSORS.items():
        span = spans[name]
        assert (span.shape, span.dtype, span.numel) == (tuple(tensor.shape), tensor.dtype, tensor.numel())
        raw = data[span.offset : span.offset + span.numel * span.dtype.itemsize]
        assert raw == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"w": entry(end=12)}, b"x" * 12),
        ({"w": entry(end=4)}, b"x" * 8),
        ({"w": entry()}, b"x" * 7),
        ({"w": entry()}, b"x" * 9),
        ({"w": entry(begin=4, end=12)}, b"x" * 12),
        ({"w": entry(), "v": entry()}, b"x" * 16),
        ({"w": entry(), "v": entry(begin=4, end=12)}, b"x" * 12),
        ({"w": entry(shape=[2**63], end=2**65)}, b"x"),
        ({"w": entry(shape=[2**61], end=2**63 - 1)}, b"x"),
        ({"w": entry(shape=[2**32, 2**32], end=0)}, b""),
        ({"w": entry(begin=8, end=0)}, b"x" * 8),
        ({"w": entry(shape=[-2])}, b"x" * 8),
        ({"w": entry(shape=[2.0])}, b"x" * 8),
        ({"w": entry(shape=[True, 2])}, b"x" * 8),
        ({"w": entry(begin=-8, end=0)}, b"x" * 8),
        ({"w": entry(begin=None)}, b"x" * 8),
        ({"w": entry(dtype="F33")}, b"x" * 8),
        ({"w": entry(dtype=["F32"])}, b"x" * 8),
        ({"w": 3}, b""),
        ([], b""),
        (b"{", b""),
        (b"\xff\xfe", b""),
        (b"[" * 100_000, b""),
        (b'{"w": ' + b"9" * 5000 + b"}", b""),
        ({"w": entry(shape=[10**4000, 10**4000])}, b"x" * 8),
        ({"w": entry(shape=[2**62] * 10_000)}, b"x" * 8),
        (b'{"w": 1, "w": 2}', b""),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged or no safetensors file") as caught:
        read_spans(stored(tmp_path / "x", header, data))
    assert str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 3])
def test_a_header_length_that_is_not_true_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read_spans(stored(tmp_path / "x", {"w": entry()}, b"x" * 8, length=length))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for size in range(len(data)):
        (tmp_path / "y").write_bytes(data[:size])
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            read_spans(tmp_path / "y")


NUMBERS = st.one_of(
    st.integers(-2, 70), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 1.5, None, True, "8"])
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "U8", "F32 ", "", 3]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3), data=st.binary(max_size=64))
def test_whatever_is_accepted_lies_within_the_file(tmp_path: Path, header: dict, data: bytes) -> None:
    path = stored(tmp_path / "x", header, data)
    size = path.stat().st_size
    try:
        spans = read_spans(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    taken = sorted((s.offset, s.offset + math.prod(s.shape) * s.dtype.itemsize) for s in spans.values())
    assert all(0 <= begin <= end <= size for begin, end in taken)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_an_error_or_spans_within_the_file(tmp_path: Path, where: int, bit: int) -> None:
    save_file(TENSORS, tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    data[where % len(data)] ^= 1 << bit
    (tmp_path / "y").write_bytes(data)
    try:
        spans = read_spans(tmp_path / "y")
    except ValueError:
        return
    assert all(s.offset + s.numel * s.dtype.itemsize <= len(data) for s in spans.values())


def test_a_dtype_that_torch_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x: 'w' has the dtype F8_E8M0, not one of"):
        read_spans(stored(tmp_path / "x", {"w": entry(end=2, dtype="F8_E8M0")}, b"xx"))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_spans(tmp_path / "nothing")
