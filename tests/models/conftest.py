"""Tiny models saved as folders, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer_kinds import word_level

WORDS = ("</s>", "<unk>", "the", "cat", "sat", "on", "a", "mat")


class Folder:
    """A model's folder with its checkpoint in one safetensors file, which tests rewrite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def edit_weights(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        file = self.path / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    def edit_config(self, **values: Any) -> None:
        file = self.path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Folder]:
    """Save a model with a tokenizer below the test's folder."""

    def save(model: tf.PreTrainedModel, name: str = "model", **options: Any) -> Folder:
        model.save_pretrained(tmp_path / name, **options)
        word_level(WORDS, eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path / name)
        return Folder(tmp_path / name)

    return save
