"""Prompts for an analysis: texts of a file, and token ids of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.runtime.positions import position_limit

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.models.load import LoadedModel


def prompt_texts(source: str, limit: int) -> list[str]:
    """The first texts of a source.

    Args:
        source: a text file with one prompt per line, JSON/JSONL, or the name of a built-in corpus.
        limit: how many at most.
    """
    from tomfisher.tasks import corpus
    from tomfisher.tasks.records import JSON_SUFFIXES, read_text_file

    path = Path(source)
    if path.is_file() and path.suffix.lower() not in JSON_SUFFIXES:
        lines = [line for line in read_text_file(path).split("\n") if line.strip()]
        return lines[:limit]
    return corpus.load(source).documents[:limit]


def prompt_ids(
    loaded: LoadedModel, texts: Sequence[str], max_length: int | None = None, **wording: Any
) -> list[Tensor]:
    """Token ids of texts, cut to `max_length`, or to what the model has positions for.

    Args:
        loaded: the model and its tokenizer.
        texts: what is read.
        max_length: tokens; None is the model's context.
        wording: how prompts are put, as `tomfisher.encode` takes it.
    """
    from tomfisher.tasks.encode import encode

    length = max_length or position_limit(loaded.model)
    samples = encode(loaded.tokenizer, texts, supervise="all", max_length=length, **wording)
    return [sample.input_ids for sample in samples]
