"""Rows of a `datasets` id."""

from __future__ import annotations

import contextlib
import importlib.util
from itertools import islice
from typing import Any

from tomfisher.models import hub


def hub_rows(label: str, limit: int) -> list[dict[str, Any]]:
    """Stream the first rows of a `datasets` id.

    Args:
        label: "name:config:split"; config may be empty, and name may be a folder.
        limit: how many rows at most.

    Returns:
        At most `limit + 1` rows: one more than the limit says that there are more.

    Raises:
        ImportError: the package `datasets` is missing.
        OSError: the data set cannot be had, for want of a network or because it does not exist.
        ValueError: name or split is empty.
    """
    name, config, part = label.split(":")
    if not name or not part:
        raise ValueError(
            f'{label!r} is no datasets id "name:config:split": name and split must not be empty.'
        )
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(f'{label!r} needs the package "datasets". Run: pip install "tomfisher[datasets]"')
    import datasets

    why = hub.why_unreachable()  # one question instead of a screen of retries
    try:
        with contextlib.nullcontext() if why is None else hub.cache_only():
            stream = datasets.load_dataset(name, config or None, split=part, streaming=True)
            return list(islice(iter(stream), limit + 1))
    except Exception as error:
        reached = "" if why is None else f" (the Hugging Face hub cannot be reached: {why})"
        raise OSError(
            f"The data set {label!r} could not be loaded: {type(error).__name__}: {error}{reached}. Check its name, "
            "config and split and the network, or use a local file."
        ) from error
