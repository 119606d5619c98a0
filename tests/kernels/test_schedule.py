from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomfisher.kernels import launch, schedule


def read(blocks: np.ndarray, spans: np.ndarray) -> dict[int, list[list[int]]]:
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
    bounds = tuple(itertools.pairwise([3, *(3 + n for n in itertools.accumulate(lengths))]))
    blocks, spans, written = schedule.tables(bounds, tuple(targets), block, splits)
    counts = abs(blocks[:, 1])
    assert counts[:-1].min() >= 1 and counts.max() <= block and not blocks[-1].any()
    found = read(blocks, spans)
    expected = {
        e: [list(range(*b)) for b, t in zip(bounds, targets, strict=True) if t == e and b[0] < b[1]]
        for e in range(slices)
    }
    assert written.tolist() == [e for e in range(slices) if expected[e]]
    assert len(spans) == len(written) * splits
    for group, e in enumerate(written.tolist()):
        slots = [e] if splits == 1 else range(group * splits, (group + 1) * splits)
        assert [rows for slot in slots for rows in found[slot]] == expected[e]


def test_splits_are_even_where_segments_are() -> None:
    bounds = tuple((64 * n, 64 * (n + 1)) for n in range(40))
    _, spans, _ = schedule.tables(bounds, None, 64, 8)
    assert [(end - begin) for _, begin, end in spans.tolist()] == [5] * 8


def test_the_tables_of_a_batch_are_built_once() -> None:
    bounds, cpu = ((0, 5), (5, 9)), torch.device("cpu")
    first = schedule.build(bounds, None, 64, 1, cpu, 0)
    assert schedule.build(bounds, None, 64, 1, cpu, 0) is first
    assert schedule.build(bounds, None, 64, 1, cpu, 1) is not first, "another stream"
    assert first.blocks.dtype == torch.int32


def test_more_rows_than_int32_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2147483647 rows in one call, got 2147483648"):
        schedule.tables(((0, 4), (2**31 - 4, 2**31)), None, 64, 1)


def test_what_a_cuda_graph_reads_is_kept_and_sent_before(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds, cpu = ((0, 3), (3, 11)), torch.device("cpu")

    def capturing(now: bool) -> None:
        for module in (schedule, launch):
            monkeypatch.setattr(module, "capturing", lambda: now)

    schedule._build.cache_clear()
    monkeypatch.setattr(schedule, "_captured", [])
    capturing(True)
    with pytest.raises(RuntimeError, match="after the same call on the same stream"):
        schedule.build(bounds, None, 64, 1, cpu, 0)
    capturing(False)
    schedule.build(bounds, None, 64, 1, cpu, 0)
    assert not schedule._captured
    capturing(True)
    found = weakref.ref(schedule.build(bounds, None, 64, 1, cpu, 0))
    schedule._build.cache_clear()
    assert found() is schedule._captured[0]
