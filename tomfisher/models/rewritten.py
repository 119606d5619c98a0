"""Weights that a model's own code writes to after they were read, as transformers finishes a load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.runtime.structure import owners_of


class Writes(TorchDispatchMode):
    """Notes which of the tensors that it watches are written to, by their storages.

    `_init_weights` is run after every load and leaves alone what was read, except where it writes to a part of a
    weight: Youtu sets the padding token's row of its embedding to zero.

    Attributes:
        names: of the tensors that were written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._watched: dict[int, str] = {}

    def watch(self, tensors: Mapping[str, Tensor]) -> None:
        """Look for writes to these from now on."""
        self._watched = {tensor.untyped_storage()._cdata: name for name, tensor in tensors.items()}
        self.names = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                written = value.untyped_storage()._cdata
                self.names.update(name for storage, name in self._watched.items() if storage == written)
        return func(*args, **(kwargs or {}))


def write_again(model: nn.Module, parameter: nn.Parameter) -> None:
    """Do to a parameter that was read what the model's own code does to it after a load."""
    from transformers import PreTrainedModel

    for owner in owners_of(model)[id(parameter)]:
        for own in owner.module.parameters():
            own._is_hf_initialized = True  # type: ignore[attr-defined]
        parts = owner.module_name.split(".")
        above = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
        nearest: Any = [module for module in above if isinstance(module, PreTrainedModel)][-1]
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter((parameter,)):
            nearest._init_weights(owner.module)
