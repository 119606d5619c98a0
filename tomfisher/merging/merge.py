"""`merge`: one model of several fine-tuned ones, written file by file from parts of theirs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.files import atomic_path, refuse_foreign
from tomfisher.merging.average import fisher_average
from tomfisher.merging.sources import Source, check_alike, open_source
from tomfisher.models.stored import INDEX
from tomfisher.ops import Span
from tomfisher.ops.spans import read_entries
from tomfisher.progress import progress_bar
from tomfisher.provenance import versions
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.text_files import read_json

RECORD = "merge.json"
PART = 1 << 18  # entries that are merged at once


class Merged(NamedTuple):
    """What was written.

    Attributes:
        path: the folder.
        by_fisher: names of the tensors that were averaged with Fisher diagonals.
        plainly: names of those that no store holds, averaged with the coefficients alone.
    """

    path: Path
    by_fisher: tuple[str, ...]
    plainly: tuple[str, ...]


@plain_torch()
def merge(
    models: Sequence[str],
    stores: Sequence[str | os.PathLike[str]] | None,
    output_path: str | os.PathLike[str],
    coefficients: Sequence[float] | None = None,
    floor: float = 0.0,
    progress: bool = True,
) -> Merged:
    """Average fine-tuned models, each weight with the Fisher diagonal of each model.

    `θ = Σ_m λ_m (F_m / N_m + floor) θ_m / Σ_m λ_m (F_m / N_m + floor)`, in float64, then rounded to the model's
    dtype; N_m is the number of samples of F_m. A weight that no sample of any model reached, and tensors that the
    stores do not hold (embeddings and norms, with the default `params`), get `Σ_m λ_m θ_m / Σ_m λ_m`.

    The new files are laid out like those of the first model, and a part of a tensor is read, averaged and written at
    a time: memory does not grow with the model. Config and tokenizer are the first model's, as are dtypes and tensors
    of whole numbers.

    Args:
        models: two or more folders, hub ids, built-in names or .gguf files, of one architecture and vocabulary.
        stores: a Fisher store of each model, in the same order (`tomfisher fisher`), all of the same parameters and
            definition; None averages plainly.
        output_path: the folder to write; an earlier merge there is replaced.
        coefficients: λ of each model, positive; None is 1 for each.
        floor: added to every averaged F, so that weights that hardly matter to any model are averaged too.
        progress: show a bar.

    Returns:
        The folder, and which tensors were averaged how.

    Raises:
        FileExistsError: `output_path` holds something else.
        FileNotFoundError: no such store.
        FloatingPointError: a weight or an F is NaN, infinite or, of F, negative: with model and tensor.
        ValueError: models or stores that do not fit together, with the names; or an argument out of range.

    Source:
        Matena and Raffel, arXiv 2111.09832. They set F to at least 1e-6; `floor` is added.
    """
    weights = _checked(models, stores, coefficients, floor)
    refuse_other(output_path)
    sources = [open_source(name, stores[i] if stores else None) for i, name in enumerate(models)]
    check_alike(sources)
    _check_stores(sources, stores)
    total = sum(span.numel for span in sources[0].spans.values())
    with (
        atomic_path(output_path) as folder,
        progress_bar(total=total, desc="Merging", unit="weight", enabled=progress) as bar,
    ):
        folder.mkdir()
        for file in sources[0].files.checkpoint.files:
            _write(file, folder / file.name, sources, weights, floor, bar)
        for file in sources[0].files.beside():
            shutil.copyfile(file, folder / file.name)
        if (sources[0].files.folder / INDEX).is_file():
            shutil.copyfile(sources[0].files.folder / INDEX, folder / INDEX)
        record = _record(sources, stores, weights, floor)
        record["files"] = sorted(file.name for file in folder.iterdir())
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        refuse_other(output_path)
    covered = set(sources[0].store or ())
    floats = [name for name, span in sources[0].spans.items() if span.dtype.is_floating_point]
    by_fisher = tuple(name for name in floats if name in covered)
    return Merged(Path(output_path), by_fisher, tuple(name for name in floats if name not in covered))


def refuse_other(path: str | os.PathLike[str]) -> None:
    """Refuse to replace a folder that holds more than an earlier merge.

    Raises:
        FileExistsError: it does.
    """
    file = Path(path) / RECORD
    record = read_json(file) if file.is_file() else {}
    files = record.get("files", []) if isinstance(record, dict) else []
    refuse_foreign(path, RECORD, [RECORD, *files].__contains__, "merged model")


def _write(
    old: Path, new: Path, sources: Sequence[Source], weights: Sequence[float], floor: float, bar: Any
) -> None:
    """Write one file with the header of the first model's, and its tensors in their order."""
    inside = [(name, span) for name, span in sources[0].spans.items() if Path(span.path) == old]
    inside.sort(key=lambda item: item[1].offset)
    with new.open("wb") as file:
        with old.open("rb") as header:
            length = header.read(8)
            file.write(length + header.read(int.from_bytes(length, "little")))
        for name, span in inside:
            for start in range(0, span.numel, PART):
                stop = min(start + PART, span.numel)
                file.write(_bytes(_part(name, span, start, stop, sources, weights, floor)))
                bar.update(stop - start)


def _part(
    name: str,
    span: Span,
    start: int,
    stop: int,
    sources: Sequence[Source],
    weights: Sequence[float],
    floor: float,
) -> Tensor:
    """The merged entries from `start` to `stop` of a tensor."""
    if not span.dtype.is_floating_point:
        return read_entries(span, start, stop)
    values = [read_entries(source.spans[name], start, stop) for source in sources]
    for source, value in zip(sources, values, strict=True):
        if not value.isfinite().all():
            raise FloatingPointError(f"{name} of {source.name} holds NaN or infinity. Merge sound models.")
    fishers = [mean for source in sources if (mean := _fisher(source, name, start, stop)) is not None]
    merged = fisher_average(values, fishers or None, weights, floor)
    return merged.to(span.dtype)


def _fisher(source: Source, name: str, start: int, stop: int) -> Tensor | None:
    """F of some entries, averaged over samples; None where the store does not hold the tensor."""
    if source.store is None or name not in source.store:
        return None
    span = source.store.span(name)
    assert span is not None  # the store was opened from the disk
    sums = read_entries(span, start, stop).double()
    if not bool((sums.isfinite() & (sums >= 0)).all()):
        raise FloatingPointError(
            f"The store of {source.name} holds NaN, infinity or a negative F in {name}. Make the store again."
        )
    return sums / source.store.num_samples


def _bytes(values: Tensor) -> bytes:
    return bytes(values.contiguous().view(torch.uint8).numpy())


def _checked(
    models: Sequence[str],
    stores: Sequence[Any] | None,
    coefficients: Sequence[float] | None,
    floor: float,
) -> list[float]:
    """The coefficients.

    Raises:
        ValueError: an argument is out of range.
    """
    if len(models) < 2:
        raise ValueError(f"A merge takes two models or more, got {len(models)}.")
    if stores is not None and len(stores) != len(models):
        raise ValueError(
            f"Each model needs its own Fisher store, in the same order: got {len(models)} models and {len(stores)} "
            "stores. Make one with `tomfisher fisher`."
        )
    given = [1.0] * len(models) if coefficients is None else [float(c) for c in coefficients]
    if len(given) != len(models) or not all(0 < c < float("inf") for c in given):
        raise ValueError(
            f"coefficients must be {len(models)} positive numbers, one for each model, got {given}."
        )
    if not 0 <= floor < float("inf"):
        raise ValueError(f"floor must be 0 or a positive number such as 1e-8, got {floor}.")
    return given


def _check_stores(sources: Sequence[Source], paths: Sequence[Any] | None) -> None:
    """Refuse stores of other parameters, or of another definition, than the first."""
    if paths is None:
        return
    first = sources[0].store
    assert first is not None
    for source, path in zip(sources, paths, strict=True):
        store = source.store
        assert store is not None
        if odd := sorted(set(first) ^ set(store)):
            raise ValueError(
                f"The stores {paths[0]} and {path} hold different tensors, such as {odd[0]}. Make all of them with the "
                "same --params."
            )
        keys = ("reduction", "labels")
        differing = [key for key in keys if first.definition.get(key) != store.definition.get(key)]
        if differing:
            raise ValueError(
                f"The stores {paths[0]} and {path} are defined differently in {', '.join(differing)}. Make all of them "
                "with the same settings."
            )


def _record(
    sources: Sequence[Source], stores: Sequence[Any] | None, weights: Sequence[float], floor: float
) -> dict[str, Any]:
    each = [
        {
            "model": source.name,
            "files": source.files.checkpoint.facts(),
            "coefficient": weight,
            "store": None if stores is None else os.fspath(stores[i]),
            "num_samples": None if source.store is None else source.store.num_samples,
        }
        for i, (source, weight) in enumerate(zip(sources, weights, strict=True))
    ]
    formula = "Fisher-weighted average, arXiv 2111.09832"
    return {"formula": formula, "merged": each, "floor": floor, "versions": versions()}
