"""Where a mask lands in a model, and a quick look whether it still does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops import FillTable
from tomfisher.ops.dispatch import Impl
from tomfisher.perturbation.stack import Key
from tomfisher.perturbation.standing import Entries
from tomfisher.perturbation.sums import Group
from tomfisher.perturbation.targets import Target, named_tensors, resolve_targets, row_major

Link = tuple[Mapping[str, Any], str, object]


class Place:
    """The targets on one device.

    Attributes:
        targets: at least one.
        group: their views, for their sums.
    """

    def __init__(self, targets: list[Target], weights: list[Tensor], impl: Impl) -> None:
        self.targets = targets
        self.group = Group([target.view for target in targets])
        self._weights = weights
        self._impl = impl

    @cached_property
    def table(self) -> FillTable:
        """Means and their undo, checked and packed when first asked for.

        It is given the model's own tensors where they lie in memory like the views, because only they tell when
        their memory is replaced.
        """
        weights = [
            weight if weight.is_contiguous() else target.view
            for weight, target in zip(self._weights, self.targets, strict=True)
        ]
        return FillTable(weights, [target.index for target in self.targets], self._impl)

    @cached_property
    def watched(self) -> bool:
        """Whether the table itself refuses to write once the memory of a tensor was replaced."""
        return (
            self.table.packed
            and all(weight.is_contiguous() for weight in self._weights)
            and all(len(target.names) == 1 for target in self.targets)
        )

    @cached_property
    def entries(self) -> list[Entries]:
        """The masked entries, to read what stands there."""
        return [
            Entries(
                target.label,
                target.view if weight.is_contiguous() else weight.detach(),
                row_major(weight, target),
            )
            for weight, target in zip(self._weights, self.targets, strict=True)
        ]

    @property
    def unmoved(self) -> bool:
        """Whether every tensor has the memory and the dtype that it had."""
        return all(
            (view.device, view.data_ptr(), view.dtype, view.numel()) == (*key[:3], key[3].numel())
            for view, (key, _) in zip(
                (target.view for target in self.targets), self.group.places, strict=True
            )
        )

    def let_go(self) -> None:
        """Hold the model's own tensors instead of views, which would keep memory that the model replaces."""
        self.targets = [replace(t, view=w) for t, w in zip(self.targets, self._weights, strict=True)]
        self.__dict__.pop("entries", None)
        self.group.tensors = self._weights


class Site:
    """The memory behind a mask.

    Args:
        target: model, or mapping from names to tensors.
        mask: the entries.
        impl: implementation of the operations.

    Attributes:
        places: what `resolve_targets` finds, by device.
        keys: the storages.

    Raises:
        TypeError: as for `resolve_targets`.
        ValueError: as for `resolve_targets`.
    """

    def __init__(self, target: nn.Module | Mapping[str, Tensor], mask: SparseMask, impl: Impl) -> None:
        targets = resolve_targets(target, mask)
        tensors = named_tensors(target)
        self.places = [
            Place(together, [tensors[each.names[0]] for each in together], impl)
            for together in _by_device(targets)
        ]
        self.keys: frozenset[Key] = frozenset(each.key for each in targets)
        self._links = _links(target, mask, tensors)
        self._light = False

    @cached_property
    def _watched(self) -> bool:
        return self._links is not None and len(self.places) == 1 and self.places[0].watched

    def holds(self) -> bool:
        """Whether the names lead to the same tensors and their memory is there; only for means on one device.

        Memory that was replaced, but is kept by somebody, is noticed by the table when it writes.
        """
        return (
            self._links is not None
            and self._watched
            and self.places[0].group.complete()
            and all(holder.get(key) is found for holder, key, found in self._links)
        )

    def keep(self) -> bool:
        """Prepare to be kept without holding memory that the model may replace; False if that cannot be done."""
        if self._watched and not self._light:
            self.places[0].let_go()
            self._light = True
        return self._light

    def moved(self, now: Mapping[str, Tensor]) -> list[str]:
        """Names of the targets that are missing among the model's tensors or have other memory than then."""
        return [
            name
            for place in self.places
            for target, gone in zip(place.targets, place.group.gone(), strict=True)
            for name in target.names
            if gone or name not in now or now[name].untyped_storage().data_ptr() != target.key[1]
        ]


def _links(
    target: nn.Module | Mapping[str, Tensor], mask: SparseMask, tensors: dict[str, Tensor]
) -> list[Link] | None:
    """Every step from the target to the tensors of the mask: a mapping, a key and what is found there, each once.

    Returns:
        The steps; None for a model that names its tensors otherwise than by its modules.
    """
    if not isinstance(target, nn.Module):
        return [(target, name, tensors[name]) for name in mask]
    links: dict[tuple[int, str], Link] = {}
    for name in mask:
        *path, last = name.split(".")
        module: nn.Module | None = target
        for step in path:
            children: Mapping[str, Any] = module._modules if module is not None else {}
            module = children.get(step)
            links[id(children), step] = (children, step, module)
        if module is None or module._parameters.get(last) is not tensors[name]:
            return None
        links[id(module._parameters), last] = (module._parameters, last, tensors[name])
    return list(links.values())


def _by_device(targets: list[Target]) -> list[list[Target]]:
    devices = dict.fromkeys(target.view.device for target in targets)
    return [[target for target in targets if target.view.device == device] for device in devices]
