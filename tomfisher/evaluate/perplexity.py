"""Perplexity of a text under a model, in windows: per token, per word and in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.together import agree
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.batches import pad
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at, set_rows
from tomfisher.runtime.gate import check_ids, check_model, check_targets, why_not_finite
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.positions import check_length, position_limit
from tomfisher.runtime.rules import Rules, check_rules, weights_kept
from tomfisher.runtime.tensor_parallel import team_for
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.text_files import check_text
from tomfisher.tokens import encode_parts
from tomfisher.unknown import warn_of_dropped_characters, warn_of_unknown_tokens

BATCH_SIZE = 4
# Positions whose float32 log-softmax is held at once.
CHUNK = 512


@dataclass(frozen=True)
class Perplexity:
    """How badly a model predicts a text.

    Args:
        token: exp(nll / num_tokens).
        word: exp(nll / num_words); None where that is beyond a float, as for a long text without white space.
        bits_per_byte: nll / (ln 2 · number of UTF-8 bytes of the scored part); a character of several tokens that
            `max_tokens` cuts counts whole.
        num_tokens: tokens scored.
        num_words: words of the original text (split at white space) in the scored part.
        nll: negative log-likelihood of all scored tokens, in nats.
        rules: how the model was run and why (`tomfisher.runtime.rules`), or None where it is not known.
    """

    token: float
    word: float | None
    bits_per_byte: float
    num_tokens: int
    num_words: int
    nll: float
    rules: dict[str, Any] | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All figures by name, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Document:
    """Ids of one text, cut to what is scored, what every window of it begins with, and how much of the text that is."""

    begin: list[int]
    ids: list[int]
    words: int
    size: int

    @property
    def first(self) -> int:
        """The position whose next token is the first that is scored: -1, before the text, where begin tokens stand."""
        return -1 if self.begin else 0

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - 1 - self.first


@dataclass(frozen=True)
class _Window:
    """Inputs `begin + ids[start:end]` of a document; the tokens after positions `first ... end - 1` are scored."""

    document: int
    start: int
    first: int
    end: int
    begin: int

    @property
    def length(self) -> int:
        """Number of inputs."""
        return self.begin + self.end - self.start

    @property
    def skipped(self) -> int:
        """Inputs in front whose next token is not scored."""
        return self.begin + self.first - self.start


class PerplexityEvaluator:
    """A text encoded and cut into windows once, to be scored on many models or many states of one model.

    The first window scores all its tokens; each further one starts `stride` tokens later and scores only the
    tokens that no window before it has scored, the others being context. With `stride == window` nothing is
    computed twice, and the first token of a window has one token of context.

    Every window begins as a text does: with the begin tokens that the tokenizer puts before one. They are context,
    never scored; they count as part of `window`, so that a window holds that many tokens of text less, and a stride
    as long as the window is shorter by as many. Behind them the first token of the text is scored too. Each document
    of a list is a text of its own; no window crosses its end, and documents with nothing to score (fewer than two
    tokens) are passed over. Sums are float64, log-softmax float32.

    Args:
        tokenizer: a transformers tokenizer.
        text: a string, a sequence of strings, or an object with `documents`.
        window: largest number of input tokens, at least 1 and at most the model's positions.
        stride: tokens between two windows' starts, 1 ... window; None: `window`, no overlap.
        max_tokens: stop after this many scored tokens; words and bytes count only the part scored.
        batch_size: windows per forward; the logits of one forward hold batch_size · stride · vocabulary numbers.
        bos: begin-of-sequence token in front of every window: "auto" (as the tokenizer does for a text), "yes" or
            "no".

    Raises:
        ValueError: a setting out of range, or a text with nothing to score.
    """

    @plain_torch()
    def __init__(
        self,
        tokenizer: Any,
        text: Any,
        window: int = 512,
        stride: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = BATCH_SIZE,
        bos: str = "auto",
    ) -> None:
        stride = window if stride is None else stride
        _check_settings(window, stride, max_tokens, batch_size)
        self.batch_size = batch_size
        documents = self._documents = _encode(tokenizer, text, max_tokens, bos)
        windows = [w for i, doc in enumerate(documents) for w in _windows(i, doc, window, stride)]
        self._windows = sorted(windows, key=lambda w: (-w.length, w.end - w.first, w.document, w.start))

    def check_fit(self, model: Any) -> None:
        """Refuse a model that cannot read the text: its vocabulary, its positions, the state of its weights.

        Raises:
            ValueError: naming the document, or how long a window may be.
        """
        check_model(model)
        check_ids(model, (document.begin + document.ids for document in self._documents), "Document")
        check_targets(model, (document.ids[1 + document.first :] for document in self._documents), "Document")
        longest, way_out = self._windows[0].length, f"Use window={position_limit(model)} or less."
        check_length(model, longest, "A window", way_out)

    @property
    def sequences(self) -> list[list[int]]:
        """Token ids of every window, the longest first."""
        return [_inputs(self._documents, w) for w in self._windows]

    @plain_torch()
    def ask(self, model: Any) -> Rules:
        """What the model says to the rules that scoring it rests on.

        Raises:
            ValueError: as for `score`.
        """
        self.check_fit(model)
        return check_rules(model, self.sequences, self.batch_size)

    @plain_torch()
    def score(self, model: Any, progress: bool = True, rules: Rules | None = None) -> Perplexity:
        """Score the text on a model as it is now: every token except its first exactly once.

        In an initialised process group of `torch.distributed` every rank makes this call with the same arguments, runs
        some of the forwards that one process would run, and gets the result of all: the very numbers of one process.

        Args:
            model: a causal language model of transformers.
            progress: show a bar on a terminal.
            rules: what `ask` gave for this model, with other values in its weights maybe; None asks it.

        Raises:
            ValueError: a likelihood that is not finite, a text that the model cannot read, or a model that breaks a
                rule that a likelihood rests on (`tomfisher.runtime.rules`).
            RankError: another rank has ended.
        """
        team = team_for(model)
        with team.call("perplexity"):
            return self._score(model, progress, rules, team)

    def _score(self, model: Any, progress: bool, rules: Rules | None, team: ranks.Team) -> Perplexity:
        agree(team, model, "the text that is measured", self.sequences, self.batch_size)
        if rules is None:
            rules = self.ask(model)
        else:
            set_rows(model, rules.rows)
        plan = rules.plan([w.length for w in self._windows], rows=self.batch_size)
        batches = [[self._windows[i] for i in chosen] for chosen in plan]
        own = team.share([sum(w.length for w in batch) for batch in batches])
        count, shown = sum(_scored(batches[i]) for i in own), progress and team.is_first
        bar = progress_bar(total=count, desc="perplexity", unit="token", enabled=shown)
        device, sums = device_of(model), {}
        with weights_kept(model), measuring(model), bar:
            for i in own:
                sums[i] = _batch_nll(model, self._documents, batches[i], device)
                bar.update(_scored(batches[i]))
        total = sum(team.merged("the sums", len(batches), sums))
        tokens = sum(doc.tokens for doc in self._documents)
        if not math.isfinite(total):
            raise ValueError(
                f"The negative log-likelihood of the text is {total}; it must be finite. {why_not_finite(model)}"
            )
        return self._measured(total, tokens, rules)

    def _measured(self, nll: float, tokens: int, rules: Rules) -> Perplexity:
        words, size = sum(doc.words for doc in self._documents), sum(doc.size for doc in self._documents)
        return Perplexity(
            token=_exp(nll / tokens),
            word=None if math.isinf(word := _exp(nll / words)) else word,
            bits_per_byte=nll / math.log(2) / size,
            num_tokens=tokens,
            num_words=words,
            nll=nll,
            rules=rules.to_dict(),
        )


def _scored(batch: Sequence[_Window]) -> int:
    return sum(w.end - w.first for w in batch)


def _inputs(documents: Sequence[_Document], window: _Window) -> list[int]:
    document = documents[window.document]
    return document.begin + document.ids[window.start : window.end]


def _batch_nll(
    model: Any, documents: Sequence[_Document], batch: Sequence[_Window], device: torch.device
) -> float:
    """Negative log-likelihood in nats of the tokens that these windows score."""
    inputs = pad([_inputs(documents, w) for w in batch], device)
    begin = min(w.skipped for w in batch)
    keep = torch.arange(begin, inputs.shape[1], device=device)
    logits = logits_at(model, inputs, keep)
    return sum(
        _nll(
            logits[row, w.skipped - begin : w.length - begin],
            torch.tensor(documents[w.document].ids[w.first + 1 : w.end + 1], device=logits.device),
        )
        for row, w in enumerate(batch)
    )


def _nll(logits: Tensor, targets: Tensor) -> float:
    """Summed cross-entropy of `logits` `[T, vocab]` at `targets` `[T]`, a chunk of positions at a time."""
    losses = (
        torch.nn.functional.cross_entropy(
            logits[i : i + CHUNK].float(), targets[i : i + CHUNK], reduction="none"
        )
        for i in range(0, len(targets), CHUNK)
    )
    return sum(loss.double().sum().item() for loss in losses)


def _windows(number: int, document: _Document, window: int, stride: int) -> Iterator[_Window]:
    """Windows over the input positions 0 ... n - 2 of a document of n tokens."""
    begin, positions = len(document.begin), len(document.ids) - 1
    room = window - begin
    if room < 1:
        raise ValueError(
            f"window is {window}, which leaves no room for text after {begin} begin token(s). "
            f"Use at least {begin + 1}, or bos='no'."
        )
    start, done = 0, document.first
    while done < positions:
        end = min(start + room, positions)
        yield _Window(number, start, done, end, begin)
        start, done = start + min(stride, room), end


def _encode(tokenizer: Any, text: Any, max_tokens: int | None, bos: str) -> list[_Document]:
    """The documents with something to score, up to `max_tokens` scored tokens in all."""
    texts = getattr(text, "documents", text)
    left = math.inf if max_tokens is None else max_tokens
    documents, read = [], []
    for number, entry in enumerate([texts] if isinstance(texts, str) else texts):
        check_text(entry, f"Document {number}")
        if left <= 0:
            break
        if entry and (document := _document(tokenizer, entry, left, bos)) is not None:
            documents.append(document)
            read.append(entry)
            left -= document.tokens
    if not sum(document.words for document in documents):
        raise ValueError(
            "The text has nothing to score: it is empty, or no document has two tokens and a word after the first. "
            "Give a longer text."
        )
    warn_of_unknown_tokens(tokenizer, [document.ids for document in documents], "the text")
    warn_of_dropped_characters(tokenizer, read, "the text")
    return documents


def _document(tokenizer: Any, text: str, limit: float, bos: str) -> _Document | None:
    """Encode one text and cut it to `limit` scored tokens; None when there is nothing to score."""
    begin, ids, offsets, start = encode_parts(tokenizer, text, bos)
    unscored = 0 if begin else 1
    if len(ids) <= unscored:
        return None
    whole = len(ids) - unscored <= limit
    ids = ids if whole else ids[: int(limit) + unscored]
    if offsets is not None:
        first = start if begin else offsets[1][0]
        scored = text[first : None if whole else offsets[len(ids) - 1][1]]
    else:
        scored = tokenizer.decode(ids[unscored:], clean_up_tokenization_spaces=False)
    return _Document(begin, ids, len(scored.split()), len(scored.encode("utf-8", errors="surrogatepass")))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _check_settings(window: int, stride: int, max_tokens: int | None, batch_size: int) -> None:
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 token.")
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride is {stride}; it must lie in 1 ... window ({window}), or tokens would be skipped."
        )
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1, or None for the whole text.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
