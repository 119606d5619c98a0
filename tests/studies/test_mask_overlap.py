from __future__ import annotations

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.studies.mask_overlap import overlap_of_files


def test_masks_are_called_by_their_files_or_by_paths_where_those_are_the_same(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "sub/a.safetensors")]
    (tmp_path / "sub").mkdir()
    for i, file in enumerate(files):
        SparseMask({"w": torch.arange(i, i + 4)}, {"w": (4, 4)}).save(file)
    a, b, again = map(str, files)
    (pair,) = overlap_of_files([a, b]).pairs
    assert (pair.a, pair.b, pair.shared) == ("a", "b", 3)
    (pair,) = overlap_of_files([a, again]).pairs
    assert (pair.a, pair.b, pair.shared) == (a, again, 2)
    for given in ([a], [a, b, a]):
        with pytest.raises(ValueError, match="two or more different mask files"):
            overlap_of_files(given)
