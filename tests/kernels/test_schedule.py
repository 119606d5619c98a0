from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.kernels import launch, schedule


def read(blocks: Tensor, spans: Tensor) -> dict[int, list[list[int]]]:
    """What a kernel makes of the tables: for every output slice, the rows of each segment it squares."""
    result: dict[int, list[list[int]]] = {}
    for slot, begin, end in spans.tolist():
        segments, rows = result.setdefault(slot, []), []
        for first, count in blocks[begin:end].tolist():
            rows += range(first, first + abs(count))
            if count < 0:
                segments.append(rows)
                rows = []
        assert not rows, "a span ends inside a segment"
    return result


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    slices=st.integers(1, 4),
    block=st.sampled_from([1, 7, 16]),
    splits=st.integers(1, 6),
    data=st.data(),
)
def test_every_segment_is_squared_once_in_the_slice_it_belongs_to(
    lengths, slices, block, splits, data
) -> None:
    targets = data.draw(st.lists(st.integers(0, slices - 1), min_size=len(lengths), max_size=len(lengths)))
    bounds = list(itertools.pairwise([3, *(3 + n for n in itertools.accumulate(lengths))]))
    rows = bounds[-1][1] + 2
    made = schedule.tables(torch.tensor(bounds), torch.tensor(targets), slices, rows, block, splits)
    counts = abs(made.blocks[:, 1])
    used = sum(-(-n // block) for n in lengths)
    assert counts[:used].min() >= 1 and counts.max() <= block and not made.blocks[used:].any()
    assert len(made.blocks) > used and made.blocks.dtype == made.spans.dtype == torch.int32
    found = read(made.blocks, made.spans)
    expected = {
        e: [list(range(*b)) for b, t in zip(bounds, targets, strict=True) if t == e and b[0] < b[1]]
        for e in range(slices)
    }
    assert list(found) == list(range(slices * splits))
    for e in range(slices):
        slots = range(e * splits, (e + 1) * splits)
        assert [rows for slot in slots for rows in found[slot]] == expected[e]


def cut(bounds: Any, block: int, splits: int = 1, targets: Any = None) -> schedule.Schedule:
    F = torch.empty(4, 4) if targets is None else torch.empty(3, 4, 4)
    return schedule.build(F, 64 * 40, bounds, targets, block, splits)


def test_splits_are_even_where_segments_are() -> None:
    spans = cut([(64 * n, 64 * (n + 1)) for n in range(40)], 64, 8).spans
    assert [(end - begin) for _, begin, end in spans.tolist()] == [5] * 8


@pytest.mark.parametrize("targets", [None, [2, 0, 2, 2]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_segments_in_tensors_and_in_lists_give_the_same_tables(
    targets: list[int] | None, dtype: torch.dtype
) -> None:
    bounds = [(0, 70), (70, 70), (70, 75), (75, 200)]
    there = None if targets is None else torch.tensor(targets, dtype=dtype)
    lists = cut(bounds, 32, 2, targets)
    tensors = cut(torch.tensor(bounds, dtype=dtype), 32, 2, there)
    assert torch.equal(lists.blocks, tensors.blocks) and torch.equal(lists.spans, tensors.spans)


# what a GPU would be waited for: a value, or a result whose size depends on values
WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "repeat_interleave.Tensor", "bincount")


def test_tables_of_a_device_take_as_many_operations_for_any_number_of_segments() -> None:
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    counts = []
    for segments in (3, 3000):
        called: list[str] = []
        bounds = torch.arange(segments)[:, None] + torch.tensor([0, 1])
        targets = torch.arange(segments) % 3
        with Operations():
            schedule.tables(bounds, targets, 3, segments, 16, 2)
        assert not [name for name in called if any(wait in name for wait in WAITS)]
        counts.append(len(called))
    assert counts[0] == counts[1] <= 60


def test_the_tables_of_a_batch_are_built_once_a_stream() -> None:
    bounds = ((0, 5), (5, 9))
    assert cut(bounds, 64) is cut(list(bounds), 64)
    arguments = (bounds, None, 1, 64 * 40, 64, 1, torch.device("cpu"))
    assert schedule._sent(*arguments, 0) is cut(bounds, 64)
    assert schedule._sent(*arguments, 1) is not cut(bounds, 64), "another stream"


def test_what_a_cuda_graph_reads_is_kept_and_sent_before(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ((0, 3), (3, 11))

    def capturing(now: bool) -> None:
        for module in (schedule, launch):
            monkeypatch.setattr(module, "capturing", lambda: now)

    schedule._sent.cache_clear()
    monkeypatch.setattr(schedule, "_captured", [])
    capturing(True)
    with pytest.raises(RuntimeError, match="after the same call on the same stream"):
        cut(bounds, 64)
    cut(torch.tensor(bounds), 64)  # what the device knows already is no copy that a replay would repeat
    capturing(False)
    cut(bounds, 64)
    assert not schedule._captured
    capturing(True)
    found = weakref.ref(cut(bounds, 64))
    schedule._sent.cache_clear()
    assert found() is schedule._captured[0]
