"""A GGUF file becomes a plain folder of safetensors, once, in the user's cache directory."""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path
from typing import Any

import torch

from tomfisher.files import atomic_path, sha256_of_file
from tomfisher.models.quiet import quiet_unless_terminal

PROBE_LENGTH = 32


def cache_directory() -> Path:
    """Where converted models lie: `$TOMFISHER_CACHE`, or `tomfisher` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("TOMFISHER_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "tomfisher"


def dense_folder(gguf_file: str | os.PathLike[str]) -> Path:
    """Folder with the dequantised float32 weights, config and tokenizer of a GGUF file; made on first use.

    The folder's name holds the first 12 digits of the file's SHA-256, so another file never reuses it.
    Before it gets its final name, the folder is loaded back and must give bit-identical logits.

    Args:
        gguf_file: path of the `.gguf` file, of an architecture that transformers reads.

    Returns:
        A folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Raises:
        ModuleNotFoundError: `gguf` or `accelerate` is not installed.
        ValueError: transformers cannot read the file, or the copy differs from the original.
    """
    file = Path(gguf_file).expanduser().resolve()
    folder = cache_directory() / "models" / f"{file.stem}-{sha256_of_file(file)[:12]}"
    if not (folder / "config.json").is_file():
        _require("gguf", "accelerate")
        with quiet_unless_terminal(), atomic_path(folder) as temporary:
            _convert(file, temporary)
    return folder


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"A GGUF file needs {' and '.join(missing)}. Install with: pip install {' '.join(missing)}"
        )


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = _read_dense(file)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, LookupError, RuntimeError, struct.error) as error:
        raise ValueError(
            f"transformers cannot read {file.name}: {error}. It is damaged, or no GGUF file of an architecture that "
            "transformers supports. Use another, or the model's safetensors folder."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    ids = torch.arange(PROBE_LENGTH)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        same = torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    if not same:
        raise ValueError(
            f"The dense copy of {file.name} gives other logits than the file itself, so it was not kept. "
            "Please report this with the file and the version of transformers."
        )


def _read_dense(file: Path) -> Any:
    """The file's model with every weight unpacked to float32 and no trace of quantisation in its config."""
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, **options
    ).eval()
    packed = [name for name, weight in model.named_parameters() if weight.dtype != torch.float32]
    if packed:
        raise ValueError(f"{len(packed)} weights stayed packed, the first {packed[0]}")
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
