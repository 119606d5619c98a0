"""Tile shapes of `squared_gradient_`: the shipped table, the rule that picks from it, and an opt-in tuner."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

PROGRAMS = 128  # how many programs fill a GPU; a constant, so that no result depends on which GPU it is
_MIN_BLOCKS = 8  # token blocks that a split should keep at least
_FULL = 0.75  # a token block is too long where less than this part of its rows exist


@dataclass(frozen=True)
class Config:
    """One tile of F and how it is computed.

    Attributes:
        block_out: rows of the tile (d_out).
        block_in: columns of the tile (d_in).
        block_tokens: rows of both operands that one step multiplies.
        warps: warps per program.
        stages: depth of the software pipeline.
    """

    block_out: int
    block_in: int
    block_tokens: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.block_out}x{self.block_in}x{self.block_tokens} w{self.warps} s{self.stages}"

    def tiles(self, d_out: int, d_in: int) -> int:
        """Tiles that cover `[d_out, d_in]`."""
        return -(-d_out // self.block_out) * -(-d_in // self.block_in)


@dataclass(frozen=True)
class Problem:
    """What the choice depends on.

    Attributes:
        d_out: rows of F.
        d_in: columns of F.
        dtype: of the operands: bfloat16, float16 or float32.
        lengths: rows of each segment that has any.
        slices: slices of F that are written.
    """

    d_out: int
    d_in: int
    dtype: torch.dtype
    lengths: tuple[int, ...]
    slices: int = 1


_HALF = (
    Config(128, 128, 64, 8, 4),
    Config(128, 128, 32, 8, 4),
    Config(64, 128, 64, 4, 3),
    Config(64, 64, 64, 4, 3),
    Config(16, 128, 64, 4, 3),
    Config(128, 16, 64, 4, 3),
)
_SINGLE = (
    Config(128, 128, 16, 8, 3),
    Config(64, 64, 32, 4, 3),
    Config(16, 64, 16, 4, 3),
    Config(64, 16, 32, 4, 3),
)
_HIP_STAGES = 3  # 64 KiB of shared memory hold two stages of the largest tile; the third is in registers


def shipped(dtype: torch.dtype) -> tuple[Config, ...]:
    """The configurations that ship for operands of `dtype`, the largest tile first."""
    return _HALF if dtype in (torch.bfloat16, torch.float16) else _SINGLE


def pick(problem: Problem) -> Config:
    """Choose a configuration: the tuner's where the user ran it, else the shipped table's by rule.

    A side of at most 16 takes a thin tile; otherwise the largest tile that still gives every multiprocessor one,
    with short token blocks where segments are short.
    """
    tuned = _tuned().get(_key(problem))
    return tuned if tuned is not None else _by_rule(problem)


def splits(problem: Problem, config: Config) -> int:
    """Into how many parts the segments are divided so that a small F occupies a large GPU."""
    programs = config.tiles(problem.d_out, problem.d_in) * problem.slices
    blocks = sum(-(-n // config.block_tokens) for n in problem.lengths) // problem.slices
    return max(1, min(PROGRAMS // programs, blocks // _MIN_BLOCKS, len(problem.lengths)))


def fits_rows(config: Config, d_in: int) -> bool:
    """Whether a tile suits the row length of F.

    Rows of F that are no multiple of 16 are read and written word by word, and with 64 words per thread, as in
    the tiles of 8 warps, the addresses alone overflow the registers.
    """
    return d_in % 16 == 0 or config.warps < 8


def pipeline(config: Config) -> int:
    """Pipeline stages on this build's kind of GPU."""
    return min(config.stages, _HIP_STAGES) if torch.version.hip else config.stages


def tune(problem: Problem, measure: Callable[[Config], float], save: bool = False) -> Config:
    """Time every shipped configuration that fits and return the fastest.

    Args:
        problem: shapes and dtype.
        measure: seconds of one call with a configuration. It must not touch a live F: an in-place sum repeated
            for timing is no longer the sum.
        save: keep the answer in the user's cache folder for later processes.

    Returns:
        The fastest configuration; ties go to the larger tile.
    """
    best = min(_fitting(problem), key=measure)
    if save:
        table = {**_tuned(), _key(problem): best}
        _write({key: asdict(config) for key, config in table.items()})
        _tuned.cache_clear()
    return best


def table_path() -> Path:
    """Where the tuner's table of this GPU is kept: `$XDG_CACHE_HOME/tomfisher`, by default `~/.cache`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return root / "tomfisher" / f"squared_gradient-{gpu.replace(' ', '-')}.json"


def _by_rule(problem: Problem) -> Config:
    fitting = _fitting(problem)
    enough = [c for c in fitting if c.tiles(problem.d_out, problem.d_in) * problem.slices >= PROGRAMS]
    chosen = enough[0] if enough else fitting[-1]
    same_tile = [c for c in fitting if (c.block_out, c.block_in) == (chosen.block_out, chosen.block_in)]
    full = [c for c in same_tile if _filled(problem.lengths, c.block_tokens) >= _FULL]
    return full[0] if full else same_tile[-1]


def _fitting(problem: Problem) -> list[Config]:
    """Shipped configurations whose tile suits the shape, the largest tile first."""
    thin_out, thin_in = problem.d_out <= 16, problem.d_in <= 16 < problem.d_out
    table = [c for c in shipped(problem.dtype) if fits_rows(c, problem.d_in)]
    return [c for c in table if (c.block_out == 16) == thin_out and (c.block_in == 16) == thin_in]


def _filled(lengths: Iterable[int], block_tokens: int) -> float:
    """Part of the rows of all token blocks that exist."""
    counts = list(lengths)
    return sum(counts) / sum(-(-n // block_tokens) * block_tokens for n in counts)


def _key(problem: Problem) -> str:
    return f"{str(problem.dtype).removeprefix('torch.')} {problem.d_out}x{problem.d_in}"


@cache
def _tuned() -> dict[str, Config]:
    path = table_path()
    if not path.exists():
        return {}
    return {key: Config(**entry) for key, entry in json.loads(path.read_text()).items()}


def _write(table: dict[str, dict[str, int]]) -> None:
    path = table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(table, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
