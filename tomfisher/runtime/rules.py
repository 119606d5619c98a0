"""The rules that every number rests on, asked of the model at hand with the texts of this run.

1. rows: T tokens give T rows of logits (or T after a fixed number of others, which are then passed over).
2. causal: changing a token leaves the rows before it as they were.
3. batches: a row does not depend on the rows beside it, nor on the padding after it.
4. unchanged: a forward leaves the weights as they are, bit for bit; and the same call gives the same numbers again,
   whatever ran in between.

Where rule 3 does not hold there is a way that is still right: batches of equal lengths, or single rows. Where another
one does not hold, a likelihood has no meaning, and the model is refused by the name of the rule.

Two logits count as equal when they differ by no more than rounding. How much that is, the model itself is asked: a
relative change of one rounding unit in its token embeddings moves its log-probabilities by about as much as another
order of summation does (measured: batches of other shapes move them by 0.1 to 2.0 times that, in float32, float16 and
bfloat16, on 17 architectures).
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from tomfisher.runtime.batches import pad, plan_batches
from tomfisher.runtime.device import device_of, embedding_of
from tomfisher.runtime.forward import Rows, accepts, forward, logits_at, logprobs, rows_of, set_rows
from tomfisher.runtime.freed import is_streamed
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.weights import WeightBits

BATCHES = PADDED, EQUAL, SINGLE = ("padded batches", "batches of equal lengths", "single rows")
SLACK = 4.0  # times rounding
# Cuts for the questions that no length decides, positions compared, and tokens of the batch that is tried.
SHORT, POSITIONS, BATCH_TOKENS = 24, 16, 512
# Of the longest text all rows are compared up to so many logits; else those so near to a changed token, and a sample.
WHOLE, NEAR = 1 << 22, 8


@dataclass(frozen=True, eq=False)
class Rules:
    """What a model was found to do, and the way of running it that follows.

    Args:
        batches: `PADDED`, `EQUAL` or `SINGLE`: rows that may stand in one forward.
        rows: where the logits of a token stand.
        repeats: whether the same call gave the same bits (False: the same numbers up to rounding).
        rounding: what rounding changes in a log-probability, in nats, as measured on this model.
        differences: the largest difference found for each rule, in nats.
        lengths: tokens of the shortest and the longest text that were tried.
        reason: why batches are not padded, or "".
    """

    batches: str = PADDED
    rows: Rows = field(default_factory=Rows)
    repeats: bool = True
    rounding: float = 0.0
    differences: Mapping[str, float] = field(default_factory=dict)
    lengths: tuple[int, int] = (0, 0)
    reason: str = ""

    @property
    def padded(self) -> bool:
        """Whether rows of any length may stand in one forward."""
        return self.batches == PADDED

    @property
    def tolerance(self) -> float:
        """Differences of a log-probability up to this one, in nats, are rounding."""
        return SLACK * self.rounding

    def plan(
        self, lengths: Sequence[int], tokens: int | None = None, rows: int | None = None
    ) -> list[list[int]]:
        """The batches that these rules allow.

        Args:
            lengths: tokens of each text.
            tokens: upper bound of a batch's tokens, padding included; a longer text is a batch of its own.
            rows: upper bound of its rows.

        Returns:
            Indices into `lengths`, the longest texts first.
        """
        return plan_batches(lengths, tokens, 1 if self.batches == SINGLE else rows, self.padded)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, fit for JSON."""
        return {
            **asdict(self),
            "differences": {name: float(f"{value:.3g}") for name, value in self.differences.items()},
            "rounding": float(f"{self.rounding:.3g}"),
            "lengths": list(self.lengths),
        }


def check_rules(
    model: Any,
    sequences: Iterable[Sequence[int] | Tensor],
    rows: int = 2,
    tokens: int | None = None,
    thorough: bool = False,
) -> Rules:
    """Ask a model whether it keeps the rules, with the shortest and the longest text of a run.

    It costs about four forwards of the longest text and two batches: of the run's size, on the CPU of at most
    `BATCH_TOKENS` tokens each (or two rows). The model is asked anew by every call, except within `remembered`. The
    answer says nothing of other texts: which keys a sparse attention keeps depends on the tokens.

    Args:
        model: a causal language model of transformers, on any device, in any dtype.
        sequences: token ids of every text of the run.
        rows: as many as a forward of the run may hold.
        tokens: as many as a forward of the run may hold, padding included: rows follow from their length.
        thorough: ask about batches of equal lengths also where padded ones are found to be right.

    Returns:
        `Rules`.

    Raises:
        ValueError: a rule is broken for which there is no other way; the rule and the way out are named.
    """
    texts = _by_length(sequences)
    answers = _ANSWERS.get()
    if answers is None or thorough:
        return _asked(model, texts, rows, tokens, thorough)
    known = answers.setdefault(model, _Known())
    state, asked = _fingerprint(model), frozenset(map(tuple, texts))
    run = known.runs.get(state)
    if run and asked <= run.texts and (tokens or rows * len(texts[-1])) <= run.tokens:
        rules = run.rules
    else:
        key = state, rows, tokens, hash(asked)
        rules = known.answers.get(key) or _asked(model, texts, rows, tokens)
        known.answers[key] = rules
    set_rows(model, rules.rows)
    return rules


def check_run(model: Any, sequences: Iterable[Sequence[int] | Tensor], tokens: int) -> None:
    """Ask a model about all texts of a run at once: within `remembered`, `check_rules` then knows any of them.

    Args:
        model: as in `check_rules`.
        sequences: token ids of every text of the run.
        tokens: as many as any forward of the run may hold; the next run on the same model takes the place of this one.

    Raises:
        ValueError: as `check_rules`.
    """
    texts = _by_length(sequences)
    rules = check_rules(model, texts, tokens=tokens)
    if (answers := _ANSWERS.get()) is not None:
        answers[model].runs[_fingerprint(model)] = _Run(frozenset(map(tuple, texts)), tokens, rules)


def _by_length(sequences: Iterable[Sequence[int] | Tensor]) -> list[list[int]]:
    texts = (ids.tolist() if isinstance(ids, Tensor) else list(ids) for ids in sequences)
    if not (by_length := sorted((text for text in texts if text), key=len)):
        raise ValueError("There is no text to ask the model with. Give at least one sequence of token ids.")
    return by_length


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Within the block, or the function that it decorates, a model is asked once about the same texts.

    It belongs around one run in which nothing changes but masked weights and what `tomfisher` itself puts into the
    model: a sweep over masks, an ablation. What was found is forgotten at its end; a block within another shares.
    """
    if _ANSWERS.get() is not None:
        yield
        return
    token = _ANSWERS.set(weakref.WeakKeyDictionary())
    try:
        yield
    finally:
        _ANSWERS.reset(token)


@contextlib.contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Refuse a model that wrote to its own weights during the block; it costs two readings of them.

    Raises:
        ValueError: some bits are not those from before; the tensor is named.
    """
    bits = WeightBits(model)
    try:
        yield
    except ValueError:
        _check_unchanged(model, bits)  # where it is so, it is the cause of all else
        raise
    _check_unchanged(model, bits)


def _asked(
    model: Any, texts: list[list[int]], rows: int, tokens: int | None, thorough: bool = False
) -> Rules:
    with weights_kept(model), measuring(model):
        return _Questions(model, texts, thorough).ask(rows, tokens)


def _check_unchanged(model: Any, bits: WeightBits) -> None:
    if changed := bits.changed(model):
        more = f" ({len(changed)} such tensors)" if len(changed) > 1 else ""
        raise ValueError(
            f'{type(model).__name__} breaks the rule "a forward leaves the weights as they are": running it changed '
            f"{changed[0]}{more}, so that every number would depend on how much ran before it. Load the model again, "
            "and let it keep no state in its weights."
        )


_NEW = itertools.count()
_Key = tuple[int, int, int | None, int]  # fingerprint of the model, rows, tokens, hash of the texts


class _Run(NamedTuple):
    """The texts of a run, the tokens that a forward of it may hold, and what was found."""

    texts: frozenset[tuple[int, ...]]
    tokens: int
    rules: Rules


@dataclass(frozen=True)
class _Known:
    """What one model did within the present block of `remembered`, for some texts, and for a run by fingerprint."""

    answers: dict[_Key, Rules] = field(default_factory=dict)
    runs: dict[int, _Run] = field(default_factory=dict)


_ANSWERS: ContextVar[weakref.WeakKeyDictionary[nn.Module, _Known] | None] = ContextVar(
    "answers", default=None
)


def _fingerprint(model: Any) -> int:
    """A hash of what is put into a model and taken out again in the course of one run."""
    everywhere = (*registry._global_forward_hooks, *registry._global_forward_pre_hooks)
    parts: list[Any] = [
        everywhere,
        str(getattr(model, "config", None)),
        str(getattr(model, "active_adapter", None)),
    ]
    for module in model.modules():
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        parts.append((id(module), type(module), hooks, _replaced_forward(module)))
        parts += [(p.dtype, p.device) for p in module._parameters.values() if p is not None]
    return hash(tuple(parts))


def _replaced_forward(module: nn.Module) -> object:
    """None for a forward of the module's class; something new each time for one that may be anything."""
    forward = module.__dict__.get("forward")
    place = str(getattr(forward, "__module__", ""))
    if forward is None or (place.startswith("tomfisher.") and place != "tomfisher.runtime.layerwise"):
        return None
    return "accelerate" if hasattr(module, "_hf_hook") else next(_NEW)


def way_of(rules: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of a record of rules what says how a model was run, without the numbers that were measured."""
    if rules is None:
        return None
    return {key: rules[key] for key in ("strategy", "batches", "rows", "repeats", "cached") if key in rules}


class _Questions:
    """The forwards that ask, and what they found.

    Questions that no length decides are asked on `short`, a cut of the longest text. `middle` is the second longest
    (or that cut): what a model keeps of the longest text shows there, if anywhere.
    """

    def __init__(self, model: Any, texts: list[list[int]], thorough: bool = False) -> None:
        self.model, self.texts, self.device = model, texts, device_of(model)
        self.thorough = thorough
        self.shortest, self.longest = texts[0], texts[-1]
        self.short = self.longest[:SHORT]
        self.middle = next((t for t in reversed(texts) if len(t) < len(self.longest)), self.short)
        self.pool = sorted({*self.shortest, *self.middle, *self.longest})
        self.differences: dict[str, float] = {}
        self.alone: dict[tuple[int, ...], Tensor] = {}

    def ask(self, rows: int, tokens: int | None) -> Rules:
        """All questions, in the order in which the answers need each other."""
        whole = self._whole(self.short)
        self.offset = max(0, len(whole) - len(self.short))
        if len(whole) < len(self.short):
            self._refuse("rows", f"{len(self.short)} tokens give {len(whole)} rows of logits", _WAY["rows"])
        repeats = self._again("repeats", whole, self._whole(self.short), _WAY["random"])
        self.rounding = self._rounding(whole)
        self._causal_in_short(whole)
        set_rows(self.model, Rows(self.offset, self._kept(whole)))
        middle = self._alone(self.middle)
        repeats &= self._longest(whole.shape[-1])
        batches, reason = self._batches(rows, tokens)
        repeats &= self._again("keeps nothing", middle, self._at(self.middle)[0], _WAY["state"])
        lengths = len(self.shortest), len(self.longest)
        return Rules(batches, rows_of(self.model), repeats, self.rounding, self.differences, lengths, reason)

    def _refuse(self, rule: str, fault: str, way: str) -> None:
        raise ValueError(f'{type(self.model).__name__} breaks the rule "{rule}": {fault}. {way}')

    def _whole(self, ids: list[int]) -> Tensor:
        """Log-probabilities `[R, V]` of every row that one text gives."""
        output = forward(self.model, torch.tensor([ids], device=self.device))
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[0] != 1:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            self._refuse(
                "rows", f"one text of {len(ids)} tokens gave {shape}, not logits [1, T, V]", _WAY["rows"]
            )
        assert isinstance(logits, Tensor)
        return logprobs(logits)[0]

    def _at(self, *texts: list[int], where: list[int] | None = None, rows: Sequence[int] = (0,)) -> Tensor:
        """Log-probabilities `[R, K, V]` of some rows of a forward, at some positions."""
        keep = torch.tensor(where or _positions(len(texts[0])), device=self.device)
        logits = logits_at(self.model, pad(texts, self.device), keep)
        return logprobs(logits[list(rows)])

    def _alone(self, text: list[int]) -> Tensor:
        """Log-probabilities `[K, V]` of a text in a forward of its own, at its `_positions`."""
        key = tuple(text)
        if key not in self.alone:
            self.alone[key] = self._at(text)[0]
        return self.alone[key]

    def _changed(self, ids: list[int], start: int) -> list[int]:
        """The text with every token from `start` on replaced by another one of this run."""
        pool = self.pool if len(self.pool) > 1 else [self.pool[0], max(0, self.pool[0] - 1) or 1]
        following = dict(zip(pool, [*pool[1:], pool[0]], strict=True))
        return ids[:start] + [following[token] for token in ids[start:]]

    def _note(self, rule: str, nats: float) -> float:
        self.differences[rule] = max(nats, self.differences.get(rule, 0.0))
        return nats

    def _again(self, rule: str, before: Tensor, after: Tensor, way: str) -> bool:
        """Whether the same call gave the same bits; refused where it is not even rounding."""
        nats = self._note(rule, difference(before, after))
        exact = self.device.type == "cpu"
        unit = torch.finfo(torch.float32).eps if exact else _unit(self.model)
        if nats > SLACK * unit * _size(before):
            fault = f"the same call gave log-probabilities that differ by {nats:.2g} nats"
            self._refuse("the same call gives the same numbers", fault, way)
        return nats == 0

    def _rounding(self, whole: Tensor) -> float:
        """What one rounding unit in the embeddings does to a log-probability, at least that of float32."""
        generator = torch.Generator().manual_seed(0)
        unit, seen = _unit(self.model), False

        def disturb(_: Any, __: Any, output: Any) -> Any:
            nonlocal seen
            if not isinstance(output, Tensor):
                return output
            seen = True
            sign = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1)
            return output * (1 + unit * sign.to(output))

        embedding = embedding_of(self.model)
        if embedding is None:
            return unit * _size(whole)
        handle = embedding.register_forward_hook(disturb)
        try:
            moved = difference(whole, self._whole(self.short))
        finally:
            handle.remove()
        return max(moved, (torch.finfo(torch.float32).eps if seen else unit) * _size(whole))

    def _rounds(self, nats: float) -> bool:
        return nats <= SLACK * self.rounding

    def _causal_in_short(self, whole: Tensor) -> None:
        """Changing the tokens from j on changes the rows from j on, and none before."""
        length = len(self.short)
        for start in sorted({1, length - 1}) if length > 1 else ():
            changed = self._whole(self._changed(self.short, start))
            border = self.offset + start
            before = difference(whole[:border], changed[:border])
            own = difference(whole[border], changed[border])
            if self.offset and not (self._rounds(before) and not self._rounds(own)):
                fault = (
                    f"{length} tokens give {len(whole)} rows of logits, and the last {length} are not theirs"
                )
                self._refuse("rows", fault, _WAY["rows"])
            self._check_causal(before, start)
            self._check_own(before, own, difference(whole[border + 1 :], changed[border + 1 :]), start)
        if self.offset and length == 1:
            self._refuse("rows", f"1 token gives {len(whole)} rows of logits", _WAY["rows"])

    def _longest(self, vocabulary: int) -> bool:
        """The questions about one text again, on the longest; gives whether the same call gave the same bits."""
        length = len(self.longest)
        cuts, where = _cuts(length), list(range(length))
        if length * vocabulary > WHOLE:
            near = {p for cut in cuts for p in range(cut - NEAR, cut + NEAR) if 0 <= p < length}
            where = sorted({*_positions(length), *near})
        own = self._at(self.longest, where=where)[0]
        self.alone[tuple(self.longest)] = own[[where.index(p) for p in _positions(length)]]
        changed = {cut: self._at(self._changed(self.longest, cut), where=where)[0] for cut in cuts}
        # Near the end the changed text is the same call in all but its last tokens: where the rows before them are
        # equal to the bit, the call has been repeated. Else the text itself tells noise from a look ahead.
        end = where.index(cuts[-1]) if cuts else 0
        repeats = end > 0 and torch.equal(own[:end], changed[cuts[-1]][:end])
        # layers that come and go answer what was asked before there were numbers: what may be asked is asked there
        if not repeats or is_streamed(self.model):
            repeats = self._again("repeats", own, self._at(self.longest, where=where)[0], _WAY["random"])
        for cut, other in changed.items():
            self.alone[tuple(self._changed(self.longest, cut))] = other[
                [where.index(p) for p in _positions(length)]
            ]
            at = where.index(cut)
            before = difference(own[:at], other[:at])
            self._check_causal(before, cut)
            after = difference(own[at + 1 :], other[at + 1 :])
            self._check_own(before, difference(own[at], other[at]), after, cut)
        return repeats

    def _check_own(self, before: float, own: float, after: float, position: int) -> None:
        """Refuse a row that another token at its place moves no more than the rows before, while those after move."""
        if own <= before and not self._rounds(after):
            fault = (
                f"another token at position {position} changes the rows of logits after it, but not its own"
            )
            self._refuse("rows", fault, _WAY["rows"])

    def _check_causal(self, nats: float, start: int) -> None:
        if not self._rounds(self._note("causal", nats)):
            fault = f"other tokens from position {start} on change the log-probabilities before it"
            self._refuse("causal", f"{fault} by {nats:.2g} nats", _WAY["causal"])

    def _kept(self, whole: Tensor) -> bool:
        """Whether `logits_to_keep` gives the rows that stand in all logits."""
        if not accepts(self.model, "logits_to_keep"):
            return False
        where = _positions(len(self.short))
        keep = torch.tensor(where, device=self.device)
        ids = pad([self.short], self.device)
        try:
            logits = forward(self.model, ids, logits_to_keep=keep + self.offset).logits
        except Exception:
            # It has just run on this text without that argument, which then takes something else (a number): all
            # rows are asked for instead, which is right on any model, and `Rows.kept` says so.
            return False
        return logits.shape[1] == len(keep) and self._rounds(
            difference(logprobs(logits)[0], whole[keep + self.offset])
        )

    def _batches(self, rows: int, tokens: int | None) -> tuple[str, str]:
        """Which rows may stand in one forward, and why no others."""
        trials = self._trials(rows, tokens)
        nats = max(map(self._beside, trials))
        padded = self._rounds(self._note(PADDED, nats))
        if padded and not self.thorough:
            return PADDED, ""
        reason = f"beside other texts, padded, log-probabilities differ by {nats:.2g} nats from those alone"
        equal = len(self.shortest) < len(self.longest) and self._equal_lengths_do()
        if padded:
            return PADDED, ""
        return (EQUAL if equal else SINGLE), reason

    def _equal_lengths_do(self) -> bool:
        nats = max(self._beside_equals(text) for text in (self.shortest, self.longest))
        return self._rounds(self._note(EQUAL, nats))

    def _trials(self, rows: int, tokens: int | None) -> list[list[list[int]]]:
        """Batches as the run may make them: the most padding, the longest text, little padding, the most rows."""

        def most(length: int) -> int:
            allowed = rows if tokens is None else tokens // length
            return max(2, allowed if self.device.type != "cpu" else min(allowed, BATCH_TOKENS // length))

        count = most(len(self.longest))
        cuts = _cuts(len(self.longest))
        last = self.shortest
        if len(last) == len(self.longest):  # one whose own numbers are known by now
            last = self._changed(self.longest, cuts[0] if cuts else 0)
        padded = len(last) < len(self.middle) < len(self.longest)
        between = [text for text in self.texts[1:-1] if not (padded and text is self.middle)]
        between = between[:: max(1, len(self.texts) // max(1, count - 1))]
        if padded:  # what little padding does to a text of many tokens
            between.insert(0, self.middle)
        trials = [[self.longest, *between[: count - 2], last]]
        if padded and count == 2:
            trials.append([self.longest, self.middle])
        together = [text for n, text in enumerate(self.texts, 1) if n <= most(len(text))]
        if len(together) >= 2 * len(trials[0]):
            trials.append(together)
        return trials

    def _beside(self, texts: list[list[int]]) -> float:
        """How far some of the texts of one forward, the first and the last among them, are from those alone."""
        rows = sorted({0, 1, len(texts) // 2, len(texts) - 1})
        own = [_positions(len(texts[row])) for row in rows]
        where = sorted({p for positions in own for p in positions})
        together = self._at(*texts, where=where, rows=rows)
        largest = 0.0
        for row, positions, here in zip(rows, own, together, strict=True):
            alone = self._alone(texts[row])
            largest = max(largest, difference(here[[where.index(p) for p in positions]], alone))
            padding = here[[i for i, p in enumerate(where) if p >= len(texts[row])]]
            if bool(alone.isfinite().any(-1).all()) and bool(padding.isnan().any()):
                return torch.inf  # NaN in the padding has no place in a log-probability, but in a gradient
        return largest

    def _beside_equals(self, text: list[int]) -> float:
        """How far a text beside others of its length is from where it is alone."""
        others = [self._changed(text, i % len(text)) for i in range(max(1, BATCH_TOKENS // len(text) - 1))]
        return self._beside([*others, text])


_WAY = {
    "rows": "Every token must have one row: use the causal language model itself, without a wrapper that adds "
    "positions elsewhere than in front, or drops some.",
    "random": "It draws random numbers (dropout, sampling, noise) or keeps a state from one call to the next. Switch "
    "that off, so that its forward is a function of the tokens alone.",
    "state": "It gave the same numbers before a longer text ran: it keeps something of it. Make its forward a function "
    "of the tokens alone.",
    "causal": "The likelihood of a token given those before it has no meaning on such a model. Use a causal one (of "
    "BERT-like models: config.is_decoder=True).",
}


def _positions(length: int) -> list[int]:
    """At most `POSITIONS` positions, the first and the last among them."""
    count = min(length, POSITIONS)
    return sorted({round(i * (length - 1) / max(1, count - 1)) for i in range(count)})


def _cuts(length: int) -> list[int]:
    """Where the tokens of a text are changed: near a third, after a power of two, and near the end.

    None is a multiple of 4, where the blocks of an attention in chunks begin.
    """
    power = 1 << max(0, (length - 1).bit_length() - 1)
    end = length - (3 if length % 4 == 2 else 2)
    return sorted({cut for cut in (length // 3 | 1, power + 1, end) if 0 < cut < length})


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors; 0 where both are the same infinity or NaN, infinite where only one is."""
    if not a.numel():
        return 0.0
    apart = (a - b).abs()
    apart[(a == b) | (a.isnan() & b.isnan())] = 0
    return float(apart.nan_to_num(nan=torch.inf).max())


def noise(logprobs: Tensor) -> float:
    """How far log-probabilities of the same call may be apart on a CPU, in nats."""
    return SLACK * torch.finfo(torch.float32).eps * _size(logprobs)


def _size(logprobs: Tensor) -> float:
    """The largest finite log-probability's size, at least 1."""
    finite = logprobs[logprobs.isfinite()]
    return max(1.0, float(finite.abs().max())) if finite.numel() else 1.0


def _unit(model: nn.Module) -> float:
    """The relative rounding of one number: of the coarsest dtype that the weights have or that products are taken in.

    Not below float32's: norms and rotary angles of float64 models are computed in float32.
    """
    coarse = {p.dtype for p in model.parameters() if p.is_floating_point() and p.element_size() > 1}
    units = [torch.finfo(dtype).eps for dtype in (*coarse, torch.float32)]
    backends: tuple[Any, ...] = (torch.backends.cuda, torch.backends.mkldnn)
    products = {backend.matmul.fp32_precision for backend in backends}
    units += [{"tf32": 2.0**-10, "bf16": 2.0**-7}.get(precision, 0.0) for precision in products]
    return max(units)
