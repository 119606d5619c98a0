"""One token sequence with labels: the unit over which a Fisher diagonal sums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One sequence and its supervised positions, in the Hugging Face label convention.

    `labels[t]` is the id of token t where it is supervised and -100 elsewhere; the shift (position t-1
    predicts token t) happens inside the loss, so `labels[0]` never counts.

    Args:
        input_ids: token ids, int64, shape `[T]`, T >= 2.
        labels: int64, shape `[T]`.
        name: what error messages call this sample.

    Raises:
        TypeError: a field is no int64 tensor.
        ValueError: shapes differ, fewer than two tokens, or no position is supervised.
    """

    input_ids: Tensor
    labels: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        what = f"Sample {self.name!r}" if self.name else "Sample"
        for field in ("input_ids", "labels"):
            value = getattr(self, field)
            if not isinstance(value, Tensor) or value.dtype != torch.int64:
                given = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"{what}: {field} must be an int64 tensor, got {given}. Use torch.tensor(ids, dtype=torch.int64)."
                )
        if self.input_ids.ndim != 1 or self.input_ids.shape != self.labels.shape:
            raise ValueError(
                f"{what}: input_ids and labels must be 1-D and of one length, got {tuple(self.input_ids.shape)} "
                f"and {tuple(self.labels.shape)}. Pass one sequence per Sample."
            )
        if len(self.input_ids) < 2:
            raise ValueError(
                f"{what} has {len(self.input_ids)} token(s); at least 2 are needed, because the first token is "
                "never predicted. Use a longer text."
            )
        if not bool((self.labels[1:] != IGNORED).any()):
            raise ValueError(
                f"{what} supervises nothing: every label after the first is {IGNORED}. Set labels[t] = input_ids[t] "
                "for each token to supervise."
            )

    def __len__(self) -> int:
        return len(self.input_ids)

    def called(self, what: str) -> str:
        """How a message names this sample: `what`, and its name if it has one."""
        return f"{what} ({self.name})" if self.name else what

    @property
    def num_supervised(self) -> int:
        """Number of tokens whose log-likelihood counts."""
        return int((self.labels[1:] != IGNORED).sum())


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over ids and labels of all samples, in order: what data a result was computed on."""
    sha = hashlib.sha256()
    for sample in samples:
        sha.update(len(sample).to_bytes(8, "little"))
        sha.update(sample.input_ids.cpu().numpy().tobytes())
        sha.update(sample.labels.cpu().numpy().tobytes())
    return sha.hexdigest()
