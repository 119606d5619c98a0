"""Which road each parameter takes, and the probe that decides it before every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tomfisher.fisher.batching import collate
from tomfisher.fisher.capture import Capture, CapturedModule, capturable
from tomfisher.fisher.contributions import Accumulator
from tomfisher.fisher.experts import is_experts
from tomfisher.fisher.frozen import frozen
from tomfisher.fisher.objective import Reduction, backward, check_losses, sample_losses
from tomfisher.models.structure import is_linear
from tomfisher.sample import IGNORED, Sample

PROBE_TOKENS = 12
PROBE_ROWS = 16
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Roads:
    """How every selected parameter is computed.

    Attributes:
        modules: captured modules by name.
        captured: names of the parameters that are captured.
        fallback: parameter name to the reason why autograd takes it, one sample at a time.
    """

    modules: dict[str, CapturedModule]
    captured: list[str]
    fallback: dict[str, str]

    def describe(self) -> dict[str, str]:
        """Parameter name to "captured" or "fallback: reason"."""
        taken = dict.fromkeys(self.captured, "captured")
        return {**taken, **{name: f"fallback: {reason}" for name, reason in self.fallback.items()}}


def find_roads(
    model: nn.Module,
    selection: dict[str, nn.Parameter],
    samples: Sequence[Sample],
    reduction: Reduction = "mean",
) -> Roads:
    """Decide for every parameter whether capture gives what autograd gives on this very model.

    Two short cuts of the samples, of different lengths, go through the model padded in one batch with
    capture, and one at a time with autograd. A captured parameter stays captured when its module was called
    exactly once and its squares (of a few rows, for a matrix) agree with autograd's; otherwise it takes the
    fallback.

    Args:
        model: a transformers model.
        selection: from `select_parameters`.
        samples: the run's samples; at least one.
        reduction: as in the run.
    """
    modules, fallback = capturable(model, selection)
    cuts = probe_samples(samples)
    captured, calls, unreadable = _captured_squares(model, modules, selection, cuts, reduction)
    expected = _autograd_squares(model, {n: selection[n] for n in captured}, captured, cuts, reduction)
    for name, F in expected.items():
        if not bool(torch.isfinite(F).all()):
            raise FloatingPointError(
                f"The gradient of {name} is not finite on a short cut of the first or last sample. "
                "Load the model in float32 or bfloat16, or leave that sample out."
            )
    largest = max((float(F.max()) for F in expected.values() if F.numel()), default=0.0)
    kept: dict[str, CapturedModule] = {}
    for captured_module in modules.values():
        trusted = {}
        for attribute, name in captured_module.parameters.items():
            reason = unreadable.get(captured_module.name) or _objection(
                calls.get(captured_module.name, 0), captured[name].F, expected[name], selection[name], largest
            )
            if reason:
                fallback[name] = reason
            else:
                trusted[attribute] = name
        if trusted:
            kept[captured_module.name] = CapturedModule(
                captured_module.name,
                captured_module.module,
                captured_module.contribution,
                trusted,
                captured_module.bare,
            )
    taken = {name for module in kept.values() for name in module.parameters.values()}
    return Roads(
        kept, [n for n in selection if n in taken], {n: fallback[n] for n in selection if n in fallback}
    )


def probe_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Two short cuts of the first and last sample that end at a supervised token, of different lengths."""
    cuts = []
    for sample, budget in ((samples[0], PROBE_TOKENS), (samples[-1], PROBE_TOKENS - 5)):
        supervised = (sample.labels[1:] != IGNORED).nonzero().squeeze(1) + 1
        stop = int(supervised[supervised < max(budget, int(supervised[0]) + 1)][-1]) + 1
        start = max(0, stop - budget)
        cuts.append(Sample(sample.input_ids[start:stop], sample.labels[start:stop], sample.name))
    return cuts


def _rows(module: nn.Module, parameter: nn.Parameter) -> Tensor | None:
    """The rows that the probe compares of a weight `[d_out, d_in]` or `[E, d_out, d_in]`; None for all."""
    matrix = is_linear(module) and parameter.ndim == 2
    if not matrix and not (is_experts(module) and parameter.ndim == 3):
        return None
    number = max(1, PROBE_ROWS // parameter.shape[:-2].numel())
    if parameter.shape[-2] <= number:
        return None
    return torch.linspace(0, parameter.shape[-2] - 1, number, device=parameter.device).long()


def _captured_squares(
    model: nn.Module,
    modules: dict[str, CapturedModule],
    selection: dict[str, nn.Parameter],
    cuts: list[Sample],
    reduction: Reduction,
) -> tuple[dict[str, Accumulator], dict[str, int], dict[str, str]]:
    accumulators = {}
    for captured in modules.values():
        for name in captured.parameters.values():
            parameter = selection[name]
            rows = None if captured.bare is not None else _rows(captured.module, parameter)
            shape = list(parameter.shape)
            if rows is not None:
                shape[-2] = len(rows)
            accumulators[name] = Accumulator(torch.zeros(shape, device=parameter.device), rows)
    batch = collate(cuts, range(len(cuts)))
    capture = Capture(modules, accumulators, impl="reference", probing=True)
    with frozen(model), capture, capture.batch(batch, skip=set()):
        backward(sample_losses(model, batch, "empirical", reduction, seed=0))
    return accumulators, capture.calls, capture.unreadable


def _autograd_squares(
    model: nn.Module,
    selection: dict[str, nn.Parameter],
    like: dict[str, Accumulator],
    cuts: list[Sample],
    reduction: Reduction,
) -> dict[str, Tensor]:
    """Squares by autograd, one sample at a time, keeping only the rows that `like` keeps."""
    squares = {name: torch.zeros_like(accumulator.F) for name, accumulator in like.items()}
    handles = []

    def watch(name: str) -> None:
        def take(parameter: Tensor) -> None:
            if parameter.grad is not None:
                rows = like[name].rows
                gradient = parameter.grad if rows is None else parameter.grad[..., rows, :]
                squares[name].add_(gradient.float().square())
                parameter.grad = None

        handles.append(selection[name].register_post_accumulate_grad_hook(take))

    with frozen(model, trainable=tuple(selection.values())):
        try:
            for name in selection:
                watch(name)
            for index, sample in enumerate(cuts):
                losses = sample_losses(model, collate([sample], [0]), "empirical", reduction, seed=0)
                check_losses(
                    model,
                    losses,
                    [sample.called(f"the probe's sample {index}")],
                )
                backward(losses)
        finally:
            for handle in handles:
                handle.remove()
    return squares


def _objection(
    calls: int, captured: Tensor, expected: Tensor, parameter: nn.Parameter, largest: float
) -> str | None:
    """Why the captured squares of a parameter are not to be trusted, or None."""
    if calls == 0:
        return (
            "its module is not called with a gradient (the weight is read directly, or the input needs none)"
        )
    if calls > 1:
        return f"its module is called {calls} times in one pass"
    if not captured.numel():
        return None
    # a gradient that is zero in exact arithmetic (a key's bias) comes out as rounding noise on both roads
    noise = torch.finfo(parameter.dtype if parameter.ndim == 1 else torch.float32).eps
    difference = float((captured - expected).abs().max())
    scale = float(expected.abs().max())
    if difference <= _TOLERANCE[parameter.dtype] * scale + 4 * noise**2 * largest:
        return None
    return f"capture differs from autograd by {difference / max(scale, 1e-45):.1e} (relative) on the probe"
