"""A GGUF file becomes a plain folder of safetensors, once, in the user's cache directory."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from tomfisher.files import atomic_path, sha256_of_file
from tomfisher.locks import locked
from tomfisher.models.gguf_check import check_copy
from tomfisher.models.gguf_file import merge, named_parts, parts_of
from tomfisher.models.loading_errors import explained
from tomfisher.models.loading_report import check_complete
from tomfisher.models.quiet import quiet_unless_terminal, report_kept
from tomfisher.text_files import read_json

RECORD = "tomfisher.json"
LONGEST_STEM = 100
INSTEAD = "Use another file, or the model's safetensors folder."


def cache_directory() -> Path:
    """Where converted models lie: `$TOMFISHER_CACHE`, or `tomfisher` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("TOMFISHER_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "tomfisher"


def dense_folder(gguf_file: str | os.PathLike[str]) -> Path:
    """Folder with the dequantised float32 weights, config and tokenizer of a GGUF file; made on first use.

    A record in it (`tomfisher.json`) holds the SHA-256 of the file and of everything in the folder; a folder that is
    not what its record says is made again. Before a folder gets its final name, its tensors are compared with those
    that the `gguf` package reads from the file. Processes that need the same folder wait for the first of them.

    Args:
        gguf_file: path of the `.gguf` file, or of any part of a split one, of an architecture that transformers reads.

    Returns:
        A folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Raises:
        ModuleNotFoundError: `gguf` or `accelerate` is not installed.
        ValueError: it is damaged, lacks a part or a tensor, transformers cannot read it, or the copy differs from it.
    """
    file = Path(
        os.path.abspath(Path(gguf_file).expanduser())
    )  # a link keeps its name: it says which part it is
    named = named_parts(file)
    if all(part.is_file() for part in named):
        folder, source = _place_of(named)
        if _holds(folder, source):
            return folder
    _require("gguf", "accelerate")
    parts = parts_of(file)
    folder, source = _place_of(parts)
    locks = cache_directory() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with locked(folder, locks / folder.name, wait=True):
        if not _holds(folder, source):  # another process may have made it meanwhile
            with atomic_path(folder) as temporary:
                _convert(parts, temporary)
                _write_record(temporary, source)
    return folder


def _place_of(parts: list[Path]) -> tuple[Path, dict[str, str]]:
    """The folder of the dense copy of these files, and the SHA-256 of each."""
    source = {part.name: sha256_of_file(part) for part in parts}
    name = f"{parts[0].stem[:LONGEST_STEM]}-{source[parts[0].name][:12]}"
    return cache_directory() / "models" / name, source


def recorded(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a result records of a dense folder: `gguf`, the SHA-256 of each file it was made from; else nothing."""
    if not Path(folder).is_relative_to(cache_directory()):
        return {}
    return {"gguf": read_json(Path(folder) / RECORD)["gguf"]}


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"A GGUF file needs {' and '.join(missing)}. Install with: pip install {' '.join(missing)}"
        )


def _write_record(folder: Path, source: dict[str, str]) -> None:
    hashes = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    (folder / RECORD).write_text(
        json.dumps({"gguf": source, "files": hashes}, indent=1) + "\n", encoding="utf-8"
    )


def _holds(folder: Path, source: dict[str, str]) -> bool:
    """Whether a folder is the whole and undamaged copy of these files."""
    try:
        record = read_json(folder / RECORD)
        return bool(record["gguf"] == source) and all(
            sha256_of_file(folder / name) == digest for name, digest in record["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # there is none, or it is damaged: it is made again


def _convert(parts: list[Path], folder: Path) -> None:
    from transformers import AutoTokenizer

    name = parts[0].name
    folder.parent.mkdir(parents=True, exist_ok=True)
    # alone in a folder: transformers would take an adapter that lies beside the file into the model
    with tempfile.TemporaryDirectory(dir=folder.parent) as place, quiet_unless_terminal():
        file = Path(place) / "model.gguf"
        if len(parts) > 1:
            merge(parts, file)
        else:
            file.symlink_to(parts[0])
        with explained("the GGUF file", name, INSTEAD), report_kept():
            model, info = _read_dense(file)
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file.name)
        check_complete(model, info, name, INSTEAD)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    check_copy(parts, folder)


def _read_dense(file: Path) -> tuple[Any, dict[str, Any]]:
    """The file's model with every weight unpacked to float32 and no trace of quantisation in its config."""
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named and refused by check_complete
        **options,
    )
    packed = [key for key, weight in model.named_parameters() if weight.dtype != torch.float32]
    if packed:
        raise ValueError(f"{len(packed)} weights stayed packed, the first {packed[0]}.")
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, info
