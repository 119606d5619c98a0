"""Watching a backward pass: every captured module hands over its input and output gradient, and nothing else.

The weights are frozen, so autograd computes no weight gradient; an identity function on each module's
output sees the output gradient as it flows by and adds the per-sample squares to F. The module's own forward
runs untouched, so values, device placement and gradient checkpointing are the model's. Matrices that no module of
their own multiplies (routers) are watched where they are used (`tomfisher.fisher.bare`). Only fused experts, whose
projections are no modules, are computed by our own implementation (`tomfisher.fisher.experts`), and float32 linear
layers by oneDNN where that is faster (`tomfisher.runtime.onednn`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher import ops
from tomfisher.fisher import experts
from tomfisher.fisher.bare import BareProducts, Use
from tomfisher.fisher.contributions import (
    Accumulator,
    BatchLayout,
    Contribution,
    contribution_for,
    matrix_product,
)
from tomfisher.fisher.layout import LayoutError, Layouts, per_sample
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.memory import is_out_of_memory
from tomfisher.runtime.structure import Owner, owners_of


class _Tap(torch.autograd.Function):
    """Identity that shows `sink` the gradient flowing through it, and a function that gives the saved tensors.

    `alive` requires a gradient, and so does the result, whatever the module computed its output from: the backward
    pass gets here even where nothing before the module needs a gradient, and no leaf is handed to the model, which
    may go on in place.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, alive: Tensor, sink: Callable[..., None], *saved: Tensor) -> Tensor:
        ctx.sink = sink
        ctx.save_for_backward(*saved)
        return output.detach()  # same memory; unlike a view it may be modified in place by the model

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        # read once: checkpointing recomputes at the first read and forbids a second
        ctx.sink(grad_output, lambda: ctx.saved_tensors)
        return (grad_output, *(None for _ in ctx.needs_input_grad[1:]))


@dataclass
class CapturedModule:
    """A module, its closed form, and which of its attributes are which selected parameters.

    A projection of fused experts and a parameter that is a matrix by itself count as modules of their own, named
    like their weight.

    Attributes:
        name: unique in the model.
        module: the module, the experts that the projection belongs to, or the module that holds the parameter.
        contribution: its closed form; None for a projection of fused experts and for a bare parameter.
        parameters: "weight", "bias", … to the parameter's name in the model.
        bare: the parameter that is used without a module of its own.
    """

    name: str
    module: nn.Module
    contribution: Contribution | None
    parameters: dict[str, str] = field(default_factory=dict)
    bare: nn.Parameter | None = None


def capturable(
    model: nn.Module, selection: dict[str, nn.Parameter]
) -> tuple[dict[str, CapturedModule], dict[str, str]]:
    """Split a selection into modules that can be captured and parameters that cannot, with the reason.

    Returns:
        `(modules by name, {parameter name: why it must take the fallback})`.
    """
    owners = owners_of(model)
    modules: dict[str, CapturedModule] = {}
    reasons: dict[str, str] = {}
    for name, parameter in selection.items():
        places = owners[id(parameter)]
        if not parameter.numel():
            reasons[name] = "it has no entries"
            continue
        if len(places) > 1:
            reasons[name] = "tied: also " + ", ".join(f"{o.module_name}.{o.attribute}" for o in places[1:])
            continue
        entry = _entry(places[0])
        if entry is None:
            owner = places[0]
            reasons[name] = f"no closed form for {type(owner.module).__name__}.{owner.attribute}"
            continue
        captured, attribute = entry
        modules.setdefault(captured.name, captured).parameters[attribute] = name
    return modules, reasons


def _entry(owner: Owner) -> tuple[CapturedModule, str] | None:
    """What captures the parameter registered at `owner`, and as which of its attributes."""
    if experts.is_experts(owner.module):
        projection = owner.attribute.removesuffix("_bias")
        attribute = "weight" if projection == owner.attribute else "bias"
        if projection not in experts.PROJECTIONS:
            return None
        return CapturedModule(f"{owner.module_name}.{projection}", owner.module, None), attribute
    contribution = contribution_for(owner.module)
    if contribution is not None:
        return CapturedModule(owner.module_name, owner.module, contribution), owner.attribute
    parameter = owner.module._parameters[owner.attribute]
    if parameter is None or parameter.ndim > 2 or isinstance(owner.module, nn.Embedding):
        return None
    name = f"{owner.module_name}.{owner.attribute}"
    return CapturedModule(
        name, owner.module, None, bare=parameter
    ), "weight" if parameter.ndim == 2 else "bias"


class Capture:
    """Hooks on the captured modules for the time of a run; use as a context manager.

    Args:
        modules: what to capture, from `capturable`.
        accumulators: parameter name to where its squares go.
        impl: implementation of `squared_gradient_`.
        precision: of its float32 products, see there.
        layouts: how the modules show the samples, from the probe; new ones to learn.
        probing: a closed form that raises makes its module unreadable instead of ending the pass.
    """

    def __init__(
        self,
        modules: dict[str, CapturedModule],
        accumulators: dict[str, Accumulator],
        impl: ops.Impl = "auto",
        precision: ops.Precision = "ieee",
        layouts: Layouts | None = None,
        probing: bool = False,
    ) -> None:
        self.modules = modules
        self.accumulators = accumulators
        self.impl = impl
        self.precision = precision
        self.layouts = layouts or Layouts()
        self.probing = probing
        self.calls: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self._forward = True
        self.off = False
        self.unreadable: dict[str, str] = {}
        self._sums: list[tuple[str, Tensor]] = []
        self._layout = BatchLayout((0, 0))
        self._skip: set[str] = set()
        self._alive = torch.zeros((), requires_grad=True)
        self._stack = ExitStack()

    def __enter__(self) -> Capture:
        for captured in self.modules.values():
            if captured.contribution is not None:
                hook = self._hook(captured, captured.contribution)
                self._stack.callback(captured.module.register_forward_hook(hook, with_kwargs=True).remove)
        fused = {id(c.module): c.module for c in self._projections().values()}
        if fused:
            self._stack.enter_context(experts.implementation(list(fused.values()), self._experts()))
        for module in {c.module for c in self.modules.values() if c.bare is not None}:
            self._stack.enter_context(self._watched(module))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextmanager
    def batch(self, batch: Batch, skip: set[str]) -> Iterator[None]:
        """Everything inside belongs to `batch`; modules in `skip` already have it and add nothing."""
        self._layout = BatchLayout(batch.shape, self.impl, self.precision)
        self._skip = skip
        self.calls, self.seen, self.unreadable = {}, {}, {}
        self._forward = True
        self._sums = []
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Everything inside belongs to somebody else: nothing is watched, and the running batch stays as it is."""
        self.off = True
        try:
            yield
        finally:
            self.off = False

    def objections(self) -> dict[str, str]:
        """After the forward pass: captured modules whose closed form does not fit what happened, and why.

        From here on a forward is a checkpointed layer's second one, and not counted.
        """
        self._forward = False
        twice = {
            name: f"its module is called {calls} times in one pass"
            for name, calls in self.seen.items()
            if calls > 1
        }
        live = {
            n for n, c in self.modules.items() if any(p in self.accumulators for p in c.parameters.values())
        }
        return {name: reason for name, reason in {**twice, **self.unreadable}.items() if name in live}

    def called(self) -> frozenset[str]:
        """Captured modules that ran in the forward pass of the running batch."""
        return frozenset(self.seen)

    def done(self) -> set[str]:
        """Modules whose contribution of the running batch is complete."""
        return set(self.calls)

    def gradient_sums(self) -> list[tuple[str, Tensor]]:
        """Modules from the loss on, each with the sum of the gradient at its output, per sample of the batch.

        A sum is finite only where all of its terms are.
        """
        return self._sums

    def _hook(self, captured: CapturedModule, contribution: Contribution) -> Callable[..., Any]:
        def forward_hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            if self.off or not (isinstance(output, Tensor) and output.is_floating_point()):
                return output
            if not torch.is_grad_enabled():
                return output
            inputs = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
            if not self._is_readable(captured.name, output, *inputs[:1]):
                return output
            layout = self._layout

            def sink(grad_output: Tensor, read: Callable[[], tuple[Tensor, ...]]) -> None:
                # one reduction instead of a look at every entry: a sum is finite only where all terms are;
                # taken before the contribution, which has to be the last to ask for memory
                sums = per_sample(grad_output, self._layout.shape).sum((1, 2), dtype=torch.float32)
                targets = self._targets(captured)
                with self._reasons(captured.name):
                    saved = _unchanged(read)
                    if targets:
                        contribution(module, targets, grad_output, saved, layout)
                self._count(captured, sums)

            return _Tap.apply(output, self._alive, sink, *inputs)

        return forward_hook

    def _projections(self) -> dict[str, CapturedModule]:
        """The captured projections of fused experts."""
        return {n: c for n, c in self.modules.items() if c.contribution is None and c.bare is None}

    @contextmanager
    def _watched(self, module: nn.Module) -> Iterator[None]:
        """While the module's forward runs, products with its bare parameters are watched.

        Entered and left in the module's own hooks, so that it holds on whatever thread a checkpointed layer is
        recomputed.
        """
        bare = {c.name: c for c in self.modules.values() if c.module is module and c.bare is not None}
        parameters = {id(c.bare): name for name, c in bare.items()}
        running: list[BareProducts] = []

        def enter(*_: Any) -> None:
            running.append(BareProducts(parameters, functools.partial(self._product, bare)))
            running[-1].__enter__()

        def leave(*_: Any) -> None:
            running.pop().__exit__(None, None, None)

        hooks = (
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _product(
        self, bare: dict[str, CapturedModule], output: Tensor, x: Tensor, use: Use | None, bias: str | None
    ) -> Tensor:
        """Tap a product with bare parameters."""
        captured = {"weight": use and bare[use.name], "bias": bias and bare[bias]}
        taken = {attribute: c for attribute, c in captured.items() if isinstance(c, CapturedModule)}
        if self.off or not torch.is_grad_enabled():
            return output
        if not all([self._is_readable(c.name, output, x) for c in taken.values()]):
            return output
        layout = self._layout
        matrix = None if use is None else bare[use.name].bare

        def sink(grad_output: Tensor, read: Callable[[], tuple[Tensor, ...]]) -> None:
            sums = per_sample(grad_output, self._layout.shape).sum((1, 2), dtype=torch.float32)
            targets = {a: t for c in taken.values() for a, t in self._targets(c).items()}
            with self._reasons(*(c.name for c in taken.values())):
                (saved,) = _unchanged(read)
                matrix_product(
                    targets, grad_output, saved, matrix, use is not None and use.transposed, layout
                )
            for c in taken.values():
                self._count(c, sums)

        tapped: Tensor = _Tap.apply(output, self._alive, sink, x)
        return tapped

    def _is_readable(self, name: str, *tensors: Tensor) -> bool:
        """Count a call in the forward pass; whether its tensors show where samples end. If not, that is noted."""
        if self._forward:
            self.seen[name] = self.seen.get(name, 0) + 1
        shown = tuple(t if t.is_floating_point() else t[..., None] for t in tensors)
        reason = self.layouts.objection(name, shown, self._layout.shape)
        if reason is not None:
            self.unreadable[name] = reason
        return reason is None

    @contextmanager
    def _reasons(self, *names: str) -> Iterator[None]:
        """In the probe a closed form that raises is a reason for the fallback, not the end."""
        try:
            yield
        except Exception as error:
            if not self.probing or is_out_of_memory(error):
                raise
            self.unreadable.update(dict.fromkeys(names, _first_line(error)))

    def _experts(self) -> Callable[..., Tensor]:
        """The implementation of fused experts that shows each projection's gradients to this capture."""
        fused = {(id(c.module), n.rpartition(".")[2]): c for n, c in self._projections().items()}

        def run(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            B, T = self._layout.shape
            readable = B == 1 or len(hidden) == B * T

            def watch(projection: str, output: Tensor, x: Tensor, routing: experts.Routing) -> Tensor:
                captured = fused.get((id(module), projection))
                if self.off or captured is None or not torch.is_grad_enabled():
                    return output
                if self._forward:
                    self.seen[captured.name] = self.seen.get(captured.name, 0) + 1
                if not readable:
                    self.unreadable[captured.name] = (
                        f"{len(hidden)} tokens in a batch of {B} samples x {T} tokens"
                    )
                    return output

                def sink(grad_output: Tensor, read: Callable[[], tuple[Tensor, ...]]) -> None:
                    (saved,) = _unchanged(read)
                    rows = grad_output.sum(1, dtype=torch.float32)
                    sums = rows.new_zeros(self._layout.shape[0]).index_add_(0, routing.samples, rows)
                    targets = self._targets(captured)
                    if targets:
                        experts.contribution(
                            module, targets, grad_output, saved, routing, self._layout.products
                        )
                    self._count(captured, sums)

                return _Tap.apply(output, self._alive, sink, x)

            return experts.forward(module, hidden, chosen, weights, B if readable else 1, watch)

        return run

    def _targets(self, captured: CapturedModule) -> dict[str, Accumulator]:
        """Where this module's squares go; nowhere if it already has the running batch."""
        if captured.name in self._skip:
            return {}
        return {a: self.accumulators[p] for a, p in captured.parameters.items() if p in self.accumulators}

    def _count(self, captured: CapturedModule, sums: Tensor) -> None:
        self.calls[captured.name] = self.calls.get(captured.name, 0) + 1
        self._sums.append((captured.name, sums))


def _unchanged(read: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The saved tensors; a LayoutError in words where the model has written into one since."""
    try:
        return read()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise LayoutError("its input is changed in place after it was called") from error


def _first_line(error: Exception) -> str:
    """What an exception says, as a reason in a record."""
    said = str(error).strip().partition("\n")[0]
    return (
        said if isinstance(error, LayoutError) else f"its closed form raises {type(error).__name__}: {said}"
    )
