"""The ways in which a Fisher diagonal can be taken, and the work that it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Way:
    """Where the weights are while the samples pass, and over which processes (ranks) the work is split.

    Attributes:
        stream: each layer is read from disk, sees all samples and leaves, twice a run; else the weights stay.
        samples: groups of ranks that the samples are split over.
        shards: ranks of a node among which every layer's weights and F are sharded (FSDP2).
        tensor: ranks of a node among which every matrix is split (tensor parallel); they share their samples.
        experts: ranks of a node among which the experts of a layer are split.
        prefetch: the next layer is read while one is at work.
        boundary: where a streamed run keeps the inputs of the layers.
    """

    stream: bool = False
    samples: int = 1
    shards: int = 1
    tensor: int = 1
    experts: int = 1
    prefetch: bool = True
    boundary: Literal["ram", "disk"] = "ram"

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.samples * self.tensor

    def __str__(self) -> str:
        parts = ["streamed" if self.stream else "resident"]
        if self.tensor > 1:
            parts.append(f"tensor parallel over {self.tensor}")
        if self.experts > 1:
            parts.append(f"experts split over {self.experts}")
        if self.shards > 1:
            parts.append(f"weights sharded over {self.shards}")
        if self.samples > 1:
            parts.append(f"samples split over {self.samples}")
        if self.stream and self.boundary == "disk":
            parts.append("boundaries on disk")
        if self.stream and not self.prefetch:
            parts.append("nothing read ahead")
        return ", ".join(parts)


@dataclass(frozen=True)
class Work:
    """What passes through the model.

    Attributes:
        samples: of one Fisher diagonal.
        length: tokens of each, all of them supervised (the most that logits can take).
        fishers: diagonals of as many samples each: 2 for task and control.
        tokens_per_batch: budget of a batch, or "auto" as `fisher_diagonal` takes it.
    """

    samples: int = 100
    length: int = 128
    fishers: int = 1
    tokens_per_batch: int | str = "auto"

    def tokens(self, groups: int) -> int:
        """Tokens of all diagonals that the busiest of so many groups of ranks sees."""
        return -(-self.samples // groups) * self.length * self.fishers
