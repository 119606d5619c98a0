"""Whether a store is of a model whose files are at hand, found out without loading it."""

from __future__ import annotations

import os

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.models.files_of import ModelFiles
from tomfisher.models.loading_report import first_of


def check_of_files(store: FisherDiagonal, path: str | os.PathLike[str], files: ModelFiles) -> None:
    """Refuse a store that holds what the files do not, or that was taken on other weights, where it says of which.

    Args:
        store: opened from the disk.
        path: where it lies, for messages.
        files: of the model.

    Raises:
        ValueError: it does, with the first few names that differ.
    """
    wrong = [
        f"{name} {shape} (there {files.spans[name].shape if name in files.spans else 'none'})"
        for name, shape in store.shapes.items()
        if name not in files.spans or files.spans[name].shape != shape
    ]
    if wrong:
        raise ValueError(
            f"The store {path} and the files of {files.name} hold different tensors, {first_of(wrong)}. Give the store "
            "of this very model. What transformers makes of several stored weights has no F by their names."
        )
    model = store.metadata.get("model", {})
    said = (
        None if model.get("dtype") == "fp16" else model.get("weights_sha256")
    )  # fp16 has rounded them before
    if said is not None and files.fingerprint() not in (None, said):
        raise ValueError(
            f"The store {path} was taken on other weights than those of {files.name}. Give the store of this very "
            "model; of several, in the order of the models."
        )
