"""Per-sample squares of the parameters of one module, from its input and its output gradient.

One function per kind of module. Each adds `Σ_n (∂ℓ_n/∂θ)²` of the running batch to the Fisher tensors of
that module's parameters, and none ever holds a weight gradient for more than one sample. All memory is
taken before the first write to F: a batch that runs out of memory has either contributed to a module or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tomfisher import ops
from tomfisher.fisher.layout import LayoutError, per_sample
from tomfisher.runtime.parts import Part
from tomfisher.runtime.sharded import is_sharded
from tomfisher.runtime.structure import is_conv1d, is_linear


@dataclass(frozen=True)
class Accumulator:
    """Where the squares of one parameter go.

    With `rows`, F holds only those rows of a weight matrix, or of each expert's (the probe compares a few rows).

    Attributes:
        F: float32, of the parameter's shape, or of the part of it that this rank holds.
        rows: of that part.
        part: which part this rank holds; None for all.
        total: makes the whole of a gradient of which every rank has a summand; None where each has the whole.
    """

    F: Tensor
    rows: Tensor | None = None
    part: Part | None = None
    total: Callable[[Tensor], Tensor] | None = None

    def own(self, tensor: Tensor, of: int) -> Tensor:
        """What `[..., D]` has for the positions that this rank holds of one dimension of the parameter.

        A module of a model that is split over ranks is given, or gives, either all of them or its own.
        """
        if self.part is None or self.part.index[of] is None:
            return tensor
        whole, here = self.part.shape[of], self.part.local_shape[of]
        if tensor.shape[-1] not in (whole, here):
            raise LayoutError(f"{tensor.shape[-1]} numbers a token where this rank holds {here} of {whole}")
        return self.part.taken(tensor, -1, of) if tensor.shape[-1] == whole else tensor

    def add(self, left: Tensor, right: Tensor, layout: BatchLayout) -> None:
        """Take in a batch of a weight matrix whose gradient of sample n is `left[n].T @ right[n]`.

        Args:
            left: `[B, T, rows of the weight]`.
            right: `[B, T, columns of the weight]`.
            layout: how to multiply.
        """
        if self.rows is not None:
            left = left[..., self.rows]
        ops.squared_gradient_(self.F, left, right.to(left.dtype), **layout.products)


@dataclass(frozen=True)
class BatchLayout:
    """Shape of the running batch, `(B, T)`, padding included.

    The gradient at padding is zero, wherever a module keeps it, so whole rows are squared: which of a module's rows
    are padding is not for us to say, since it may have reordered them.
    """

    shape: tuple[int, int]
    impl: ops.Impl = "auto"
    precision: ops.Precision = "ieee"

    @property
    def products(self) -> dict[str, Any]:
        """How `squared_gradient_` multiplies."""
        return {"impl": self.impl, "precision": self.precision}


Contribution = Callable[[nn.Module, dict[str, Accumulator], Tensor, tuple[Tensor, ...], BatchLayout], None]


def contribution_for(module: nn.Module) -> Contribution | None:
    """The function that knows this kind of module, or None where there is no closed form."""
    if is_linear(module):
        return linear
    if isinstance(module, nn.Embedding):
        return None if module.scale_grad_by_freq or module.sparse else embedding
    own = [p for p in module._parameters.values() if p is not None]
    if own and all(p.ndim == 1 for p in own) and not any(True for _ in module.children()):
        return elementwise_affine
    return None


def linear(
    module: nn.Module,
    accumulators: dict[str, Accumulator],
    grad_output: Tensor,
    inputs: tuple[Tensor, ...],
    layout: BatchLayout,
) -> None:
    """`nn.Linear` and `Conv1D`: weight by `squared_gradient_`, bias by `(Σ_t grad_output[t])²`."""
    matrix = cast(Tensor, module.weight)
    matrix_product(accumulators, grad_output, inputs[0], matrix, is_conv1d(module), layout)


def matrix_product(
    accumulators: dict[str, Accumulator],
    grad_output: Tensor,
    input: Tensor,
    matrix: Tensor | None,
    transposed: bool,
    layout: BatchLayout,
) -> None:
    """`input @ weight.T + bias`, or `input @ weight + bias` where it is `transposed`; None for an unknown weight."""
    if matrix is not None and not is_sharded(matrix):
        rows, columns = matrix.shape
        _check_width("output", grad_output, columns if transposed else rows)
        _check_width("input", input, rows if transposed else columns)
    y, x = per_sample(grad_output, layout.shape), per_sample(input, layout.shape)
    bias = accumulators.get("bias")
    bias_square = None if bias is None else bias.own(y, 0).float().sum(1).square().sum(0)
    if "weight" in accumulators:
        target = accumulators["weight"]
        y, x = target.own(y, int(transposed)), target.own(x, int(not transposed))
        left, right = (x, y) if transposed else (y, x)
        target.add(left, right, layout)
    if bias_square is not None:
        accumulators["bias"].F.add_(bias_square)


def embedding(
    module: nn.Module,
    accumulators: dict[str, Accumulator],
    grad_output: Tensor,
    inputs: tuple[Tensor, ...],
    layout: BatchLayout,
) -> None:
    """`nn.Embedding`: row v gets `(Σ_{t: id[t]=v} grad_output[t])²` of every sample that contains v."""
    target = accumulators["weight"]
    F, B = target.F, layout.shape[0]
    vocabulary = len(F) if target.part is None else target.part.shape[0]
    gradient = target.own(per_sample(grad_output, layout.shape).float(), 1)
    ids = inputs[0].reshape(B, -1)
    keys = ids + torch.arange(B, device=ids.device)[:, None] * vocabulary
    unique, position = keys.unique(return_inverse=True)
    sums = torch.zeros(len(unique), F.shape[1], device=F.device)
    sums.index_add_(0, position.flatten(), gradient.flatten(0, 1))
    rows = unique % vocabulary
    padding: int | None = getattr(module, "padding_idx", None)
    if padding is not None:  # autograd gives this row no gradient
        sums[rows == padding] = 0
    if target.part is not None and (own := target.part.index[0]) is not None:
        place = torch.full((vocabulary,), -1, device=F.device)
        place[own.to(F.device)] = torch.arange(len(own), device=F.device)
        rows = place[rows]
        sums, rows = sums[rows >= 0], rows[rows >= 0]
    F.index_add_(0, rows, sums.square_())


def elementwise_affine(
    module: nn.Module,
    accumulators: dict[str, Accumulator],
    grad_output: Tensor,
    inputs: tuple[Tensor, ...],
    layout: BatchLayout,
) -> None:
    """Norm layers: the output is affine in each parameter, so `∂out/∂p = out(p=1) - out(p=0)`, others zero.

    This holds for LayerNorm, for every RMSNorm variant (Gemma's `1 + w` too), for gated norms and for a single
    factor of all entries, whatever the class is called; the probe checks it against autograd.
    """
    own = {name: p for name, p in module._parameters.items() if p is not None}
    zeros = {name: torch.zeros_like(p) for name, p in own.items()}
    offset = functional_call(module, zeros, inputs)
    upstream = grad_output.float()
    squares = {}
    for name in accumulators:
        response = functional_call(module, {**zeros, name: torch.ones_like(own[name])}, inputs) - offset
        gradients = per_sample(upstream * response.float(), layout.shape).sum(1)
        if (total := accumulators[name].total) is not None:
            gradients = total(gradients)
        if own[name].numel() == 1:
            gradients = gradients.sum(1, keepdim=True)
        _check_width(f"gradient by {name}", gradients, own[name].numel())
        squares[name] = gradients.square().sum(0)
    for name, accumulator in accumulators.items():
        accumulator.F.add_(squares[name])


def _check_width(what: str, tensor: Tensor, expected: int) -> None:
    if tensor.shape[-1] != expected:
        raise LayoutError(f"its {what} is {tensor.shape[-1]} wide, its parameter is made for {expected}")
