"""A model as the files that it is stored in, of which nothing is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tomfisher.models.checkpoint import Checkpoint
from tomfisher.models.load import FINGERPRINT_VALUES, find_place, head_of
from tomfisher.models.pretrained import Place
from tomfisher.models.stored import INDEX, WHOLE, check_files
from tomfisher.ops import Span
from tomfisher.ops.spans import read_entries
from tomfisher.text_files import read_json

KEPT = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".tiktoken",
)  # what lies beside the weights and belongs to the model
_LEFT = ("trainer_state.json", "training_args.json", "adapter_config.json", INDEX)


class ModelFiles(NamedTuple):
    """The files of one model.

    Attributes:
        name: as the user gave it.
        folder: where they lie.
        checkpoint: its tensors, by their stored names.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint

    @property
    def spans(self) -> Mapping[str, Span]:
        """Where each tensor lies."""
        return self.checkpoint.spans

    def beside(self) -> list[Path]:
        """Config, tokenizer and what else is kept of the folder."""
        files = (file for file in self.folder.iterdir() if file.suffix in KEPT and file.name not in _LEFT)
        return sorted(file for file in files if file.is_file())

    def fingerprint(self) -> str | None:
        """As `tomfisher.models.load.fingerprint` of the loaded model; None where its weights are not stored by name."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config: Any = AutoConfig.from_pretrained(self.folder)
        if getattr(config, "auto_map", None):
            return None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        digest = hashlib.sha256()
        for name, parameter in model.named_parameters():
            span = self.spans.get(name)
            if span is None or span.shape != tuple(parameter.shape) or not span.dtype.is_floating_point:
                return None
            digest.update(f"{name}{span.shape}".encode())
            digest.update(head_of(read_entries(span, 0, min(span.numel, FINGERPRINT_VALUES))))
        return digest.hexdigest()


def files_of(name: str) -> ModelFiles:
    """Find the files of a model; those of a hub id are fetched.

    Args:
        name: a folder, a hub id, a built-in name or a .gguf file.

    Raises:
        ValueError: no such model, or its weights are not in safetensors.
    """
    folder = _folder(find_place(name, trust_remote_code=False, revision=None))
    check_files(folder, name)
    index = read_json(folder / INDEX).get("weight_map", {}) if (folder / INDEX).is_file() else None
    if index is None and not (folder / WHOLE).is_file():
        raise ValueError(
            f"Model {name!r} has no {WHOLE} and no {INDEX}. Load it once and call save_pretrained, which writes them."
        )
    files = sorted(set(index.values())) if index else [WHOLE]
    return ModelFiles(name, folder, Checkpoint([folder / file for file in files], index))


def _folder(place: Place) -> Path:
    if Path(place.location).is_dir():
        return Path(place.location)
    from huggingface_hub import snapshot_download

    options = {key: value for key, value in place.options.items() if key != "trust_remote_code"}
    with place.explained("the files"):
        patterns = ["*.safetensors", *(f"*{suffix}" for suffix in KEPT)]
        return Path(snapshot_download(place.location, allow_patterns=patterns, **options))
