from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from tomfisher.runtime.batches import collate, plan_batches
from tomfisher.sample import IGNORED, Sample


@given(
    st.lists(st.integers(2, 300), min_size=1, max_size=60),
    st.integers(1, 2000),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_every_sample_once_within_the_budget_longest_first(
    lengths: list[int], budget: int, most: int | None
) -> None:
    batches = plan_batches(lengths, budget, most)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert [lengths[i] for b in batches for i in b] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert most is None or len(batch) <= most
    for current, following in itertools.pairwise(batches):  # no batch could have taken the next sample
        full = most is not None and len(current) == most
        assert full or (len(current) + 1) * lengths[current[0]] > budget or lengths[following[0]] > budget


def test_padding_is_on_the_right_unsupervised_and_no_new_token() -> None:
    samples = [Sample(torch.tensor(ids), torch.tensor(ids)) for ids in ([5, 6, 7], [1, 2], [8, 9, 10, 11])]
    batch = collate(samples, [1, 2])
    assert (
        batch.shape == (2, 4)
        and batch.lengths == [2, 4]
        and batch.indices == [1, 2]
        and batch.num_tokens == 6
    )
    assert batch.input_ids.tolist() == [[1, 2, 2, 2], [8, 9, 10, 11]]
    assert batch.labels.tolist() == [[1, 2, IGNORED, IGNORED], [8, 9, 10, 11]]
