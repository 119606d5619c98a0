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


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["</s>", "<unk>", "the", "cat", "sat", "on", "a", "mat"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


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
        word_tokenizer().save_pretrained(tmp_path / name)
        return Folder(tmp_path / name)

    return save
