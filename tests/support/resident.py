"""A resident model in the place of one whose weights come and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from tomfisher.models.decoder import layer_lists


class Resident:
    """Layers that are always there, and a record of when they were asked for."""

    def __init__(self, model: Any) -> None:
        self.model = model
        ((name, layers),) = layer_lists(model).items()
        self.layers: list[tuple[str, nn.Module]] = [
            (f"{name}.{key}", m) for key, m in layers.named_children()
        ]
        self.asked: list[str] = []

    @property
    def outer(self) -> list[str]:
        """Names of the parameters outside the layers."""
        inside = {id(p) for _, layer in self.layers for p in layer.parameters()}
        return [name for name, p in self.model.named_parameters() if id(p) not in inside]

    def load(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    def free(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    @contextmanager
    def loaded(self, names: Sequence[str]) -> Iterator[None]:
        """Nothing to do but to remember the first name."""
        self.asked.append(names[0])
        yield

    def prefetch(self, names: Sequence[str]) -> None:
        """Nothing to do."""
