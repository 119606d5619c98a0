"""A checkpoint of random weights in the shape of a known model, written one decoder layer at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tomfisher.benchmarks.models import CONFIGS
from tomfisher.fisher import select_parameters
from tomfisher.models.load import DTYPES

STD = 0.02  # of the weights, as Llama's own initialisation
INDEX = "model.safetensors.index.json"
_FLOAT32 = 4
# What the rules and the probe send along with the samples, in tokens: so many of the longest samples, and short cuts.
_ASKED_ROWS, _ASKED_TOKENS = 16, 512


@dataclass(frozen=True)
class Shape:
    """A shape in `CONFIGS`, or its first layers.

    Attributes:
        name: in `CONFIGS`.
        layers: how many decoder layers.
        whole: how many the named model has.
        dtype: of the weights: "bf16", "fp16" or "fp32".
        parameters: shape of every distinct parameter, by name.
        selected: names of those that a streamed Fisher is about ("decoder-linear").
        hidden: width of the hidden states.
    """

    name: str
    layers: int
    whole: int
    dtype: str
    parameters: Mapping[str, tuple[int, ...]]
    selected: tuple[str, ...]
    hidden: int

    @classmethod
    def of(cls, name: str, dtype: str, layers: int | None = None) -> Shape:
        """The shape of this name.

        Raises:
            ValueError: there is none, or it has fewer layers.
        """
        if name not in CONFIGS:
            raise ValueError(f"shape must be among {', '.join(CONFIGS)}, got {name!r}.")
        whole = CONFIGS[name]["num_hidden_layers"]
        if layers is not None and layers > whole:
            raise ValueError(f"{name} has {whole} layers, so --layers {layers} is too many.")
        with torch.device("meta"):
            model = LlamaForCausalLM(_config(name, layers or whole))
        parameters = {key: tuple(p.shape) for key, p in model.named_parameters()}
        selected = tuple(select_parameters(model, "decoder-linear"))
        return cls(name, layers or whole, whole, dtype, parameters, selected, model.config.hidden_size)

    @property
    def is_slice(self) -> bool:
        """Whether it is the named model's first layers only."""
        return self.layers < self.whole

    @property
    def numbers(self) -> int:
        """Weights in all."""
        return sum(map(_numel, self.parameters.values()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.numbers * DTYPES[self.dtype].itemsize

    @property
    def fisher_bytes(self) -> int:
        """Bytes of F in float32."""
        return _FLOAT32 * sum(_numel(self.parameters[name]) for name in self.selected)

    def hidden_bytes(self, samples: int, tokens: int) -> int:
        """About the bytes of all hidden states that a streamed Fisher keeps: at every layer, and two gradients."""
        sent = (samples + _ASKED_ROWS) * tokens + _ASKED_TOKENS
        return (self.layers + 3) * sent * self.hidden * DTYPES[self.dtype].itemsize

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "shape": self.name,
            "layers": self.layers,
            "of_layers": self.whole,
            "slice": self.is_slice,
            "dtype": self.dtype,
            "parameters": self.numbers,
            "weight_bytes": self.weight_bytes,
            "fisher_bytes": self.fisher_bytes,
        }


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> None:
    """Write config, shards and index, with one shard in memory at a time: what is outside the layers, then each layer.

    Args:
        shape: whose weights.
        folder: a new one; nothing is left of it where writing fails.
        seed: of the weights.
    """
    folder.mkdir(parents=True)
    try:
        _write(shape, folder, torch.Generator().manual_seed(seed))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def is_checkpoint_of(shape: Shape, folder: Path) -> bool:
    """Whether an earlier run has left these weights here, whole: the index is written last."""
    if not (folder / INDEX).exists():
        return False
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return index["metadata"]["total_size"] == shape.weight_bytes and set(index["weight_map"]) == set(
        shape.parameters
    )


def _write(shape: Shape, folder: Path, generator: torch.Generator) -> None:
    config = _config(shape.name, shape.layers)
    config.architectures, config.dtype = ["LlamaForCausalLM"], DTYPES[shape.dtype]
    config.save_pretrained(folder)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(shape)):
        file = f"model-{number + 1:05d}-of-{shape.layers + 1:05d}.safetensors"
        save_file(
            {name: _random(name, shape, generator) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": shape.weight_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _shards(shape: Shape) -> Iterator[list[str]]:
    prefixes = [f"model.layers.{number}." for number in range(shape.layers)]
    yield [name for name in shape.parameters if not name.startswith("model.layers.")]
    for prefix in prefixes:
        yield [name for name in shape.parameters if name.startswith(prefix)]


def _random(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(shape.parameters[name], dtype=DTYPES[shape.dtype])
    return values.fill_(1) if name.endswith("norm.weight") else values.normal_(0, STD, generator=generator)


def _config(name: str, layers: int) -> LlamaConfig:
    return LlamaConfig(**{**CONFIGS[name], "num_hidden_layers": layers})


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
