"""A perturbed copy is the perturbed model, which itself is as before; nothing else is replaced by it."""

from __future__ import annotations

import json

import pytest
import torch

from bits import same_bits, state_of
from tomfisher import SparseMask, perturb
from tomfisher.files import sha256_of_file
from tomfisher.models import load_model
from tomfisher.studies.perturbed_copy import RECORD, refuse_other, write_perturbed
from training import some_mask


@pytest.fixture
def loaded(tiny_model):
    return load_model(str(tiny_model), "fp32", "cpu")


@pytest.fixture
def mask_file(loaded, tmp_path):
    some_mask(loaded.model).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def write(loaded, mask_file, target):
    perturbation = perturb(loaded.model, SparseMask.load(mask_file), fill="zero")
    write_perturbed(target, loaded, perturbation, mask_file, fill="zero", compat=None, seed=0)


def test_the_copy_is_perturbed_and_the_model_is_as_before(loaded, mask_file, tmp_path):
    before = state_of(loaded.model)
    write(loaded, mask_file, tmp_path / "p")
    assert same_bits(state_of(loaded.model), before)
    copy = load_model(str(tmp_path / "p"), "fp32", "cpu").model
    with perturb(loaded.model, SparseMask.load(mask_file), fill="zero"):
        for name, weight in loaded.model.named_parameters():
            assert torch.equal(weight, copy.get_parameter(name)), name
    record = json.loads((tmp_path / "p" / RECORD).read_text())
    assert record["mask"]["sha256"] == sha256_of_file(mask_file) and record["fill"] == "zero"
    assert {RECORD, *record["files"]} == {file.name for file in (tmp_path / "p").iterdir()}


def test_only_an_earlier_copy_is_replaced(loaded, mask_file, tmp_path):
    for _ in range(2):
        write(loaded, mask_file, tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt"):
        refuse_other(tmp_path / "p")
    with pytest.raises(FileExistsError):
        write(loaded, mask_file, tmp_path / "p")
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"
