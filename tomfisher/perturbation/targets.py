"""From the names of a mask to the memory that is written: each entry once, however many names it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tomfisher.masks import SparseMask
from tomfisher.masks.store import some
from tomfisher.ops.checks import DTYPES, is_expanded
from tomfisher.perturbation.guard import Key
from tomfisher.runtime.freed import is_freed

Place = tuple[int, int, torch.dtype, torch.Size, tuple[int, ...]]


@dataclass(frozen=True)
class Target:
    """One piece of memory to write.

    Attributes:
        names: the tensors of the mask that are this memory, sorted; several if weights are tied.
        weight: the tensor that the first name leads to.
        view: what is written: the weight, or a vector in memory order of one that is dense but not contiguous.
        index: `[k]` int64, flat row-major positions in `view`, sorted, on its device; k >= 1.
        key: the storage that holds it.
        place: of the view.
    """

    names: tuple[str, ...]
    weight: Tensor
    view: Tensor
    index: Tensor
    key: Key
    place: Place

    @property
    def label(self) -> str:
        """The names for a message."""
        return " = ".join(self.names)

    def positions(self) -> Tensor:
        """The index as flat row-major positions in `weight`, as masks count them."""
        if self.view is self.weight:
            return self.index
        order = _memory_order(self.weight)
        in_memory = torch.unravel_index(self.index, [self.weight.shape[d] for d in order])
        flat = torch.zeros_like(self.index)
        for dimension, size in enumerate(self.weight.shape):
            flat = flat * size + in_memory[order.index(dimension)]
        return flat


class Memory:
    """Where tensors lie, remembered without keeping the memory itself.

    Args:
        tensors: whose memory it is; they themselves are kept.

    Attributes:
        places: `place_of` each of them, then.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._layouts = _layouts(self._tensors)
        # while these are referred to, the identities of the storages are given to no others
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        self._identities = [storage.cdata for storage in self._storages]
        self.places: list[Place] = list(zip(self._identities, *self._layouts, strict=True))

    def unmoved(self) -> bool:
        """Whether each still has that memory, dtype, shape and order.

        An address with a storage that lives on is that storage's: no other can have been given it.
        """
        expired = map(torch.UntypedStorage._expired, self._identities)
        return _layouts(self._tensors) == self._layouts and not any(expired)


def _layouts(
    tensors: list[Tensor],
) -> tuple[list[int], list[torch.dtype], list[torch.Size], list[tuple[int, ...]]]:
    """Column by column what `place_of` gives of each tensor beside its storage: half its time for hundreds of them."""
    dtypes, shapes = [tensor.dtype for tensor in tensors], [tensor.shape for tensor in tensors]
    return list(map(Tensor.data_ptr, tensors)), dtypes, shapes, list(map(Tensor.stride, tensors))


def place_of(tensor: Tensor) -> Place:
    """Where in memory a tensor lies, and how; the first number is its storage's own while the storage exists."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def named_tensors(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight under every one of its names.

    Raises:
        TypeError: `target` is neither a module nor a mapping of tensors.
    """
    if isinstance(target, nn.Module):
        return dict(target.named_parameters(remove_duplicate=False))
    if not isinstance(target, Mapping):
        raise TypeError(
            f"Only a torch.nn.Module or a mapping from names to tensors can be perturbed, "
            f"got {type(target).__name__}."
        )
    return dict(target)


def lookup(target: nn.Module | Mapping[str, Tensor], names: Sequence[str]) -> Callable[[], list[object]]:
    """A function that looks up tensors by name, and all modules on the way; None stands for what is not there.

    Where a tensor or a module was replaced since `lookup` was called, the function returns another object.
    """
    if not isinstance(target, nn.Module):
        return lambda: list(map(target.get, names))
    if type(target).named_parameters is not nn.Module.named_parameters:  # a wrapper with names of its own
        return lambda: list(map(named_tensors(target).get, names))
    modules = dict(target.named_modules(remove_duplicate=False))

    def held(path: str) -> tuple[nn.Module, str]:
        holder, _, leaf = path.rpartition(".")
        return modules[holder], leaf

    inner, leaves = [held(path) for path in modules if path], [held(name) for name in names]
    return lambda: [
        *[module._modules.get(name) for module, name in inner],
        *[module._parameters.get(name) for module, name in leaves],
    ]


def resolve_targets(target: nn.Module | Mapping[str, Tensor], mask: SparseMask) -> list[Target]:
    """Find the memory behind a mask, merging names that share it.

    Returns:
        One `Target` per piece of memory with at least one masked entry, in the order of the mask.

    Raises:
        TypeError: see `named_tensors`; or a weight is quantised, of an integer dtype, or distributed.
        ValueError: the mask names tensors that are not there, of other shapes, on the meta device, or that
            overlap in memory without being the same.
    """
    tensors = named_tensors(target)
    check_names(tensors, mask)
    for name in mask:
        _check_tensor(name, tensors[name])
    shared: dict[Hashable, dict[str, Tensor]] = {}  # positions by name, for each memory
    for name, index in _beside(tensors, mask).items():
        if index.numel():
            tensor = tensors[name]
            shared.setdefault(memory_of(tensor), {})[name] = _in_view(tensor, index)
    targets = [_merge(tensors, indices) for indices in shared.values()]
    _check_overlap(targets)
    return targets


def check_names(tensors: Mapping[str, Tensor], mask: SparseMask) -> None:
    """Refuse a mask of another model, whether the values of this one's tensors are in memory or not.

    Raises:
        TypeError: what it names is no tensor.
        ValueError: it names tensors that are not there, or of other shapes.
    """
    if missing := [name for name in mask if name not in tensors]:
        raise ValueError(
            f"The mask names {len(missing)} of {len(mask)} tensors that are not there: {some(missing)}. "
            f"It must be of this model, which has {some(list(tensors)) or 'no tensor'}."
        )
    for name in mask:
        if not isinstance(tensors[name], Tensor):
            raise TypeError(f"{name!r} must be a tensor, got {type(tensors[name]).__name__}.")
    differing = [name for name in mask if tuple(tensors[name].shape) != mask.shapes[name]]
    if differing:
        shapes = [f"{n} {mask.shapes[n]} in the mask, {tuple(tensors[n].shape)} here" for n in differing]
        raise ValueError(
            f"Shapes of {len(differing)} tensors differ: {some(shapes)}. The mask must be of this model."
        )


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ValueError(
            f"{name!r} is on the meta device: it holds no values. Load the weights first; a model that accelerate "
            "offloads, without offloading."
        )
    if is_freed(tensor):
        raise ValueError(
            f"{name!r} is still in its file: open_model reads it when it is asked. Load it first, with "
            "OpenedModel.load, or the whole model with tomfisher.models.load_model."
        )
    if tensor.is_quantized or tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name!r} has dtype {tensor.dtype}: only float16, bfloat16, float32 and float64 weights can be "
            "perturbed. Load the model without quantisation."
        )
    if tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor):
        raise TypeError(
            f"{name!r} is a {type(tensor).__name__} of layout {tensor.layout}: only plain dense tensors can "
            "be perturbed. Load the model unsharded and without quantisation."
        )
    if not tensor.is_contiguous() and is_expanded(tensor):
        raise ValueError(
            f"{name!r} is an expanded view: its entries share memory. Give it memory with clone()."
        )


def _beside(tensors: dict[str, Tensor], mask: SparseMask) -> dict[str, Tensor]:
    """The mask's positions on the devices of their tensors: one transfer per device."""
    indices = dict(mask.items())
    elsewhere: dict[torch.device, list[str]] = {}
    for name, index in indices.items():
        if index.device != tensors[name].device:
            elsewhere.setdefault(tensors[name].device, []).append(name)
    for device, names in elsewhere.items():
        joined = torch.cat([indices[name] for name in names]).to(device)
        parts = joined.split([indices[name].numel() for name in names])
        indices.update(zip(names, parts, strict=True))
    return indices


def _memory_order(tensor: Tensor) -> list[int]:
    return sorted(range(tensor.ndim), key=lambda d: tensor.stride(d), reverse=True)


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor as it is if it is contiguous or has gaps, else as a vector in memory order."""
    if tensor.is_contiguous():
        return tensor
    ordered = tensor.detach().permute(_memory_order(tensor))
    return ordered.view(-1) if ordered.is_contiguous() else tensor


def memory_of(tensor: Tensor) -> Hashable:
    """The same for tensors that are one vector in memory, whatever their order; the place of one with gaps."""
    view = _in_memory(tensor)
    place = place_of(view)
    return (*place[:3], view.numel()) if view.is_contiguous() else place


def _in_view(tensor: Tensor, index: Tensor) -> Tensor:
    """Row-major positions in the tensor as positions in its `_in_memory`."""
    return index if _in_memory(tensor) is tensor else _offsets(tensor, index).sort().values


def _offsets(tensor: Tensor, index: Tensor) -> Tensor:
    """Distance of each entry from the tensor's first, in entries."""
    coordinates = torch.unravel_index(index, tensor.shape)
    steps = [c * step for c, step in zip(coordinates, tensor.stride(), strict=True)]
    return torch.stack(steps).sum(0) if steps else index


def _merge(tensors: Mapping[str, Tensor], indices: dict[str, Tensor]) -> Target:
    """One target for all names of one memory, with their positions in it."""
    names = tuple(sorted(indices))
    index = indices[names[0]] if len(names) == 1 else torch.cat(list(indices.values())).unique()
    weight = tensors[names[0]]
    view = _in_memory(weight)
    key = (str(weight.device), weight.untyped_storage().data_ptr())
    return Target(names, weight, view, index, key, place_of(view))


def _check_overlap(targets: list[Target]) -> None:
    """Refuse different views of one storage whose masked entries meet: no order of writing is right."""
    by_storage: dict[Key, list[Target]] = {}
    for target in targets:
        by_storage.setdefault(target.key, []).append(target)
    for together in by_storage.values():
        if len(together) == 1:
            continue
        addresses = [t.view.data_ptr() + t.view.element_size() * _offsets(t.view, t.index) for t in together]
        if torch.cat(addresses).unique().numel() < sum(a.numel() for a in addresses):
            raise ValueError(
                f"{some([t.label for t in together])} are different views that overlap in memory, and the "
                "mask names an entry under both. Mask one of them only."
            )
