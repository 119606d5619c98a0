"""Whether the Hugging Face hub answers, found out in seconds, and what to say when it does not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 3.0  # seconds until a silent hub counts as unreachable


def why_unreachable() -> str | None:
    """Why the hub cannot be used, in a few words; None when it answers. One request, never repeated.

    `huggingface_hub` itself tries every file six times with growing pauses, which takes minutes without a network.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []
    asking = threading.Thread(target=lambda: answer.append(_ask(constants.ENDPOINT)), daemon=True)
    asking.start()  # in a thread: looking up a name has a timeout of its own, longer than ours
    asking.join(PATIENCE)
    reason = answer[0] if answer else f"no answer in {PATIENCE:g} s"
    return None if reason is None else f"{constants.ENDPOINT}: {reason}"


@contextlib.contextmanager
def cache_only() -> Iterator[None]:
    """Keep everything that uses the hub to its cache; not every part of transformers passes `local_files_only` on."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def commit_of(location: str, revision: str | None) -> str | None:
    """The commit whose files the cache holds of a repository at a revision; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(location).is_dir():
        return None
    cached = try_to_load_from_cache(location, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def unreachable_sentence(source: str, why: str) -> str:
    """What to say of a model that is neither a folder nor wholly in the hub's cache, when the hub does not answer."""
    from huggingface_hub import constants

    return (
        f"Cannot load model {source!r}: there is no such folder, the Hugging Face hub cannot be reached ({why}), and "
        f"the model is not wholly in its cache ({constants.HF_HUB_CACHE})."
    )


def _ask(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        response: Any = get_session().head(endpoint, timeout=PATIENCE)
    except Exception as error:  # whatever the HTTP library in use raises is the answer
        return " ".join(str(error).split()) or type(error).__name__
    if response.status_code == 429 or response.status_code >= 500:
        return f"it answers {response.status_code}"
    return None
