"""What stands in a model's weights, small enough to be compared before and after something ran."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tomfisher.runtime.freed import is_freed

_COLUMNS = 1021  # a prime: rows of a weight that change places change columns


class WeightBits:
    """Check sums over every bit of the parameters and persistent buffers of a model.

    Buffers that no checkpoint holds (rotary frequencies, masks) are a forward's own notes and are left out.

    Args:
        model: any module; nothing is copied, every tensor is read once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums = {name: _checksum(tensor) for name, tensor in _weights(model)}

    def changed(self, model: nn.Module) -> list[str]:
        """Names of the tensors whose bits differ from those seen before, or that are new or gone."""
        now = WeightBits(model)._sums
        names = dict.fromkeys((*self._sums, *now))
        return [name for name in names if not _same(self._sums.get(name), now.get(name))]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, each storage once."""
    seen: set[tuple[int, torch.Size, torch.device]] = set()
    for prefix, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        own = {**module._parameters, **{n: b for n, b in module._buffers.items() if n not in passing}}
        for name, tensor in own.items():
            if tensor is None or tensor.is_meta or is_freed(tensor):  # the values are elsewhere
                continue
            where = (
                tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor),
                tensor.shape,
                tensor.device,
            )
            if where not in seen:
                seen.add(where)
                yield f"{prefix}.{name}".lstrip("."), tensor


def _checksum(tensor: Tensor) -> Tensor:
    """Sums of the bits in columns, so that an entry that moves is seen as well as one that changes."""
    if type(tensor) not in (
        Tensor,
        nn.Parameter,
    ):  # a quantised or distributed tensor: its version, if it has one
        return torch.tensor(-1 if tensor.is_inference() else tensor._version)
    values = tensor.detach().reshape(-1)
    if values.is_sparse or values.is_complex():
        values = torch.view_as_real(values.coalesce().values() if values.is_sparse else values).reshape(-1)
    wide = (
        values.numel() * values.element_size() % 8 == 0
        and values.storage_offset() * values.element_size() % 8 == 0
    )
    words = values.view(torch.int64 if wide else torch.uint8)
    whole = words.numel() // _COLUMNS * _COLUMNS
    columns = words[:whole].view(-1, _COLUMNS).sum(0, dtype=torch.int64)
    rest = words[whole:].to(torch.int64)
    return torch.cat([columns, rest])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (
        a is not None and b is not None and a.shape == b.shape and a.device == b.device and torch.equal(a, b)
    )
