from __future__ import annotations

import itertools

import pytest
import torch

from tomfisher.sample import IGNORED
from tomfisher.testbed.batches import batches
from tomfisher.testbed.recipe import Recipe
from tomfisher.testbed.tokenizer import build_tokenizer, word_ids


@pytest.fixture(scope="module")
def drawn():
    return list(itertools.islice(batches(Recipe(stories=8, general_tokens=512)), 12))


def test_story_batch_marks_the_word_behind_each_question(drawn):
    ids = word_ids()
    stems = {ids["the"], ids["of"]}
    for batch, _ in drawn:
        assert batch.answers.sum(1).tolist() == [2] * 8
        rows, positions = batch.answers.nonzero(as_tuple=True)
        assert {int(i) for i in batch.input_ids[rows, positions - 1]} <= stems
        assert set(batch.input_ids[rows, positions + 1].tolist()) == {ids["."]}


def test_padding_is_on_the_right_and_unsupervised(drawn):
    pad = word_ids()["<pad>"]
    for batch, _ in drawn:
        padded = batch.input_ids == pad
        assert torch.equal(padded, padded.cummax(1).values.bool())
        assert torch.equal(batch.labels, batch.input_ids.masked_fill(padded, IGNORED))


def test_general_batch_holds_the_asked_number_of_tokens_in_windows(drawn):
    begin = word_ids()["<s>"]
    for _, batch in drawn:
        assert batch.input_ids.numel() == 512 and batch.input_ids.shape[1] in (128, 256, 512)
        assert torch.equal(batch.labels, batch.input_ids) and not batch.answers.any()
        starts = (batch.input_ids == begin).nonzero().tolist()
        assert starts == [[row, 0] for row in range(1, len(batch.input_ids), 2)]
    assert len({batch.input_ids.shape for _, batch in drawn}) > 1


def test_text_is_a_function_of_the_seed(drawn):
    again = next(batches(Recipe(stories=8, general_tokens=512)))
    other = next(batches(Recipe(stories=8, general_tokens=512, seed=99)))
    assert torch.equal(again[0].input_ids, drawn[0][0].input_ids)
    assert torch.equal(again[1].input_ids, drawn[0][1].input_ids)
    assert build_tokenizer().decode(other[0].input_ids[0]) != build_tokenizer().decode(again[0].input_ids[0])
