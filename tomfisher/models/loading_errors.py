"""What a load may raise, of whatever class, as one short paragraph with a way out."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

import torch

LONGEST = 400
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UPGRADE = "pip install -U transformers tokenizers"

# what a message is about -> the way out; the first that fits
_WAYS_OUT = (
    (
        r"trust_remote_code",
        "It brings its own code: if you trust it, say --trust_remote_code (trust_remote_code=True).",
    ),
    (r"untagged enum", f"tokenizer.json is damaged or of a newer library: {UPGRADE}"),
    (r"sentencepiece|tiktoken|protobuf", "Install them with: pip install sentencepiece tiktoken protobuf"),
    (r"does not recognize this architecture", f"It is newer than this transformers, or mistyped: {UPGRADE}"),
    (
        r"\bgated\b|\b40[13] (Client|Unauthorized|Forbidden)",
        "Ask for access on its page, then: hf auth login",
    ),
    (
        r"SafetensorError|PytorchStreamReader|zip archive|[Uu]npickl|EOFError|out of input"
        r"|JSONDecodeError|valid JSON|UnicodeDecodeError|EOF while parsing|expected value at line",
        "The file is damaged or was not downloaded to its end. Fetch it again.",
    ),
    (r"not enough memory|can't allocate memory", "Use a smaller --dtype, or a machine with more memory."),
)

# where transformers begins to list everything it knows
_LISTS = r",? ?(?:Model type should be one of|or contain one of the following strings)"


@contextlib.contextmanager
def explained(part: str, source: str, otherwise: str, unreachable: str | None = None) -> Iterator[None]:
    """Turn what the block raises into one paragraph that names the model, the part of it and a way out.

    Args:
        part: what is being read, such as "the tokenizer".
        source: the model as the user named it.
        otherwise: the way out where the message points to no other.
        unreachable: what to say of a file that is not there because the hub does not answer.

    Raises:
        ModuleNotFoundError: a package is missing.
        ValueError: for everything else. `MemoryError`, running out of GPU memory and a full disk stay as they are.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) in NO_SPACE:
            raise
        if unreachable is not None and isinstance(error, OSError):
            raise ValueError(unreachable) from error
        kind = ModuleNotFoundError if isinstance(error, ImportError) else ValueError
        raise kind(
            f"Cannot load {part} of model {source!r}: {_sentence(error)} {way_out(error, otherwise)}"
        ) from error


def way_out(error: BaseException, otherwise: str) -> str:
    """What the user can do about an error."""
    if isinstance(error, ImportError) and (missing := _missing_package(error)):
        return f"Install it with: pip install {missing}"
    text = f"{type(error).__name__} {error}"
    return next((way for pattern, way in _WAYS_OUT if re.search(pattern, text)), otherwise)


def _sentence(error: BaseException) -> str:
    """The message in one line of bounded length, with the error's class where the message alone says little."""
    text = re.split(_LISTS, " ".join(str(error).split()))[0]
    if isinstance(error, RecursionError):
        text = "it is nested too deeply, or refers to itself."
    if len(text) > LONGEST:
        text = f"{text[:LONGEST].rsplit(' ', 1)[0]} ..."
    if not text:
        return f"{type(error).__name__}."
    if not isinstance(error, (ValueError, OSError, ImportError)) or isinstance(error, UnicodeError):
        text = f"{type(error).__name__}: {text}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _missing_package(error: ImportError) -> str | None:
    if error.name:
        return error.name.partition(".")[0]
    command = re.search(r"pip install (?:-\S+ +)*([A-Za-z0-9][A-Za-z0-9_.-]*)", str(error))
    return command[1] if command else None
