"""Which method each parameter takes, and the probe that decides it before every run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tomfisher.fisher.capture import Capture, CapturedModule, capturable
from tomfisher.fisher.contributions import Accumulator
from tomfisher.fisher.experts import is_experts
from tomfisher.fisher.flags import where
from tomfisher.fisher.layout import Layouts
from tomfisher.fisher.stage import Stage
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.memory import Peak, is_out_of_memory, release
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import SINGLE, Rules
from tomfisher.runtime.structure import is_linear
from tomfisher.runtime.tensor_parallel import Split
from tomfisher.sample import IGNORED, Sample

PROBE_TOKENS = 12
PROBE_ROWS = 16
# two batches of the two short cuts that differ in their numbers of samples and of tokens; where padding changes a
# row each of one cut, where a row changes its neighbours each cut alone
_SHORT_BATCHES = ([0, 1], [1, 1, 1])
_EQUAL_BATCHES = ([0, 0], [1, 1, 1])
_ALONE = ([0], [1])
_NOT_CALLED = (
    "its module is not called with a gradient (the weight is read directly, or the input needs none)"
)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Methods:
    """How every selected parameter is computed.

    Attributes:
        modules: captured modules by name.
        captured: names of the parameters that are captured.
        fallback: parameter name to the reason why autograd takes it, one sample at a time.
        unreached: of the fallback, those that got no gradient at all in the probe: they are watched in batches.
        unproven: of the captured, those whose gradient was zero in the probe, which proves nothing.
        layouts: how the modules show the samples.
        called: sets of captured modules that ran together in a pass that was looked at both ways.
        probed_tokens: length of the longest sample that was looked at both ways.
        bytes_per_token: per GPU, what a token of the longest batch that the probe captured held there.
    """

    modules: dict[str, CapturedModule]
    captured: list[str]
    fallback: dict[str, str]
    unreached: set[str] = field(default_factory=set)
    unproven: set[str] = field(default_factory=set)
    layouts: Layouts = field(default_factory=Layouts)
    called: set[frozenset[str]] = field(default_factory=set)
    probed_tokens: int = 0
    bytes_per_token: dict[torch.device, int] = field(default_factory=dict)

    @property
    def one_at_a_time(self) -> bool:
        """Whether some parameter needs every sample alone."""
        return not self.fallback.keys() <= self.unreached

    def apart(self) -> list[Methods]:
        """What goes in batches and what needs every sample alone, as two; one where there is only one of them."""
        alone = {name: reason for name, reason in self.fallback.items() if name not in self.unreached}
        if not alone or not self.captured:
            return [self]
        watched = {name: reason for name, reason in self.fallback.items() if name in self.unreached}
        single = replace(self, modules={}, captured=[], fallback=alone, unreached=set(), unproven=set())
        return [replace(self, fallback=watched), single]

    def knows(self, called: frozenset[str]) -> bool:
        """Whether these captured modules ran together in a pass that was looked at both ways."""
        return any(known & self.modules.keys() == called & self.modules.keys() for known in self.called)

    def describe(self) -> dict[str, str]:
        """Parameter name to "captured" or "fallback: reason"."""
        taken = dict.fromkeys(self.captured, "captured")
        return {**taken, **{name: f"fallback: {reason}" for name, reason in self.fallback.items()}}

    def moved(self, reasons: dict[str, str]) -> Methods:
        """The same with more parameters on the fallback.

        Args:
            reasons: parameter name to why.
        """
        modules = {
            name: replace(module, parameters=left)
            for name, module in self.modules.items()
            if (left := {a: p for a, p in module.parameters.items() if p not in reasons})
        }
        return replace(
            self,
            modules=modules,
            captured=[name for name in self.captured if name not in reasons],
            fallback={**self.fallback, **reasons},
            unreached=self.unreached - reasons.keys(),
            unproven=self.unproven - reasons.keys(),
        )


def choose_methods(
    stage: Stage,
    selection: dict[str, nn.Parameter],
    samples: Sequence[Sample],
    rules: Rules | None = None,
    budget: int | None = None,
) -> Methods:
    """Decide for every parameter whether capture gives what autograd gives on this very model.

    Two short cuts of the samples, of different lengths, go through the model padded in batches of two and of three
    with capture, and one at a time with autograd; then the longest samples go both ways, two in one batch where the
    run has such batches, since what a model does, and how a batch lies in its tensors, may depend on the length. A
    parameter stays captured when its module was called exactly once, showed the
    samples in one way, and its squares (of a few rows, for a matrix) agree with autograd's; otherwise it takes the
    fallback. One that neither way gave a gradient to is watched in batches.

    Args:
        stage: what the run's batches go through.
        selection: from `select_parameters`.
        samples: the run's samples; at least one.
        rules: how rows may be batched; None for padded.
        budget: the run's `B * T` per batch; None for no bound.
    """
    stage = stage.probing()
    modules, fallback = capturable(stage.model, selection)
    names = [name for module in modules.values() for name in module.parameters.values()]
    order = [name for name in selection if name in set(names)]
    methods = Methods(modules, order, fallback, unreached=set(fallback), unproven=set(order))
    methods = examine(stage, selection, methods, probe_samples(samples), short_batches(rules))
    for indices in long_batches([len(sample) for sample in samples], rules, budget):
        chosen = [replace(samples[i], name=samples[i].called(f"sample {i}")) for i in indices]
        full, peak = False, Peak({p.device for p in stage.model.parameters()})
        try:
            methods = examine(stage, selection, methods, chosen, [list(range(len(chosen)))], peak)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            full = True
        if full:
            release()  # a whole gradient beside it does not fit: `probed_tokens` says how far was looked
        elif peak.bytes:
            tokens = len(chosen) * max(map(len, chosen))
            methods = replace(methods, bytes_per_token={d: size // tokens for d, size in peak.bytes.items()})
    return replace(
        methods, fallback={name: methods.fallback[name] for name in selection if name in methods.fallback}
    )


def short_batches(rules: Rules | None) -> tuple[list[int], ...]:
    """Which batches of the two short cuts (`probe_samples`) the rules allow, as indices of the cuts."""
    if rules is None or rules.padded:
        return _SHORT_BATCHES
    return _ALONE if rules.batches == SINGLE else _EQUAL_BATCHES


def long_batches(lengths: list[int], rules: Rules | None, budget: int | None) -> list[list[int]]:
    """Samples that go both ways after the short cuts, one batch each, shorter batches first.

    The two longest that the run may put into one batch, of different lengths where padding is allowed; and the
    longest of all unless it is one of them.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    if rules is None or rules.batches != SINGLE:
        fitting = [i for i in order if budget is None or 2 * lengths[i] <= budget]
        pairs = list(itertools.pairwise(fitting))
        unequal = (
            [p for p in pairs if lengths[p[0]] != lengths[p[1]]] if rules is None or rules.padded else []
        )
        equal = [p for p in pairs if lengths[p[0]] == lengths[p[1]]]
        batches = [list(pair) for pair in (unequal or equal)[:1]]
    if not batches or lengths[batches[0][0]] < lengths[order[0]]:
        batches.append(order[:1])
    return [batch for batch in batches if lengths[batch[0]] > PROBE_TOKENS]


def probe_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Two short cuts of the first and last sample that end at a supervised token, of different lengths."""
    cuts: list[Sample] = []
    for sample, budget in ((samples[0], PROBE_TOKENS), (samples[-1], PROBE_TOKENS - 5)):
        supervised = (sample.labels[1:] != IGNORED).nonzero().squeeze(1) + 1
        stop = int(supervised[supervised < max(budget, int(supervised[0]) + 1)][-1]) + 1
        start = max(0, stop - budget)
        name = sample.called(f"the probe's sample {len(cuts)}")
        cuts.append(Sample(sample.input_ids[start:stop], sample.labels[start:stop], name))
    return cuts


def _rows(module: nn.Module, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """The rows that the probe compares of a weight `[d_out, d_in]` or `[E, d_out, d_in]`; None for all."""
    matrix = is_linear(module) and len(shape) == 2
    if not matrix and not (is_experts(module) and len(shape) == 3):
        return None
    number = max(1, PROBE_ROWS // max(1, math.prod(shape[:-2])))
    if shape[-2] <= number:
        return None
    return torch.linspace(0, shape[-2] - 1, number, device=device).long()


def examine(
    stage: Stage,
    selection: dict[str, nn.Parameter],
    methods: Methods,
    samples: list[Sample],
    batches: Iterable[list[int]],
    peak: Peak | None = None,
) -> Methods:
    """Look at samples both ways; what does not agree is moved to the fallback.

    Args:
        stage: what the samples go through.
        selection: from `select_parameters`.
        methods: as known so far.
        samples: each with a name for errors.
        batches: which of them are captured together; autograd takes each alone.
        peak: measures what capturing them takes.
    """
    batches = list(batches)
    accumulators = _accumulators(methods.modules, selection, stage.split)
    with peak or nullcontext():
        calls, reasons, called = _capture(stage, methods, accumulators, samples, batches)
    times = [sum(batch.count(i) for batch in batches) for i in range(len(samples))]
    watched = {name: selection[name] for name in methods.captured + sorted(methods.unreached)}
    expected, reached = _autograd_squares(stage, watched, accumulators, samples, times)
    compared = _compared(accumulators, expected)
    for name, (_, scale) in compared.items():
        if not math.isfinite(scale):
            raise FloatingPointError(
                f"The gradient of {name} is not finite on {' or '.join(s.name for s in samples)}. "
                "Load the model in float32 or bfloat16, or leave that sample out."
            )
    largest = max((scale for _, scale in compared.values()), default=0.0)
    reached = stage.split.union("what got a gradient", reached)
    # rounding adds up along a sample, and cancels in nothing
    largest *= max(1.0, max(map(len, samples)) / PROBE_TOKENS)
    moved: dict[str, str] = {}
    absent = set()
    for module in methods.modules.values():
        for name in module.parameters.values():
            count = calls.get(module.name, 0)
            reason = reasons.get(module.name)
            if reason is None and count == 0 and name not in reached:
                absent.add(name)  # without a part in this pass: as it should be
                continue
            reason = reason or _objection(count, *compared[name], selection[name], largest)
            if reason:
                moved[name] = reason
    if stage.split.is_split:
        moved = _merged(stage.split, moved)
    never = absent & methods.unproven if methods.called == set() else set()
    moved.update(dict.fromkeys(never, _NOT_CALLED))
    after = replace(
        methods.moved(moved),
        called=methods.called | called,
        probed_tokens=max(methods.probed_tokens, *map(len, samples)),
    )
    return replace(
        after,
        unreached=(after.unreached | never) - reached,
        unproven=after.unproven - reached,
    )


def _merged(split: Split, reasons: dict[str, str]) -> dict[str, str]:
    """The reasons of all ranks; of several for a parameter, that of the first rank."""
    return {
        name: reason
        for given in reversed(split.team.exchange("what does not agree", reasons))
        for name, reason in given.items()
    }


def _accumulators(
    modules: dict[str, CapturedModule], selection: dict[str, nn.Parameter], split: Split
) -> dict[str, Accumulator]:
    """Room for the squares that the probe compares."""
    accumulators = {}
    for captured in modules.values():
        for name in captured.parameters.values():
            parameter = selection[name]
            shape = list(split.shape(parameter))
            rows = None if captured.bare is not None else _rows(captured.module, shape, parameter.device)
            if rows is not None:
                shape[-2] = len(rows)
            F = torch.zeros(shape, device=parameter.device)
            accumulators[name] = Accumulator(F, rows, split.part(parameter), split.total(parameter))
    return accumulators


def _capture(
    stage: Stage,
    methods: Methods,
    accumulators: dict[str, Accumulator],
    samples: list[Sample],
    batches: list[list[int]],
) -> tuple[dict[str, int], dict[str, str], set[frozenset[str]]]:
    """The batches by capture: most calls of each module, why one cannot be read, and which ran together."""
    capture = Capture(methods.modules, accumulators, impl="reference", layouts=methods.layouts, probing=True)
    calls: dict[str, int] = {}
    reasons: dict[str, str] = {}
    called = set()
    with frozen(stage.model), capture:
        for indices in batches:
            batch = stage.batch(samples, indices)
            with capture.batch(batch, skip=set()):
                outputs = stage.forward(batch)
                stage.check(stage.per_sample(outputs, batch), [samples[i].name for i in indices])
                reasons.update(capture.objections())
                called.add(capture.called())
                _first_backward(stage, outputs, batch)
            reasons.update(capture.unreadable)
            calls = {n: max(calls.get(n, 0), capture.calls.get(n, 0)) for n in {*calls, *capture.calls}}
    return calls, reasons, called


def _first_backward(stage: Stage, outputs: Tensor, batch: Batch) -> None:
    """`stage.backward`, with what the model's own code raises in it said in words."""
    try:
        stage.backward(outputs, batch)
    except (AssertionError, NotImplementedError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{type(stage.model).__name__} has no backward pass in evaluation mode, which a Fisher diagonal "
            f"needs: it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _autograd_squares(
    stage: Stage,
    watched: dict[str, nn.Parameter],
    like: dict[str, Accumulator],
    samples: list[Sample],
    times: list[int],
) -> tuple[dict[str, Tensor], set[str]]:
    """Squares by autograd, one sample at a time, keeping only the rows that `like` keeps, and what got a gradient."""
    squares = {name: torch.zeros_like(accumulator.F) for name, accumulator in like.items()}
    reached: dict[str, Tensor] = {}
    handles = []
    counted = [1]  # how often the batches hold the running sample

    def watch(name: str) -> None:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                return
            gradient = stage.split.local(gradient, parameter)
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            reached[name] = gradient.any() | reached[name] if name in reached else gradient.any()
            if name in like:
                rows = like[name].rows
                kept = gradient if rows is None else gradient[..., rows, :]
                squares[name].add_(kept.float().square(), alpha=counted[0])

        handles.append(watched[name].register_post_accumulate_grad_hook(take))

    with frozen(stage.model, trainable=tuple(watched.values())):
        try:
            for name in watched:
                watch(name)
            for index, counted[0] in enumerate(times):
                batch = stage.batch(samples, [index])
                outputs = stage.forward(batch)
                stage.check(stage.per_sample(outputs, batch), [samples[index].name])
                stage.backward(outputs, batch)
        finally:
            for handle in handles:
                handle.remove()
    return squares, set(where(reached))


def _compared(
    captured: dict[str, Accumulator], expected: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Per parameter, how far its captured squares are from autograd's, and the largest of these."""
    compared = dict.fromkeys(expected, (0.0, 0.0))
    filled = [name for name, F in expected.items() if F.numel()]
    if not filled:
        return compared
    device = expected[filled[0]].device
    pairs = [((captured[n].F - expected[n]).abs().amax(), expected[n].amax()) for n in filled]
    table = torch.stack([torch.stack(pair).to(device) for pair in pairs]).tolist()
    return {**compared, **{name: (row[0], row[1]) for name, row in zip(filled, table, strict=True)}}


def _objection(
    calls: int, difference: float, scale: float, parameter: nn.Parameter, largest: float
) -> str | None:
    """Why the captured squares of a parameter are not to be trusted, or None."""
    if calls == 0:
        return _NOT_CALLED
    if calls > 1:
        return f"its module is called {calls} times in one pass"
    # a gradient that is zero in exact arithmetic (a key's bias) comes out as rounding noise by both methods
    noise = torch.finfo(parameter.dtype if parameter.ndim == 1 else torch.float32).eps
    if difference <= _TOLERANCE[parameter.dtype] * scale + 4 * noise**2 * largest:
        return None
    return f"capture differs from autograd by {difference / max(scale, 1e-45):.1e} (relative) on the probe"
