"""Whether the weights in a folder's files are those of one model and floating-point numbers, and are all there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tomfisher.models.loading_errors import explained
from tomfisher.models.loading_report import first_of
from tomfisher.runtime.parts import local_of
from tomfisher.text_files import read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPLAINED = ("quantization_config", "compression_config", "auto_map")  # of integers, or the model's own code


def check_files(folder: Path, source: str) -> None:
    """Refuse safetensors of which transformers would make another model than was saved.

    Args:
        folder: a model's folder.
        source: the model's name, for messages.

    Raises:
        ValueError: a whole file lies beside shards of another list of files, a file is damaged, or a matrix is stored
            in integers that nothing says how to read.
    """
    if (folder / WHOLE).is_file() and (folder / INDEX).is_file():
        files = set(read_json(folder / INDEX).get("weight_map", {}).values())
        if files != {WHOLE}:
            raise ValueError(
                f"Model {source!r} is there twice: {WHOLE}, and {INDEX} with {len(files)} other files. Which of the "
                "two is meant cannot be determined. Take one of them out of the folder."
            )
    settings = read_json(folder / "config.json")
    if any(key in part for part in (settings, settings.get("text_config") or {}) for key in EXPLAINED):
        return
    with explained("the weights", source, f"Check the files in {source}."):
        integers = [name for file in sorted(folder.glob("model*.safetensors")) for name in _integers(file)]
    if integers:
        raise ValueError(
            f"Model {source!r} stores {len(integers)} matrices in integers, {first_of(integers)}, and its config has "
            "no quantization_config that says how to read them. Use the model's unquantized weights."
        )


def zero_matrices(model: nn.Module, source: str) -> list[str]:
    """Names of the weight matrices that hold nothing but zeros; said in a warning.

    A download that reserves its space and then stops leaves them; so does a part of a model that was set to zero.
    """
    zero = [name for name, weight in model.named_parameters() if is_zero_matrix(weight)]
    warn_of_zeros(zero, source)
    return zero


def is_zero_matrix(weight: Tensor) -> bool:
    """Whether a weight has two dimensions or more and holds nothing but zeros, as far as this rank has it."""
    if weight.ndim < 2 or not weight.is_floating_point() or weight.numel() == 0:
        return False
    values = local_of(weight)
    return not values.flatten()[:64].any() and not values.any()


def warn_of_zeros(zero: list[str], source: str) -> None:
    """Say which weight matrices are all zero, if any."""
    if zero:
        warnings.warn(
            f"{len(zero)} weight matrices of {source!r} are all zero, {first_of(zero)}. Unless the model was saved "
            "that way, its files are damaged, by an interrupted download for example. Fetch them again.",
            stacklevel=3,
        )


def _integers(file: Path) -> list[str]:
    """Names of the tensors of two or more dimensions in a safetensors file that are whole numbers."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        slices: dict[str, Any] = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        return [
            name
            for name, part in slices.items()
            if part.get_dtype()[:1] in "IU" and len(part.get_shape()) > 1 and name.endswith("weight")
        ]
