"""`overlap_of_files`: what mask files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomfisher.analysis.overlap import Overlap, overlap
from tomfisher.masks import SparseMask


def overlap_of_files(files: Sequence[str]) -> Overlap:
    """Compare masks of one model, called by the names of their files, or by whole paths where names are the same.

    Args:
        files: two or more different ones.

    Raises:
        ValueError: there are fewer, or one is given twice; the masks are of different models.
    """
    if len(set(files)) < max(2, len(files)):
        raise ValueError(f"--compare_masks takes two or more different mask files, got {', '.join(files)}.")
    stems = [Path(file).stem for file in files]
    names = files if len(set(stems)) < len(stems) else stems
    return overlap({name: SparseMask.load(file) for name, file in zip(names, files, strict=True)})
