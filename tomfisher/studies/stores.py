"""Fisher stores of a study: made once, opened memory-mapped, checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tomfisher.runtime import ranks

if TYPE_CHECKING:
    from tomfisher.fisher import FisherDiagonal

LISTED = 4


def open_store(path: Path) -> FisherDiagonal:
    """Open a store and verify its checksums.

    Raises:
        FileNotFoundError: there is none, or one that is not finished.
        ValueError: it is damaged.
    """
    from tomfisher.fisher import FisherDiagonal

    return FisherDiagonal.load(path, verify=True)


def open_own(path: Path, compute: Callable[[], FisherDiagonal]) -> FisherDiagonal:
    """Open the store of a run folder; compute and save it first when it is not there.

    What was computed is read back from the file, so that a resumed run works on the very same numbers. Of several
    ranks the first one looks and saves, and all read.

    Raises:
        ValueError: the store is damaged.
    """
    team = ranks.current()
    if not team.first("a look at the store", path.exists):
        team.first("writing the store", partial(compute().save, path))
    try:
        return open_store(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{error} Delete the folder {path} and run the same command again: the other parts are kept."
        ) from error


Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def check_belongs(shapes: Shapes, model: nn.Module, what: str) -> None:
    """Refuse a store or mask whose tensors are not parameters of the model, of the same shapes.

    Raises:
        ValueError: with the first few names that differ.
    """
    have = shapes_of(dict(model.named_parameters(remove_duplicate=False)))
    wrong = [
        f"{name} {shape} ({f'there {have[name]}' if name in have else 'not in the model'})"
        for name, shape in shapes.items()
        if have.get(name) != shape
    ]
    if wrong:
        raise ValueError(
            f"{what} is of another model than {_name(model)}: {some(wrong)}. "
            "Use one that was made with this model."
        )


def check_weights(said: Mapping[str, Any], have: Mapping[str, Any], what: str) -> None:
    """Refuse a store that was taken on other weights, where both say what theirs are.

    A model that is read from its files says so after it was read.

    Args:
        said: the model's identity as the store records it.
        have: the identity of the model at hand.
        what: the store, for the message.

    Raises:
        ValueError: the fingerprints of the weights differ.
    """
    if "fp16" in (said.get("dtype"), have.get("dtype")) and said.get("dtype") != have.get("dtype"):
        return  # fingerprints are of the weights rounded to bf16, and fp16 has rounded them before
    there, here = said.get("weights_sha256"), have["weights_sha256"]
    if None not in (there, here) and there != here:
        raise ValueError(
            f"{what} was taken on other weights ({said.get('source')}) than those of {have['source']}, though names "
            "and shapes agree. Take the Fisher diagonal of this very model."
        )


def check_pair(task: Mapping[str, Tensor], control: Mapping[str, Tensor]) -> None:
    """Refuse two stores that do not hold the same tensors.

    Raises:
        ValueError: with the first few names that differ.
    """
    left, right = shapes_of(task), shapes_of(control)
    wrong = [
        f"{name} (task {left.get(name, 'none')}, control {right.get(name, 'none')})"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]
    if wrong:
        raise ValueError(
            f"The task and control stores hold different tensors: {some(wrong)}. "
            "Make both with the same model and the same --params."
        )


def some(items: list[str]) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _name(model: Any) -> str:
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
