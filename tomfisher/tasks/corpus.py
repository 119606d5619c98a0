"""General text: loading it, cutting it into parts that share nothing, and drawing token windows from it."""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tomfisher import plugins
from tomfisher.files import sha256_of_text
from tomfisher.near_miss import unknown
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample
from tomfisher.tasks.formats import text_of
from tomfisher.tasks.hub_rows import hub_rows
from tomfisher.tasks.records import JSON_SUFFIXES, read_records, read_text_file
from tomfisher.tokens import common_length, encode_parts
from tomfisher.unknown import warn_of_dropped_characters, warn_of_unknown_tokens

PYTHON_REFERENCE = "python-reference"
SEPARATOR = "\n\n"
MAX_ROWS = 20_000
MAX_CHARACTERS = 20_000_000
_HEADING = re.compile(r"^\s= [^=].* =\s*$")


@dataclass(frozen=True)
class Corpus:
    """Documents of general text.

    Args:
        name: where they come from.
        documents: texts, none of them empty.
        sha256: over the documents, `tomfisher.files.sha256_of_text(*documents)`.
    """

    name: str
    documents: list[str]
    sha256: str

    @cached_property
    def text(self) -> str:
        """All documents in order, with blank lines between them."""
        return SEPARATOR.join(self.documents)


def _python_reference() -> list[str]:
    from pydoc_data.topics import topics

    return [text.strip() for _, text in sorted(topics.items()) if text.strip()]


_SOURCES: dict[str, Callable[[], list[str]]] = {PYTHON_REFERENCE: _python_reference}


def register(name: str, documents: Callable[[], list[str]]) -> None:
    """Add a text.

    Args:
        name: what `load` is to know it by.
        documents: gives its documents, none of them empty.
    """
    _SOURCES[name] = documents


def load(source: str | os.PathLike[str], text_column: str = "text") -> Corpus:
    """Load general text.

    Args:
        source: "python-reference" (CPython's language reference, from `pydoc_data.topics`), "testbed", a `.json` or
            `.jsonl` file of strings or records, any other file (plain text, one document), or a `datasets` id
            "name:config:split" such as "wikitext:wikitext-2-raw-v1:test" (config may be empty), of which at most
            20,000 rows are read; rows of WikiText are joined to articles.
        text_column: field of a record or column of a data set that holds the text; in files also "txt" and "text".

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown source, a malformed or empty file, or a data set without that column.
        ImportError: the package `datasets` is missing.
        OSError: the data set cannot be had, for want of a network or because it does not exist.
    """
    label = os.fspath(source)
    plugins.load()
    if label in _SOURCES:
        return _corpus(label, _SOURCES[label]())
    path = Path(label)
    if path.suffix.lower() in JSON_SUFFIXES:
        return _corpus(path.name, [text_of(record, text_column) for record in read_records(path)])
    if path.exists() or isinstance(source, os.PathLike) or path.suffix.lower() in (".txt", ".md"):
        return _corpus(path.name, [read_text_file(path)])
    if label.count(":") == 2:
        return _corpus(label, _dataset(label, text_column))
    raise ValueError(
        f"{unknown('text', label, _SOURCES)} Or give the path of a text, .json or .jsonl file, or a datasets id "
        '"name:config:split".'
    )


def split(corpus: Corpus, fraction: float = 0.5, seed: int = 0) -> tuple[Corpus, Corpus]:
    """Cut a corpus into a Fisher part and a perplexity part that share no text.

    Documents are dealt at random until the first part has `fraction` of the characters; equal documents stay
    together. A single document is cut at the paragraph, line, sentence or word boundary next to that point.

    Args:
        corpus: what to cut.
        fraction: share of the characters for the first part, between 0 and 1.
        seed: which documents go where.

    Returns:
        `(fisher_part, perplexity_part)`, each in the order of the corpus and with at least one document.

    Raises:
        ValueError: `fraction` outside (0, 1), or a single document without a word boundary.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, both excluded, got {fraction}.")
    distinct = sorted(set(corpus.documents))
    if len(distinct) == 1:
        front, back = _cut(corpus.name, distinct[0], fraction)
        parts = [front], [back]
    else:
        first = _deal(distinct, fraction, seed)
        parts = (
            [text for text in corpus.documents if text in first],
            [text for text in corpus.documents if text not in first],
        )
    return _corpus(f"{corpus.name} (Fisher part)", parts[0]), _corpus(
        f"{corpus.name} (perplexity part)", parts[1]
    )


@plain_torch()
def windows(
    tokenizer: Any, corpus: Corpus, length: int = 128, n: int = 100, seed: int = 0, bos: str = "auto"
) -> list[Sample]:
    """Draw random windows of tokens that do not overlap, every token supervised.

    The documents are joined with blank lines, encoded, and cut, from a random offset on, into windows, of which `n`
    are drawn. Every window begins as a text does: with the begin tokens that the tokenizer puts before one, which
    count as part of `length`, so that a window holds that many tokens of text less. Of a text beyond 20 million
    characters only as many documents in a row as have that length are used, from a random one on.

    Args:
        tokenizer: a transformers tokenizer.
        corpus: the text.
        length: tokens per window, at least 2.
        n: number of windows.
        seed: which windows, and their order.
        bos: begin-of-sequence token in front of every window: "auto" (as the tokenizer does for a text), "yes" or
            "no".

    Returns:
        `n` samples of `length` tokens (fewer where a window of the text brings a begin token of its own).

    Raises:
        ValueError: `length` or `n` too small, too little text (it says how many windows there are), or `bos` is none.
    """
    if length < 2 or n < 1:
        raise ValueError(f"length must be at least 2 tokens and n at least 1, got length={length}, n={n}.")
    rng = random.Random(f"tomfisher.tasks.corpus:windows:{seed}")
    text = _text(corpus, rng)
    begin, ids, *_ = encode_parts(tokenizer, text, bos, with_offsets=False)
    size = length - len(begin)
    if size < 1:
        raise ValueError(
            f"length={length} leaves no room for text after {len(begin)} begin token(s). "
            f"Use at least {len(begin) + 1}, or bos='no'."
        )
    count, rest = divmod(len(ids), size)
    if count < n:
        raise ValueError(
            f"{corpus.name} has {len(ids)} tokens, which hold {count} windows of {length}, but n={n} were asked for. "
            "Use fewer (--n_control) or shorter windows (--control_length), or more text."
        )
    warn_of_unknown_tokens(tokenizer, [ids], corpus.name)
    warn_of_dropped_characters(tokenizer, [text], corpus.name)
    offset = rng.randint(0, rest)
    samples = []
    for window in rng.sample(range(count), n):
        start = offset + window * size
        piece = ids[start : start + size]
        brought = common_length(begin, piece) == len(begin)
        sample = torch.tensor(piece if brought else begin + piece, dtype=torch.int64)
        samples.append(Sample(sample, sample.clone(), f"{corpus.name}, tokens {start} to {start + size - 1}"))
    return samples


def _corpus(name: str, documents: list[str]) -> Corpus:
    return Corpus(name, documents, sha256_of_text(*documents))


def _dataset(label: str, column: str) -> list[str]:
    """Stream the rows of a `datasets` id."""
    rows = hub_rows(label, MAX_ROWS)
    if len(rows) > MAX_ROWS:
        rows.pop()
        warnings.warn(f"{label}: only the first {MAX_ROWS:,} rows are read.", UserWarning, stacklevel=4)
    if not rows or column not in rows[0]:
        given = ", ".join(rows[0]) if rows else "no rows at all"
        raise ValueError(
            f"The data set {label!r} has no column {column!r} (it has: {given}). Name another column."
        )
    texts = [row[column] for row in rows]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"The column {column!r} of {label!r} does not hold text. Name another column.")
    documents = [text.strip() for text in _articles(texts) if text.strip()]
    if not documents:
        raise ValueError(f"The column {column!r} of {label!r} holds only empty texts. Name another column.")
    return documents


def _articles(rows: list[str]) -> list[str]:
    """Join WikiText's rows (single lines, a heading " = Title = " per article) to articles; leave others alone."""
    if not any(_HEADING.match(row) for row in rows):
        return rows
    articles: list[list[str]] = []
    for row in rows:
        if _HEADING.match(row) or not articles:
            articles.append([])
        articles[-1].append(row)
    return ["".join(lines) for lines in articles]


def _cut(name: str, text: str, fraction: float) -> tuple[str, str]:
    """Cut at a paragraph, line or full-width sentence end near the point, else at the nearest word or sentence end.

    Near is within a tenth of the text.
    """
    target, near = round(len(text) * fraction), len(text) // 10
    ends = (
        (SEPARATOR, near),
        ("\n", near),
        ("。", near),
        (" ", len(text)),
        ("\n", len(text)),
        ("。", len(text)),
    )
    for boundary, reach in ends:
        kept = 0 if boundary.isspace() else len(boundary)  # of the first part
        around = (text.rfind(boundary, 0, target), text.find(boundary, target))
        places = [place + kept for place in around if place >= 0]
        for place in sorted(places, key=lambda p: abs(p - target)):
            front, back = text[:place].strip(), text[place:].strip()
            if front and back and abs(place - target) <= reach:
                return front, back
    raise ValueError(
        f"{name} is one document without a word boundary and cannot be cut in two. Give more text."
    )


def _deal(distinct: list[str], fraction: float, seed: int) -> set[str]:
    """Choose the documents of the first part: neither none nor all, as near to `fraction` as a prefix comes."""
    order = list(distinct)
    random.Random(f"tomfisher.tasks.corpus:split:{seed}").shuffle(order)
    target = fraction * sum(map(len, order))
    best, best_distance, size = 1, float("inf"), 0
    for count, text in enumerate(order[:-1], start=1):
        size += len(text)
        if abs(size - target) < best_distance:
            best, best_distance = count, abs(size - target)
    return set(order[:best])


def _text(corpus: Corpus, rng: random.Random) -> str:
    """The documents with blank lines between them; of many, a stretch."""
    documents = corpus.documents
    if sum(map(len, documents)) > MAX_CHARACTERS:
        start = rng.randrange(len(documents))
        chosen, size = [], 0
        for text in documents[start:] + documents[:start]:
            chosen.append(text)
            size += len(text)
            if size >= MAX_CHARACTERS:
                break
        documents = chosen
    return SEPARATOR.join(documents)
