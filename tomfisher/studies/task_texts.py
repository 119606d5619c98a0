"""The task's texts where a study reads them beside a Fisher store that it was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tomfisher.results.folder import RunFolder
from tomfisher.studies.inputs import Inputs, stories_sha256

if TYPE_CHECKING:
    from tomfisher.models.load import LoadedModel
    from tomfisher.sample import Sample


def read_samples(
    inputs: Inputs, folder: RunFolder, say: Callable[[str], None], which: str, loaded: LoadedModel
) -> list[Sample]:
    """The samples "task" or "control" of a study, for what it reads of them besides the Fisher diagonal.

    With `task_store` the hash of the task's texts is not among the study's inputs until they are read, which is here:
    the run folder then records it.

    Args:
        inputs: the study's texts.
        folder: its run folder.
        say: told where the store was taken of other texts.
        which: "task" or "control".
        loaded: the model whose tokens they become.

    Raises:
        ValueError: the folder's earlier results were computed with other texts.
    """
    store = inputs.config.task_store
    if which == "task" and store is not None:
        digest = stories_sha256(inputs.task_stories)
        folder.pin(task_texts=digest)
        if _recorded(Path(store).expanduser()) not in (None, digest):
            say(
                f"the store {store} was taken of other texts than the task samples that are read now; give --task, "
                "--n_task and --seed as they were for the store, to have the same"
            )
    return inputs.samples(which, loaded)


def _recorded(store: Path) -> str | None:
    """The hash of the texts of which a store was taken; None where it is gone, or does not say."""
    from tomfisher.fisher import FisherDiagonal

    return FisherDiagonal.load(store, verify=False).metadata.get("texts_sha256") if store.is_dir() else None
