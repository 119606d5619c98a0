from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from tomfisher.sample import IGNORED, Sample


def make(ids: list[int], labels: list[int], name: str = "") -> Sample:
    return Sample(torch.tensor(ids), torch.tensor(labels), name)


def test_the_first_label_never_counts() -> None:
    assert make([4, 5, 6], [4, 5, 6]).num_supervised == 2
    assert make([4, 5, 6], [IGNORED, IGNORED, 6]).num_supervised == 1
    assert len(make([4, 5, 6], [4, 5, 6])) == 3


def test_num_supervised_counts_the_terms_of_the_shifted_loss() -> None:
    sample = make([4, 5, 6, 7], [4, IGNORED, 6, 7])
    logits = torch.zeros(3, 10)
    loss = torch.nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=IGNORED, reduction="sum")
    assert loss.item() == pytest.approx(sample.num_supervised * torch.log(torch.tensor(10.0)).item())


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make([1, 2], [1, 2]).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ids", "labels", "error", "words"),
    [
        (
            torch.tensor([1, 2], dtype=torch.int32),
            torch.tensor([1, 2]),
            TypeError,
            "input_ids must be an int64",
        ),
        (torch.tensor([1, 2]), [1, 2], TypeError, "labels must be an int64 tensor, got list"),
        (torch.tensor([[1, 2]]), torch.tensor([[1, 2]]), ValueError, "one sequence per Sample"),
        (torch.tensor([1, 2]), torch.tensor([1, 2, 3]), ValueError, "of one length"),
        (torch.tensor([1]), torch.tensor([1]), ValueError, "at least 2"),
        (torch.tensor([1, 2]), torch.tensor([1, -100]), ValueError, "supervises nothing"),
    ],
)
def test_malformed_samples_are_refused_by_name(
    ids: object, labels: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        Sample(ids, labels, name="text 7")  # type: ignore[arg-type]
    assert "text 7" in str(caught.value)
