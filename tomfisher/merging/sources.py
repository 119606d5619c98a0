"""What is merged: the files of each model, and the store of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tomfisher.fisher import FisherDiagonal
from tomfisher.fisher.belongs import check_of_files
from tomfisher.models.files_of import ModelFiles, files_of
from tomfisher.models.loading_report import first_of
from tomfisher.ops import Span


class Source(NamedTuple):
    """One of the models.

    Attributes:
        files: of the model.
        store: its Fisher diagonal, opened from the disk.
    """

    files: ModelFiles
    store: FisherDiagonal | None

    @property
    def name(self) -> str:
        """The model, as the user gave it."""
        return self.files.name

    @property
    def spans(self) -> Mapping[str, Span]:
        """Where each tensor lies."""
        return self.files.spans


def open_source(name: str, store: str | os.PathLike[str] | None) -> Source:
    """Find a model's files, and open its store, all of whose checksums are verified.

    Args:
        name: a folder, a hub id, a built-in name or a .gguf file.
        store: folder of a Fisher store; None for none.

    Raises:
        FileNotFoundError: no such store.
        ValueError: no such model, its weights are not in safetensors, or the store was taken on other weights.
    """
    files = files_of(name)
    if store is None:
        return Source(files, None)
    opened = FisherDiagonal.load(store, verify=True)
    check_of_files(opened, store, files)
    return Source(files, opened)


def check_alike(sources: Sequence[Source]) -> None:
    """Refuse models whose tensors have other names or shapes than those of the first.

    Raises:
        ValueError: naming some of them.
    """
    first = sources[0]
    for other in sources[1:]:
        wrong = [
            f"{name} {span.shape} (there {other.spans[name].shape if name in other.spans else 'none'})"
            for name, span in first.spans.items()
            if name not in other.spans or other.spans[name].shape != span.shape
        ] + [f"{name} (not in the first)" for name in other.spans if name not in first.spans]
        if wrong:
            raise ValueError(
                f"{other.name} and {first.name} hold different tensors, {first_of(wrong)}. Only models of one "
                "architecture and vocabulary can be merged, such as fine-tuned ones of one model."
            )
