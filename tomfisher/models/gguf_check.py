"""Whether a dense copy holds what its GGUF file holds: the two compared tensor by tensor, not a model with itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tomfisher.models.gguf_file import tensors_of
from tomfisher.models.loading_report import first_of

_MIX = (-7046029254386353131, -4417276706812531889)  # odd multipliers of 64 bits
_ROTARY = "rope_freqs.weight"


class Values(NamedTuple):
    """A tensor's values whatever their order: two sums over mixed bits, and their number. Sums of parts add up."""

    first: int
    second: int
    number: int


# what llama.cpp stores otherwise than by reordering, undone: norms around zero as w + 1, A_log as -exp(A_log)
# (by the logarithm of PyTorch or of NumPy, which differ in the last bit)
_UNDO: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda stored: stored - 1,
    lambda stored: (-stored).log(),
    lambda stored: torch.from_numpy(np.log(np.abs(stored.numpy()))),
)


def check_copy(parts: list[Path], folder: Path) -> None:
    """Compare a dense copy with the GGUF file it was made from.

    llama.cpp stores tensors under other names, reordered, split or fused; so each tensor's values are compared
    without regard to their order, and what has no counterpart of its own is compared as one heap.

    Args:
        parts: the GGUF file, or all parts of a split one.
        folder: the dense copy, safetensors.

    Raises:
        ValueError: a tensor of the copy is not in the file, or one of the file did not get into the copy.
    """
    copied = {name: values_of(tensor) for name, tensor in _stored(folder)}
    there = set(copied.values())
    left: dict[str, Values] = {}
    seen: set[Values] = set()
    for name, tensor in tensors_of(parts):
        if name == _ROTARY:
            _check_rotary(tensor, folder)
            continue
        match = next((form for form in _forms(tensor) if form in there), None)
        if match is None:
            left[name] = values_of(tensor)
        else:
            seen.add(match)
    unmatched = {name: value for name, value in copied.items() if value not in seen}
    if _heap(left.values()) != _heap(unmatched.values()):
        differing = [
            *(f"{name} of the copy" for name in unmatched),
            *(f"{name} of the file" for name in left),
        ]
        raise ValueError(
            f"The dense copy of {parts[0].name} is not what the file holds: {len(unmatched)} of its {len(copied)} "
            f"tensors and {len(left)} of the file's have no counterpart, {first_of(differing)}. It was not kept. Use "
            "the model's safetensors folder."
        )


def values_of(tensor: Tensor) -> Values:
    """The values of a float32 tensor whatever their order; minus zero counts as zero."""
    bits = (tensor.float() + 0.0).contiguous().view(torch.int32).long()
    mixed = (bits ^ (bits << 17)) * _MIX[0]
    mixed = (mixed ^ (mixed >> 29)) * _MIX[1]
    return Values(int(mixed.sum()), int((mixed ^ (mixed >> 32)).mul(_MIX[0]).sum()), tensor.numel())


def _forms(tensor: Tensor) -> Iterable[Values]:
    yield values_of(tensor)
    yield from (values_of(undo(tensor)) for undo in _UNDO if tensor.ndim <= 2)


def _stored(folder: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in sorted(handle.keys()):
                yield name, handle.get_tensor(name)


def _heap(values: Iterable[Values]) -> Values:
    columns = list(zip(*values, strict=True)) or [(0,), (0,), (0,)]
    first, second, number = (sum(column) for column in columns)
    return Values(first % 2**64, second % 2**64, number)


def _check_rotary(factors: Tensor, folder: Path) -> None:
    """Refuse rotary frequencies that were scaled one by one (Llama 3.1): transformers leaves the factors out."""
    rotary = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("rope_parameters") or {}
    if not torch.equal(factors, torch.ones_like(factors)) and rotary.get("rope_type", "default") == "default":
        raise ValueError(
            f"The file scales its rotary frequencies ({_ROTARY}), which transformers does not read from GGUF: the "
            "model would run with others. Use the model's safetensors folder."
        )
