"""What is written to the masked entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tomfisher.masks.sampling import generator_of
from tomfisher.ops.masked_fill import NonFiniteMeanError, round_once, unmasked_sum
from tomfisher.perturbation.entries import Entries
from tomfisher.perturbation.targets import Target

FillLike = str | float | tuple[str, float]
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Fill:
    """A fill, read from what the caller wrote.

    Attributes:
        kind: "mean", "number", "noise", "scale" or "values".
        value: the number, or the factor of "scale".
        values: gives the values `[k]` of a target, finite and of its dtype; "values" always has it, another kind where
            they were found elsewhere.
    """

    kind: Literal["mean", "number", "noise", "scale", "values"]
    value: float = 0.0
    values: Callable[[Target], Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.kind == "scale":
            return f"scale:{self.value:g}"
        return f"{self.value:g}" if self.kind == "number" else self.kind

    @classmethod
    def parse(cls, fill: FillLike) -> Fill:
        """Read "mean", "zero", "noise", a number, ("scale", factor) or "scale:factor".

        Raises:
            ValueError: it is none of these, or a number is not finite.
        """
        if fill in ("mean", "noise"):
            return cls("mean" if fill == "mean" else "noise")
        if fill == "zero":
            return cls("number", 0.0)
        kind, number = _kind_and_number(fill)
        try:
            value = float(number)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if kind not in ("number", "scale") or isinstance(number, bool) or not math.isfinite(value):
            raise ValueError(
                "fill must be 'mean', 'zero', 'noise', a finite number, ('scale', factor) or 'scale:factor', "
                f"got {fill!r}."
            )
        return cls("scale" if kind == "scale" else "number", value)


def _kind_and_number(fill: object) -> tuple[object, object]:
    if isinstance(fill, str) and ":" in fill:
        kind, _, number = fill.partition(":")
        return kind, number
    if isinstance(fill, (tuple, list)) and len(fill) == 2:
        return fill[0], fill[1]
    return "number", fill


def write_fill(fill: Fill, entries: Entries, sums: Tensor | None, seed: int) -> None:
    """Write the fill to all entries, or after an error to none.

    Args:
        fill: what to write.
        entries: where.
        sums: `weight_sums(entries.weights)`, for the mean of the unmasked entries alone; None writes other fills, and
            "mean" as the paper's code takes it.
        seed: for "noise".

    Raises:
        ValueError: a value cannot be computed; the tensor is named.
    """
    if sums is None:
        pairs = zip(entries.targets, entries.split(entries.read()), strict=True)
        entries.write([_new_values(fill, target, old, seed) for target, old in pairs])
        return
    if entries.full is not None:
        raise ValueError(
            f"{entries.full.label} is masked entirely ({entries.full.index.numel()} entries): no unmasked entry is "
            "left to take the mean of. Use a smaller kappa or fill='zero'."
        )
    try:
        entries.fill_mean(sums)
    except NonFiniteMeanError as error:
        raise _not_finite(entries.targets[error.position]) from error


def _not_finite(target: Target) -> ValueError:
    return ValueError(f"{target.label} holds NaN or infinity: a fill cannot be computed. Repair the weights.")


def _new_values(fill: Fill, target: Target, old: Tensor, seed: int) -> Tensor:
    dtype = target.view.dtype
    if fill.values is not None:
        new = fill.values(target)
    elif fill.kind == "scale":
        new = (old.double() * fill.value).to(dtype)
    elif fill.kind == "noise":
        mean, std = _moments(target)
        new = old.new_tensor(mean + std * _normal(seed, target), dtype=torch.float64).to(dtype)
    elif fill.kind == "number":
        new = _constant(old, fill.value)
    else:
        mean = unmasked_sum(target.view, target.index) / target.view.numel()
        if not math.isfinite(mean):
            raise _not_finite(target)
        new = _constant(old, mean)
    if not bool(new.isfinite().all()):
        raise ValueError(
            f"fill {fill} gives values in {target.label} that are not finite in {dtype}: it overflows, or "
            "the weights hold NaN or infinity already."
        )
    return new


def _constant(old: Tensor, value: float) -> Tensor:
    """One value for every entry, infinite where the dtype cannot hold it."""
    return round_once(torch.full_like(old, value, dtype=torch.float64), old.dtype)


def _moments(target: Target) -> tuple[float, float]:
    """Mean and standard deviation (dividing by n) of all entries of a tensor, in float64."""
    nothing = target.index[:0]
    mean = unmasked_sum(target.view, nothing) / target.view.numel()
    if not math.isfinite(mean):
        raise _not_finite(target)
    return mean, math.sqrt(squared_deviations(target.view, mean) / target.view.numel())


def squared_deviations(weight: Tensor, mean: float) -> float:
    """Sum in float64 of `(entry - mean)^2` over the entries of a tensor."""
    return math.fsum(
        (chunk.double() - mean).square_().sum().item() for chunk in weight.reshape(-1).split(_CHUNK)
    )


def _normal(seed: int, target: Target) -> np.ndarray:
    """Standard normal draws `[k]`: a function of the seed, the tensor's (first) name and k."""
    return generator_of(f"{seed}:{target.names[0]}").standard_normal(target.index.numel())
