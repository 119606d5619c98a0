"""Which of a model's tables of frequencies turns the queries and keys of a layer, and which dimensions go together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

Layout = Literal["half", "interleaved"]
LAYOUTS: tuple[Layout, ...] = ("half", "interleaved")
_TABLE, _BASE = "inv_freq", 10000.0


@dataclass(frozen=True)
class Rotary:
    """How a layer rotates its queries and keys.

    Args:
        layout: "half" or "interleaved".
        frequencies: float32 `[P]`, radians per token of each pair, with the family's scaling applied.
        attention_factor: what cosine and sine are multiplied by (YaRN, LongRoPE); 1 elsewhere.
        base: the base of the geometric sequence (rope_theta).
        scaling: "default", "llama3", "yarn", ...
        start: the first dimension of a head that is rotated; those before it are not (DeepSeek).
        backwards: whether pairs turn the other way (NanoChat).
    """

    layout: Layout
    frequencies: Tensor
    attention_factor: float
    base: float
    scaling: str
    start: int = 0
    backwards: bool = False

    @property
    def dim(self) -> int:
        """How many dimensions of a head are rotated."""
        return 2 * len(self.frequencies)

    @property
    def wavelengths(self) -> Tensor:
        """Float32 `[P]`, tokens that each pair takes for one turn."""
        return 2 * math.pi / self.frequencies

    @property
    def pairs(self) -> Tensor:
        """int64 `[P, 2]`, the two dimensions of a head that each frequency rotates, the first towards the second."""
        dims = torch.arange(self.start, self.start + self.dim, device="cpu")
        pairs = dims.view(-1, 2) if self.layout == "interleaved" else dims.view(2, -1).T
        return pairs.flip(1) if self.backwards else pairs

    def turned(self, x: Tensor) -> Tensor:
        """What stands at position 0 turned to each position, the way a rotary embedding does it.

        Args:
            x: `[..., T, D]`; every position holds what position 0 would.

        Returns:
            The same shape, float64.
        """
        i, j = self.pairs.T.to(x.device)
        wide = x.double()
        turns = torch.arange(x.shape[-2], device=x.device)[:, None] * self.frequencies.to(wide)
        cos, sin = turns.cos(), turns.sin()
        out = wide.clone()
        out[..., i] = wide[..., i] * cos - wide[..., j] * sin
        out[..., j] = wide[..., j] * cos + wide[..., i] * sin
        return out


def turns(seen: Tensor) -> bool:
    """Whether queries or keys `[..., T, D]` of equal tokens point elsewhere from position to position."""
    return _distance(seen, seen[..., :1, :].expand_as(seen)) > tolerance(seen.dtype)


def find_rotary(model: Any, config: Any, module: nn.Module, seen: list[Tensor]) -> Rotary | None:
    """The rotation that takes queries and keys from position 0 to where they are.

    The frequencies are looked up (tables of the model, then what its config says), the pairs are tried.

    Args:
        model: the model.
        config: of its text decoder.
        module: the attention module.
        seen: queries and keys `[B, H, T, D]` as they reach attention, of tokens whose projections were alike.

    Returns:
        The rotation, or None where none of those tried does it.
    """
    best, least = None, math.inf
    for rotary in _candidates(model, config, module, seen[0].shape[-1]):
        error = max(
            _distance(x, rotary.turned(x[..., :1, :].expand_as(x))) / tolerance(x.dtype) for x in seen
        )
        if error < least:
            best, least = rotary, error
    return best if least <= 1 else None


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same numbers may lie apart, as a part of the largest."""
    return max(8 * torch.finfo(dtype).eps, 2e-5)


def _distance(seen: Tensor, expected: Tensor) -> float:
    """How far apart two tensors `[..., D]` point: a position may scale its query (Llama 4), which turns nothing."""
    one, other = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (seen, expected))
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def _candidates(model: Any, config: Any, module: nn.Module, width: int) -> Iterator[Rotary]:
    tables = list(_tables(model, config, module)) + list(_from_config(config, module, width))
    for frequencies, factor, base, scaling in tables:
        dim = 2 * len(frequencies)
        if 0 < dim <= width:
            for backwards, start, layout in product((False, True), dict.fromkeys((0, width - dim)), LAYOUTS):
                yield Rotary(layout, frequencies, factor, base, scaling, start, backwards)


def _tables(model: Any, config: Any, module: nn.Module) -> Iterator[tuple[Tensor, float, float, str]]:
    """Every table of frequencies in the model: those of the attention module and of its kind of layer first."""
    kind = getattr(module, "layer_type", None)
    tables = []
    for owner in dict.fromkeys((*module.modules(), *model.modules())):
        for name, value in (*owner._buffers.items(), *vars(owner).items()):
            if isinstance(value, Tensor) and name.endswith(_TABLE) and "original" not in name:
                prefix = name.removesuffix(_TABLE)
                settings = _settings(config, prefix.removesuffix("_") or kind)
                factor = float(getattr(owner, f"{prefix}attention_scaling", 1.0))
                entry = (value.detach().float().cpu().flatten(), factor, *settings)
                tables.append((kind is None or prefix.removesuffix("_") != kind, entry))
    for _, entry in sorted(tables, key=lambda item: item[0]):
        yield entry


def _from_config(config: Any, module: nn.Module, width: int) -> Iterator[tuple[Tensor, float, float, str]]:
    """Plain geometric sequences, of the widths that a config may name."""
    base, scaling = _settings(config, getattr(module, "layer_type", None))
    shares = [getattr(config, name, None) for name in ("partial_rotary_factor", "rotary_pct")]
    widths = [getattr(config, name, None) for name in ("rotary_dim", "qk_rope_head_dim")]
    widths += [width, *(int(width * share) for share in shares if isinstance(share, float))]
    for dim in dict.fromkeys(w for w in widths if isinstance(w, int) and 0 < w <= width and w % 2 == 0):
        yield base ** (-torch.arange(0, dim, 2).float() / dim), 1.0, base, scaling


def _settings(config: Any, kind: str | None) -> tuple[float, str]:
    """Base and scaling of the rotation, as the config has them for the model or for one kind of layers."""
    settings = getattr(config, "rope_parameters", None) or {}
    if isinstance(settings.get(kind), dict):
        settings = settings[kind]
    base = settings.get("rope_theta", getattr(config, "rope_theta", None)) or _BASE
    return float(base), str(settings.get("rope_type", "default"))
