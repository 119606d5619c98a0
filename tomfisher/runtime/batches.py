"""Token sequences in padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tomfisher.sample import IGNORED, Sample


@dataclass(frozen=True)
class Batch:
    """Samples padded on the right to one length.

    `input_ids` and `labels` are int64 `[B, T]`; `lengths[b]` positions of row b are real; `indices[b]` is
    the sample's position in the caller's list.
    """

    indices: list[int]
    lengths: list[int]
    input_ids: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(B, T)`."""
        return self.input_ids.shape[0], self.input_ids.shape[1]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Stack id lists, padded on the right, where a causal model does not look, with each row's own last token.

    Not with a padding token: some models warn about theirs, or treat it as absent.

    Args:
        rows: token ids, at least one in each row.
        device: where the result goes.

    Returns:
        int64 `[B, T]`, T the length of the longest row.
    """
    length = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows], device=device)


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    """`pad` the samples at `indices`; padding is not supervised."""
    chosen = [samples[i] for i in indices]
    input_ids = pad([sample.input_ids.tolist() for sample in chosen], torch.device("cpu"))
    labels = torch.full_like(input_ids, IGNORED)
    for row, sample in enumerate(chosen):
        labels[row, : len(sample)] = sample.labels
    return Batch(list(indices), [len(sample) for sample in chosen], input_ids, labels)


def plan_batches(
    lengths: Sequence[int],
    tokens_per_batch: int | None = None,
    max_samples: int | None = None,
    padded: bool = True,
) -> list[list[int]]:
    """Group sample indices so that `B * T` stays within the budget, longest samples first.

    Sorting by length keeps padding small; longest first meets the memory peak at the start. A sample longer
    than the budget gets a batch of its own.

    Args:
        lengths: tokens of each sample.
        tokens_per_batch: upper bound of `B * T`, or None.
        max_samples: upper bound of B, or None.
        padded: whether samples of different lengths may stand in one batch.

    Returns:
        Lists of indices into `lengths`; every index occurs once.
    """
    if tokens_per_batch is not None and tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1 or 'auto', got {tokens_per_batch}.")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        current = batches[-1] if batches else []
        longest = lengths[current[0]] if current else 0
        full = max_samples is not None and len(current) >= max_samples
        full |= tokens_per_batch is not None and (len(current) + 1) * longest > tokens_per_batch
        if current and not full and (padded or lengths[index] == longest):
            current.append(index)
        else:
            batches.append([index])
    return batches
