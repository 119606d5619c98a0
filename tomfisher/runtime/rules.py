"""The rules that every number rests on, asked of the model at hand with the texts of this run.

1. rows: T tokens give T rows of logits (or T behind a fixed number of others, which are then passed over).
2. causal: changing a token leaves the rows before it as they were.
3. batches: a row does not depend on the rows beside it, nor on the padding behind it.
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

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from tomfisher.runtime.forward import (
    Rows,
    accepts,
    device_of,
    embedding_of,
    logits_at,
    measuring,
    pad,
    rows_of,
    set_rows,
)
from tomfisher.runtime.weights import WeightBits

BATCHES = PADDED, EQUAL, SINGLE = ("padded batches", "batches of equal lengths", "single rows")
SLACK = 4.0  # times rounding
# Cuts for the questions that no length decides, positions compared, and tokens of the batch that is tried.
SHORT, POSITIONS, BATCH_TOKENS = 24, 16, 1024


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

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, fit for JSON."""
        return {
            **asdict(self),
            "differences": {name: float(f"{value:.3g}") for name, value in self.differences.items()},
            "rounding": float(f"{self.rounding:.3g}"),
            "lengths": list(self.lengths),
        }


def check_rules(model: Any, sequences: Iterable[Sequence[int] | Tensor], rows: int = 2) -> Rules:
    """Ask a model whether it keeps the rules, with the shortest and the longest text of a run.

    It costs about five forwards of the longest text and one batch: of the run's size, on the CPU of at most
    `BATCH_TOKENS` tokens (or two rows). The answer is remembered for the model and these texts as long as nothing
    changes that it can depend on: a sweep over masks asks once. It says nothing of other texts: which keys a sparse
    attention keeps depends on the tokens.

    Args:
        model: a causal language model of transformers, on any device, in any dtype.
        sequences: token ids of every text of the run.
        rows: as many as a forward of the run may hold.

    Returns:
        `Rules`.

    Raises:
        ValueError: a rule is broken for which there is no other way; the rule and the way out are named.
    """
    texts = sorted((ids.tolist() if isinstance(ids, Tensor) else list(ids) for ids in sequences), key=len)
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError("There is no text to ask the model with. Give at least one sequence of token ids.")
    if device_of(model).type == "cpu":
        rows = min(rows, BATCH_TOKENS // len(texts[-1]))
    rows = max(2, rows)
    asked_with = hash(frozenset(map(tuple, texts)))
    known = _ANSWERS.setdefault(model, {}).setdefault((_fingerprint(model), asked_with), [])
    for answer, asked in known:
        if rows <= asked or answer.batches == SINGLE:
            set_rows(model, answer.rows)
            return answer
    rules = _asked(model, texts, rows)
    known.append((rules, rows))
    return rules


def _asked(model: Any, texts: list[list[int]], rows: int) -> Rules:
    bits = WeightBits(model)
    try:
        with measuring(model):
            rules = _Questions(model, texts).ask(rows)
    except ValueError:
        _check_unchanged(model, bits)  # where it is so, it is the cause of all else
        raise
    _check_unchanged(model, bits)
    return rules


def _check_unchanged(model: Any, bits: WeightBits) -> None:
    if changed := bits.changed(model):
        more = f" ({len(changed)} such tensors)" if len(changed) > 1 else ""
        raise ValueError(
            f'{type(model).__name__} breaks the rule "a forward leaves the weights as they are": running it changed '
            f"{changed[0]}{more}, so that every number would depend on how much ran before it. Load the model again, "
            "and let it keep no state in its weights."
        )


_NEW = itertools.count()

# Remembered per model object. What the rules say is a property of the computation, not of the values of the weights:
# it may change with the modules, their hooks and forwards, the config (rotary scaling, attention implementation),
# dtype and device, and with the texts and the number of rows; not with a mask's few overwritten entries.
_ANSWERS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], list[tuple[Rules, int]]]] = (
    weakref.WeakKeyDictionary()
)


def _fingerprint(model: Any) -> int:
    """A hash of everything but values that a forward depends on."""
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
    if forward is None or str(getattr(forward, "__module__", "")).startswith("tomfisher."):
        return None
    return "accelerate" if hasattr(module, "_hf_hook") else next(_NEW)


def way_of(rules: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of a record of rules what says how a model was run, without the numbers that were measured."""
    if rules is None:
        return None
    return {key: rules[key] for key in ("road", "batches", "rows", "repeats", "cached") if key in rules}


class _Questions:
    """The forwards that ask, and what they found.

    Questions that no length decides are asked on `short`, a cut of the longest text. `middle` is the second longest
    (or that cut): what a model keeps of the longest text shows there, if anywhere.
    """

    def __init__(self, model: Any, texts: list[list[int]]) -> None:
        self.model, self.texts, self.device = model, texts, device_of(model)
        self.shortest, self.longest = texts[0], texts[-1]
        self.short = self.longest[:SHORT]
        self.middle = next((t for t in reversed(texts) if len(t) < len(self.longest)), self.short)
        self.pool = sorted({*self.shortest, *self.middle, *self.longest})
        self.found: dict[str, float] = {}

    def ask(self, rows: int) -> Rules:
        """All questions, in the order in which the answers need each other."""
        whole = self._whole(self.short)
        self.offset = max(0, len(whole) - len(self.short))
        if len(whole) < len(self.short):
            self._refuse("rows", f"{len(self.short)} tokens give {len(whole)} rows of logits", _WAY["rows"])
        repeats = self._again("repeats", whole, self._whole(self.short), _WAY["random"])
        self.rounding = self._rounding(whole)
        self._causal_in_short(whole)
        set_rows(self.model, Rows(self.offset, self._kept(whole)))
        middle, longest = self._at(self.middle), self._at(self.longest)
        self._causal_in_longest(longest)
        batches, reason = self._batches(longest, rows)
        repeats &= self._again("keeps nothing", middle, self._at(self.middle), _WAY["state"])
        lengths = len(self.shortest), len(self.longest)
        return Rules(batches, rows_of(self.model), repeats, self.rounding, self.found, lengths, reason)

    def _refuse(self, rule: str, fault: str, way: str) -> None:
        raise ValueError(f'{type(self.model).__name__} breaks the rule "{rule}": {fault}. {way}')

    def _whole(self, ids: list[int]) -> Tensor:
        """Log-probabilities `[R, V]` of every row that one text gives."""
        arguments = {"use_cache": False} if accepts(self.model, "use_cache") else {}
        found = self.model(input_ids=torch.tensor([ids], device=self.device), **arguments)
        logits = getattr(found, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[0] != 1:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
            self._refuse(
                "rows", f"one text of {len(ids)} tokens gave {shape}, not logits [1, T, V]", _WAY["rows"]
            )
        assert isinstance(logits, Tensor)
        return _logprobs(logits)[0]

    def _at(self, *texts: list[int], where: list[int] | None = None) -> Tensor:
        """Log-probabilities `[2, K, V]` of the first and the last text of a forward, at some positions."""
        keep = torch.tensor(where or _positions(len(texts[0])), device=self.device)
        logits = logits_at(self.model, pad(texts, self.device), keep)
        return _logprobs(logits[[0, -1]])

    def _changed(self, ids: list[int], start: int) -> list[int]:
        """The text with every token from `start` on replaced by another one of this run."""
        pool = self.pool if len(self.pool) > 1 else [self.pool[0], max(0, self.pool[0] - 1) or 1]
        following = dict(zip(pool, [*pool[1:], pool[0]], strict=True))
        return ids[:start] + [following[token] for token in ids[start:]]

    def _note(self, rule: str, nats: float) -> float:
        self.found[rule] = max(nats, self.found.get(rule, 0.0))
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
            moved = not self._rounds(difference(whole[border], changed[border]))
            if self.offset and not (self._rounds(before) and moved):
                fault = (
                    f"{length} tokens give {len(whole)} rows of logits, and the last {length} are not theirs"
                )
                self._refuse("rows", fault, _WAY["rows"])
            self._check_causal(before, start)
        if self.offset and length == 1:
            self._refuse("rows", f"1 token gives {len(whole)} rows of logits", _WAY["rows"])

    def _causal_in_longest(self, longest: Tensor) -> None:
        half = len(self.longest) // 2
        before = [i for i, position in enumerate(_positions(len(self.longest))) if position < half]
        changed = self._at(self._changed(self.longest, half))
        self._check_causal(difference(longest[:, before], changed[:, before]), half)

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
        arguments = {"use_cache": False} if accepts(self.model, "use_cache") else {}
        logits = self.model(input_ids=ids, logits_to_keep=keep + self.offset, **arguments).logits
        return logits.shape[1] == len(keep) and self._rounds(
            difference(_logprobs(logits)[0], whole[keep + self.offset])
        )

    def _batches(self, longest: Tensor, rows: int) -> tuple[str, str]:
        """Which rows may stand in one forward, and why no others."""
        step = max(1, len(self.texts) // max(1, rows - 1))
        others = self.texts[1:-1][::step][: rows - 2]
        last = self.shortest if len(self.texts) > 1 else self._changed(self.longest, 0)
        nats = self._beside([self.longest, *others, last], longest)
        if (
            len(last) < len(self.middle) < len(self.longest)
        ):  # what little padding does to a text of many tokens
            nats = max(nats, self._beside([self.longest, self.middle], longest))
        if self._rounds(self._note(PADDED, nats)):
            return PADDED, ""
        reason = f"beside other texts, padded, log-probabilities differ by {nats:.2g} nats from those alone"
        if len(last) < len(self.longest):
            nats = max(self._beside_equals(text) for text in (self.shortest, self.longest))
            if self._rounds(self._note(EQUAL, nats)):
                return EQUAL, reason
        return SINGLE, reason

    def _beside(self, texts: list[list[int]], longest: Tensor) -> float:
        """How far the first and the last of some texts, in one forward, are from where they are alone."""
        last = texts[-1]
        own, short = _positions(len(texts[0])), _positions(len(last))
        where = sorted({*own, *short})
        together = self._at(*texts, where=where)
        found = difference(together[0, [where.index(p) for p in own]], longest[0])
        alone = self._at(last)[0]
        found = max(found, difference(together[-1, [where.index(p) for p in short]], alone))
        healthy = bool(alone.isfinite().any(-1).all())
        padding = together[-1, [i for i, p in enumerate(where) if p >= len(last)]]
        # NaN in the padding has no place in a log-probability, but in a gradient
        return torch.inf if healthy and bool(padding.isnan().any()) else found

    def _beside_equals(self, text: list[int]) -> float:
        """How far a text beside others of its length is from where it is alone."""
        others = [self._changed(text, i % len(text)) for i in range(max(1, BATCH_TOKENS // len(text) - 1))]
        where = _positions(len(text))
        return difference(self._at(*others, text, where=where)[-1], self._at(text)[0])


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


def _logprobs(logits: Tensor) -> Tensor:
    return logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors; 0 where both are the same infinity or NaN, infinite where only one is."""
    if not a.numel():
        return 0.0
    apart = (a - b).abs()
    apart[(a == b) | (a.isnan() & b.isnan())] = 0
    return float(apart.nan_to_num(nan=torch.inf).max())


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
