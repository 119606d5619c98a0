"""Texts that a study reads beside a store that it was given are recorded, and compared with the store's."""

from __future__ import annotations

import pytest
import torch

from tomfisher import FisherDiagonal
from tomfisher.models import load_model
from tomfisher.results.folder import RunFolder
from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs, stories_sha256
from tomfisher.studies.task_texts import read_samples


def inputs_with(settings, store, recorded=None, **changes):
    """A study's inputs, whose store says that it is of texts with a hash."""
    F = FisherDiagonal({"w": torch.ones(2)}, 1, 1)
    F.metadata.update({} if recorded is None else {"texts_sha256": recorded})
    F.save(store)
    return Inputs(Config.from_dict({**settings, "n_task": 6, "task_store": str(store), **changes}))


def test_they_are_pinned_and_a_store_of_other_texts_is_told(tiny_settings, tmp_path):
    silent = inputs_with(tiny_settings, tmp_path / "silent")
    digest, said = stories_sha256(silent.task_stories), []
    same = inputs_with(tiny_settings, tmp_path / "same", digest)
    other = inputs_with(tiny_settings, tmp_path / "other", digest, seed=1)
    assert digest != stories_sha256(other.task_stories) and "task" not in silent.hashes()
    loaded = load_model(tiny_settings["model"], dtype="fp32", device="cpu")
    folder, fresh = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "fresh")
    with folder.opened():
        read_samples(silent, folder, said.append, "control", loaded)
        assert folder.pinned() == {}
        for inputs in (silent, same):
            assert len(read_samples(inputs, folder, said.append, "task", loaded)) == 6
        assert folder.pinned() == {"task_texts": digest} and not said
        with pytest.raises(ValueError, match="changed since it was begun"):
            read_samples(other, folder, said.append, "task", loaded)
    with fresh.opened():
        read_samples(other, fresh, said.append, "task", loaded)
    assert len(said) == 1 and "was taken of other texts" in said[0]
