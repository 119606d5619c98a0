"""Code words say which output of which linear map they are, whatever scale, sign, clip or mean came between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tomfisher.models.codes import ROWS, Codes


def test_no_two_words_are_alike_and_each_is_read_back():
    words = Codes.words(5000, torch.zeros(1))
    assert len(words.T.unique(dim=0)) == 5000 and words.shape == (ROWS, 5000)
    assert Codes.read(words, 5000).tolist() == list(range(5000))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: -0.3 * x,
        lambda x: x.clamp(-0.1, 0.2),
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x.bfloat16() * torch.linspace(-2, 3, x.shape[1]).bfloat16(),
    ],
)
def test_words_are_read_through_what_stands_between(between):
    words = Codes.words(16, torch.zeros(1))
    assert Codes.read(between(words), 16).tolist() == list(range(16))


def test_what_is_no_word_is_nobodys():
    generator = torch.Generator().manual_seed(0)
    assert (Codes.read(torch.randn(ROWS, 50, generator=generator), 200) == -1).all()
    assert (Codes.read(torch.zeros(ROWS, 3), 200) == -1).all()


def test_makers_are_the_maps_and_outputs_that_were_joined():
    codes, one, other = Codes(), nn.Linear(3, 4), nn.Linear(3, 4)
    first, second = (codes.speak(m, (), torch.zeros(ROWS, 2, 4)) for m in (one, other))
    joined = torch.stack([first[:, 0], second[:, 0].flip(1)], dim=1)  # [ROWS, heads, D]
    ((a, of_a), (b, of_b)) = codes.makers(joined)
    assert a is one and of_a.tolist() == [[0, 1, 2, 3], [-1] * 4]
    assert b is other and of_b.tolist() == [[-1] * 4, [3, 2, 1, 0]]
    assert codes.makers(torch.randn(ROWS, 2, 4)) == []
