"""Watching a forward pass for the parameters that it multiplies as matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {
    "mm", "bmm", "mv", "dot", "linear", "matmul", "_grouped_mm", "grouped_mm_fallback", "_scaled_mm",
    "_scaled_grouped_mm", "mkldnn_linear", "_linear_pointwise",
}  # fmt: skip
_PRODUCTS_PLUS = {"addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"}  # the first operand is added
_COPIES = {
    "_to_copy", "clone", "contiguous", "index", "index_select", "gather", "select_copy", "slice_copy", "cat", "stack",
    "repeat", "_unsafe_view", "_reshape_copy",
}  # fmt: skip
_BY_ENTRY = {"mul", "div", "add", "sub", "neg"}
_REDUCTIONS = {"sum", "mean"}
_ATTENTION = {
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
}  # with all its projections inside


class _Trace(NamedTuple):
    """Memory that holds parameters' values: which parameters', from where to where, and how many all of them are."""

    start: int
    end: int
    sources: frozenset[int]
    numel: int


class Products(TorchDispatchMode):
    """Inside the block, notes which parameters are factors of a matrix product whose other factor is no parameter.

    Views are known by their memory, wherever they are made; copies, casts and gathered rows are followed, and a whole
    parameter that is scaled, shifted, masked or summed up, and the product of two bare parameters. What is
    multiplied by the weight of a linear layer is that layer's input, even if it is a parameter.

    Args:
        asked: the parameters to look for.
        certain: weights of linear layers.

    Attributes:
        maps: `id` of every parameter of `asked` that was found to be such a factor.
        used: `id` of every parameter of `asked` that some operation read.
    """

    def __init__(self, asked: Iterable[nn.Parameter], certain: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.maps: set[int] = set()
        self.used: set[int] = set()
        self._asked = {id(p) for p in asked}
        self._traces: dict[int, tuple[StorageWeakRef, list[_Trace]]] = {}
        for parameter in (*asked, *certain):
            self._note(parameter, frozenset([id(parameter)]), parameter.numel())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        traced = [trace for t in operands if (trace := self._trace(t)) is not None]
        if traced:
            self.used |= self._asked & frozenset[int]().union(*(t.sources for t in traced))
            name = func._schema.name.partition("::")[2]
            if name in _PRODUCTS:
                self._product(args[0], args[1], result)
            elif name in _PRODUCTS_PLUS:
                self._product(args[1], args[2], result)
            elif name in _COPIES and len(traced) == len(operands):
                self._note(
                    result, frozenset().union(*(t.sources for t in traced)), max(t.numel for t in traced)
                )
            elif name == "copy_" and (trace := self._trace(args[1])) is not None:
                self._note(args[0], trace.sources, trace.numel)
            elif name in _BY_ENTRY:
                self._entry_by_entry(operands, result)
            elif name in _REDUCTIONS and traced[0].numel == operands[0].numel():
                self._note(result, traced[0].sources, result.numel())
            elif name in _ATTENTION:
                self.maps |= self._asked & frozenset().union(*(t.sources for t in traced))
        return result

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        factors = [trace for t in (left, right) if (trace := self._trace(t)) is not None]
        sources = frozenset[int]().union(*(trace.sources for trace in factors))
        if len(factors) == 1:
            self.maps |= sources & self._asked
        elif sources and sources <= self._asked:
            self._note(result, sources, result.numel())

    def _entry_by_entry(self, operands: list[Tensor], result: Tensor) -> None:
        whole = [
            trace
            for t in operands
            if t.shape == result.shape and (trace := self._trace(t)) is not None and trace.numel == t.numel()
        ]
        if whole:
            self._note(result, frozenset[int]().union(*(t.sources for t in whole)), result.numel())

    def _note(self, tensor: Tensor, sources: frozenset[int], numel: int) -> None:
        storage = tensor.untyped_storage()
        # the reference keeps the address of the storage from being used again, though not its memory
        _, traces = self._traces.setdefault(storage._cdata, (StorageWeakRef(storage), []))
        start = _place(tensor)
        traces.append(_Trace(start, start + _extent(tensor), sources, numel))

    def _trace(self, tensor: Any) -> _Trace | None:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return None
        _, traces = self._traces.get(tensor.untyped_storage()._cdata, (None, []))
        at = _place(tensor)
        covering = [trace for trace in traces if trace.start <= at < trace.end]
        if not covering:
            return None
        return _Trace(
            at, at, frozenset[int]().union(*(t.sources for t in covering)), max(t.numel for t in covering)
        )


def _place(tensor: Tensor) -> int:
    """Bytes from the beginning of its memory, which may come and go (`tomfisher.runtime.freed`)."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _extent(tensor: Tensor) -> int:
    """Bytes from the first entry to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
