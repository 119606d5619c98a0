"""What is merged: models as their safetensors files, which are read a part at a time, and the store of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tomfisher.fisher import FisherDiagonal
from tomfisher.models.checkpoint import Checkpoint
from tomfisher.models.load import FINGERPRINT_VALUES, find_place, head_of
from tomfisher.models.loading_report import first_of
from tomfisher.models.pretrained import Place
from tomfisher.models.stored import INDEX, WHOLE, check_files
from tomfisher.ops import Span
from tomfisher.text_files import read_json

KEPT = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".tiktoken",
)  # what lies beside the weights and belongs to the model
_LEFT = ("trainer_state.json", "training_args.json", "adapter_config.json", INDEX)


class Source(NamedTuple):
    """One of the models.

    Attributes:
        name: as the user gave it.
        folder: where its files lie.
        checkpoint: its tensors, by their stored names.
        store: its Fisher diagonal, opened from the disk.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint
    store: FisherDiagonal | None

    @property
    def spans(self) -> Mapping[str, Span]:
        """Where each tensor lies."""
        return self.checkpoint.spans

    def beside(self) -> list[Path]:
        """Config, tokenizer and what else is kept of the folder."""
        return sorted(
            file
            for file in self.folder.iterdir()
            if file.suffix in KEPT and file.name not in _LEFT and file.is_file()
        )


def open_source(name: str, store: str | os.PathLike[str] | None) -> Source:
    """Find a model's files, and open its store, all of whose checksums are verified.

    Args:
        name: a folder, a hub id, a built-in name or a .gguf file.
        store: folder of a Fisher store; None for none.

    Raises:
        FileNotFoundError: no such store.
        ValueError: no such model, its weights are not in safetensors, or the store was taken on other weights.
    """
    place = find_place(name, trust_remote_code=False, revision=None)
    folder = _folder(place)
    check_files(folder, name)
    index = read_json(folder / INDEX).get("weight_map", {}) if (folder / INDEX).is_file() else None
    files = sorted(set(index.values())) if index else [WHOLE]
    if index is None and not (folder / WHOLE).is_file():
        raise ValueError(
            f"Model {name!r} has no {WHOLE} and no {INDEX}. Load it once and call save_pretrained, which writes them."
        )
    source = Source(
        name,
        folder,
        Checkpoint([folder / file for file in files], index),
        None if store is None else FisherDiagonal.load(store, verify=True),
    )
    _check_store(source, store)
    return source


def _folder(place: Place) -> Path:
    if Path(place.location).is_dir():
        return Path(place.location)
    from huggingface_hub import snapshot_download

    options = {key: value for key, value in place.options.items() if key != "trust_remote_code"}
    with place.explained("the files"):
        patterns = ["*.safetensors", *(f"*{suffix}" for suffix in KEPT)]
        return Path(snapshot_download(place.location, allow_patterns=patterns, **options))


def check_alike(sources: Sequence[Source]) -> None:
    """Refuse models whose tensors have other names or shapes than those of the first.

    Raises:
        ValueError: naming some of them.
    """
    first = sources[0]
    for other in sources[1:]:
        wrong = [
            f"{name} {span.shape} (there {other.spans[name].shape if name in other.spans else 'none'})"
            for name, span in first.spans.items()
            if name not in other.spans or other.spans[name].shape != span.shape
        ] + [f"{name} (not in the first)" for name in other.spans if name not in first.spans]
        if wrong:
            raise ValueError(
                f"{other.name} and {first.name} hold different tensors, {first_of(wrong)}. Only models of one "
                "architecture and vocabulary can be merged, such as fine-tuned ones of one model."
            )


def _check_store(source: Source, path: str | os.PathLike[str] | None) -> None:
    if source.store is None:
        return
    wrong = [
        f"{name} {shape} (there {source.spans[name].shape if name in source.spans else 'none'})"
        for name, shape in source.store.shapes.items()
        if name not in source.spans or source.spans[name].shape != shape
    ]
    if wrong:
        raise ValueError(
            f"The store {path} and the files of {source.name} hold different tensors, {first_of(wrong)}. Give the "
            "stores in the order of the models. What transformers makes of several stored weights cannot be merged."
        )
    model = source.store.metadata.get("model", {})
    said = (
        None if model.get("dtype") == "fp16" else model.get("weights_sha256")
    )  # fp16 has rounded them before
    if said is not None and _fingerprint(source) not in (None, said):
        raise ValueError(
            f"The store {path} was taken on other weights than those of {source.name}. Give the stores in the order of "
            "the models."
        )


def _fingerprint(source: Source) -> str | None:
    """As `tomfisher.models.load.fingerprint` of the loaded model; None where its weights are not stored by name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(source.folder)
    if getattr(config, "auto_map", None):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        span = source.spans.get(name)
        if span is None or span.shape != tuple(parameter.shape) or not span.dtype.is_floating_point:
            return None
        digest.update(f"{name}{span.shape}".encode())
        digest.update(head_of(read_entries(span, 0, min(span.numel, FINGERPRINT_VALUES))))
    return digest.hexdigest()


def read_entries(span: Span, start: int, stop: int) -> Tensor:
    """Some entries of a tensor in a file, by a plain read, so that no page of the file counts as the process's.

    Args:
        span: where the tensor lies.
        start: flat index of the first entry.
        stop: flat index behind the last.

    Returns:
        A vector of `stop - start` entries.

    Raises:
        ValueError: the file ends before.
    """
    size = span.dtype.itemsize
    data = np.fromfile(span.path, np.uint8, (stop - start) * size, offset=span.offset + start * size)
    if data.size != (stop - start) * size:
        raise ValueError(f"{span.path} ends before its tensors do: it was cut off after it was opened.")
    return torch.from_numpy(data).view(span.dtype)
