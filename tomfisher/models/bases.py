"""Where an adapter lies, and where the model lies that it belongs to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tomfisher.models.adapters import SETTINGS, Adapter
from tomfisher.models.locate import locate
from tomfisher.models.pretrained import Place, place_of

# what of a repository an adapter and its tokenizer are, checkpoints of the training in its subfolders left out
_FILES = ("adapter_*", "*token*", "*.model", "vocab*", "merges.txt", "*.jinja")
_NOT = ("*/*",)


def adapter_folder(place: Place) -> Path | None:
    """The folder that may hold an adapter: the place itself, or what its hub repository has of one; else None."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    folder = Path(place.location)
    if folder.is_dir():
        return folder
    revision, local = place.options["revision"], bool(place.options.get("local_files_only"))
    with place.explained("the adapter"):
        try:
            hf_hub_download(place.location, SETTINGS, revision=revision, local_files_only=local)
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError):
            # there is none; whatever else is wrong with name or revision, reading the config says
            return None
        snapshot = snapshot_download(
            place.location,
            revision=revision,
            local_files_only=local,
            allow_patterns=list(_FILES),
            ignore_patterns=list(_NOT),
        )
    return Path(snapshot)


@contextlib.contextmanager
def base_of(adapter: Adapter, place: Place) -> Iterator[Place]:
    """Where the model lies that an adapter belongs to, without the adapter.

    Raises:
        ValueError: it is not there, cannot be loaded, or is an adapter again.
    """
    if adapter.base is None:
        with tempfile.TemporaryDirectory() as plain:
            for path in adapter.folder.iterdir():
                if not path.name.startswith("adapter_"):
                    (Path(plain) / path.name).symlink_to(path.resolve())
            yield place._replace(location=plain)
        return
    trust = bool(place.options["trust_remote_code"])
    try:
        base = place_of(adapter.base, locate(adapter.base), place.otherwise, trust, adapter.revision)
        if (found := adapter_folder(base)) is not None and (found / SETTINGS).is_file():
            raise ValueError(f"Model {adapter.base!r} is an adapter itself: merge it into its model first.")
        yield base
    except ValueError as error:
        raise ValueError(
            f"Model {place.source!r} is an adapter of {adapter.base!r}, which cannot be loaded. {error} If it lies "
            f'elsewhere, put its folder into {SETTINGS} as "base_model_name_or_path".'
        ) from error
