"""F as weights of a k-means quantiser: the checkpoint of squared gradients that SqueezeLLM reads.

SqueezeLLM clusters each row of a weight with F as the weight of each entry (Kim et al., arXiv 2306.07629). Its
`chunk_models.py` loads a checkpoint "in the same format as the original model's, with the weights replaced by the
gradient square": a folder that transformers loads, in which F stands under the weights' names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.files import atomic_path, refuse_foreign
from tomfisher.fisher.belongs import check_of_files
from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.shards import lay_out
from tomfisher.fisher.store import INDEX
from tomfisher.models.files_of import ModelFiles, files_of
from tomfisher.ops.spans import read_entries
from tomfisher.progress import progress_bar
from tomfisher.text_files import read_json

RECORD = "squeezellm.json"
PART = 1 << 20  # entries that are copied at once


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the folder.
        filled: names of the tensors that hold F.
        zero: names of those that the store does not hold, which are zero.
    """

    path: Path
    filled: tuple[str, ...]
    zero: tuple[str, ...]


def export_squeezellm(
    model: str, store: str | os.PathLike[str], output_path: str | os.PathLike[str], progress: bool = True
) -> Exported:
    """Write a copy of a model in float32 whose weights are their Fisher diagonal, part by part.

    Sums over samples, as the store holds them: a factor does not change the clusters. Tensors that the store lacks
    (embeddings and norms) are zero; SqueezeLLM reads the linear weights of the decoder's layers alone.

    Args:
        model: a folder, a hub id, a built-in name or a .gguf file.
        store: of this model (`tomfisher fisher`).
        output_path: the folder to write; an earlier export there is replaced.
        progress: show a bar.

    Returns:
        The folder, and which tensors hold what.

    Raises:
        FileExistsError: `output_path` holds something else.
        FileNotFoundError: no such store.
        ValueError: no such model, or the store is of another one.
    """
    refuse_other(output_path)
    files = files_of(model)
    fisher = FisherDiagonal.load(store, verify=True)
    check_of_files(fisher, store, files)
    shapes = {name: span.shape for name, span in files.spans.items() if span.dtype.is_floating_point}
    layout = lay_out(shapes)
    with (
        atomic_path(output_path) as folder,
        progress_bar(total=len(shapes), desc="Exporting", unit="tensor", enabled=progress) as bar,
    ):
        folder.mkdir()
        for name, shard in layout.shards.items():
            with (folder / name).open("wb") as file:
                file.write(shard.header)
                for tensor in sorted(shard.starts, key=shard.starts.__getitem__):
                    for part in _parts(fisher, tensor, torch.Size(shapes[tensor]).numel()):
                        file.write(part.numpy().tobytes())
                    bar.update(1)
        (folder / INDEX).write_text(json.dumps(layout.index, indent=2) + "\n", encoding="utf-8")
        _copy_rest(files, folder)
        record = {"model": model, "store": os.fspath(store), "num_samples": fisher.num_samples}
        written = sorted(item.name for item in folder.iterdir())
        (folder / RECORD).write_text(
            json.dumps({**record, "files": written}, indent=1) + "\n", encoding="utf-8"
        )
        refuse_other(output_path)
    filled = tuple(name for name in shapes if name in fisher)
    return Exported(Path(output_path), filled, tuple(name for name in shapes if name not in fisher))


def refuse_other(path: str | os.PathLike[str]) -> None:
    """Refuse to replace a folder that holds more than an earlier export.

    Raises:
        FileExistsError: it does.
    """
    file = Path(path) / RECORD
    record = read_json(file) if file.is_file() else {}
    files = record.get("files", []) if isinstance(record, dict) else []
    refuse_foreign(path, RECORD, [RECORD, *files].__contains__, "export for SqueezeLLM")


def _parts(fisher: FisherDiagonal, name: str, numel: int) -> Iterator[Tensor]:
    span = fisher.span(name) if name in fisher else None
    for start in range(0, numel, PART):
        stop = min(start + PART, numel)
        yield torch.zeros(stop - start) if span is None else read_entries(span, start, stop)


def _copy_rest(files: ModelFiles, folder: Path) -> None:
    """Config and tokenizer; the config says float32, since F would vanish in the float16 of most models."""
    for file in files.beside():
        shutil.copyfile(file, folder / file.name)
    config: dict[str, Any] = read_json(folder / "config.json")
    both = {
        "dtype": "float32",
        "torch_dtype": "float32",
    }  # the name of today's transformers, and that of older ones
    (folder / "config.json").write_text(json.dumps({**config, **both}, indent=2) + "\n", encoding="utf-8")
