"""What a model's name leads to: a folder, or an id on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tomfisher.models.adapters import SETTINGS
from tomfisher.models.builtin import builtin, near_miss
from tomfisher.models.gguf import dense_folder
from tomfisher.near_miss import unknown


def otherwise() -> str:
    """What to give instead of a name that leads nowhere."""
    return f"Give a hub id, a local folder, a .gguf file, or one of: {', '.join(builtin())}."


def locate(source: str) -> str:
    """The folder behind a built-in name, a path or a GGUF file; anything else is taken as a hub id.

    Raises:
        ValueError: a file or folder of no known kind, a path to nothing, or nearly a built-in name.
        ModuleNotFoundError: a built-in model or a GGUF file needs a package that is missing.
    """
    if source in builtin():
        return str(builtin()[source].folder())
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(dense_folder(path))
    names = ", ".join(builtin())
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", SETTINGS)):
            raise ValueError(
                f"Model folder {source!r} has no config.json. Give a folder that save_pretrained wrote."
            )
        return str(path)
    if path.exists():
        raise ValueError(
            f"Model {source!r} is a file, but no .gguf. Give its folder, a hub id, or one of: {names}."
        )
    if near_miss(source):
        raise ValueError(unknown("model", source, builtin()))
    if source.startswith(("/", "./", "../", "~")) or path.suffix == ".gguf":
        raise ValueError(f"Model {source!r}: there is no such file or folder. Built-in names: {names}.")
    return source
