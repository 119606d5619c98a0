"""Tile shapes of `squared_gradient_`: the shipped table, the rule that picks from it, and an opt-in tuner."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

PROGRAMS = 128  # how many programs fill a GPU; a constant, so that no result depends on which GPU it is
_MIN_BLOCKS = 8  # token blocks that a split should keep at least
_REMEMBERED = 256  # problems whose answers are kept: all layers of a batch, call after call
# Rows of a token block -> the part of them that should exist. A shorter block is taken where fewer do; the shortest
# one has the most instructions and barriers per row.
_FULL = {64: 0.75, 32: 0.5}


class Config(NamedTuple):
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


@cache
def gpu_name(device: torch.device) -> str:
    """Name of a GPU; "cpu" for anything else."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class Problem(NamedTuple):
    """What the choice depends on.

    Attributes:
        d_out: rows of F.
        d_in: columns of F.
        dtype: of the operands: bfloat16, float16 or float32.
        rows: of the operands.
        segments: that they are cut into.
        slices: of F.
        aligned: whether F starts at a multiple of 16 bytes.
        gpu: name of the GPU that F is on; what the tuner found on another one does not count.
        precision: of the products, as `squared_gradient` takes it.
    """

    d_out: int
    d_in: int
    dtype: torch.dtype
    rows: int
    segments: int
    slices: int = 1
    aligned: bool = True
    gpu: str = "cpu"
    precision: str = "ieee"


_HALF = (
    Config(128, 128, 64, 8, 4),
    Config(128, 128, 32, 8, 4),
    Config(128, 128, 16, 8, 4),
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
_AMD_STAGES = 3  # 64 KiB of shared memory hold two stages of the largest tile; the third is in registers


def shipped(dtype: torch.dtype) -> tuple[Config, ...]:
    """The configurations that ship for operands of `dtype`, the largest tile first."""
    return _HALF if dtype in (torch.bfloat16, torch.float16) else _SINGLE


def pick(problem: Problem) -> Config:
    """Choose a configuration: the tuner's where the user ran it, else the shipped table's by rule.

    A side of at most 16 takes a thin tile; otherwise the largest tile that still gives every multiprocessor one,
    with short token blocks where segments are short.
    """
    table = _tuned(problem.gpu)
    tuned = table.get(_key(problem)) if table else None
    return tuned if tuned is not None and tuned in _fitting(problem) else _by_rule(problem)


@lru_cache(maxsize=_REMEMBERED)
def splits(problem: Problem, config: Config) -> int:
    """Into how many parts the segments are divided so that a small F occupies a large GPU."""
    programs = config.tiles(problem.d_out, problem.d_in) * problem.slices
    blocks = problem.segments * _blocks(problem, config.block_tokens) // problem.slices
    return max(1, min(PROGRAMS // programs, blocks // _MIN_BLOCKS, problem.segments))


def fits_rows(config: Config, d_in: int, aligned: bool = True) -> bool:
    """Whether a tile suits the rows of F: their length, and whether F starts at a multiple of 16 bytes.

    Rows that may start anywhere are read and written word by word, and with 64 words per thread, as in the tiles
    of 8 warps, the addresses alone overflow the registers.
    """
    return (aligned and d_in % 16 == 0) or config.warps < 8


def fits_precision(config: Config, precision: str) -> bool:
    """Whether a tile suits a precision: the split operands of tf32x3 overflow the registers of tiles of 8 warps."""
    return precision != "tf32x3" or config.warps < 8


def pipeline(config: Config, amd: bool) -> int:
    """Pipeline stages on a kind of GPU."""
    return min(config.stages, _AMD_STAGES) if amd else config.stages


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
        _tuned.cache_clear()  # another process may have saved since
        table = {**_tuned(problem.gpu), _key(problem): best}
        _write(table_path(problem.gpu), {key: config._asdict() for key, config in table.items()})
        _tuned.cache_clear()
    return best


def _write(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Replace a table, all or nothing; without tomfisher's own way, so that the kernels stand alone on a hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def table_path(gpu: str) -> Path:
    """Where the tuner's table of a GPU and this Triton is kept: `$XDG_CACHE_HOME/tomfisher`, by default `~/.cache`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "tomfisher" / f"squared_gradient-{gpu.replace(' ', '-')}-triton-{triton.__version__}.json"


@lru_cache(maxsize=_REMEMBERED)
def _by_rule(problem: Problem) -> Config:
    fitting = _fitting(problem)
    enough = [c for c in fitting if c.tiles(problem.d_out, problem.d_in) * problem.slices >= PROGRAMS]
    chosen = enough[0] if enough else fitting[-1]
    same_tile = [c for c in fitting if (c.block_out, c.block_in) == (chosen.block_out, chosen.block_in)]
    full = [c for c in same_tile if _filled(problem, c.block_tokens) >= _FULL.get(c.block_tokens, 0)]
    return full[0] if full else same_tile[-1]


def _fitting(problem: Problem) -> list[Config]:
    """Shipped configurations whose tile suits the shape and the products, the largest tile first."""
    thin_out, thin_in = problem.d_out <= 16, problem.d_in <= 16 < problem.d_out
    table = [
        c
        for c in shipped(problem.dtype)
        if fits_rows(c, problem.d_in, problem.aligned) and fits_precision(c, problem.precision)
    ]
    return [c for c in table if (c.block_out == 16) == thin_out and (c.block_in == 16) == thin_in]


def _filled(problem: Problem, block_tokens: int) -> float:
    """Part of the rows of all token blocks that exist, if all segments are equal."""
    return problem.rows / (problem.segments * _blocks(problem, block_tokens) * block_tokens)


def _blocks(problem: Problem, block_tokens: int) -> int:
    """Token blocks of a segment of mean length."""
    return -(-problem.rows // (problem.segments * block_tokens))


@lru_cache(maxsize=_REMEMBERED)
def _key(problem: Problem) -> str:
    """What a saved answer holds for: dtype and sides, and the powers of two that bound slices and mean length."""
    dtype = str(problem.dtype).removeprefix("torch.")
    mean = -(-problem.rows // problem.segments)
    slices, length = (1 << (n - 1).bit_length() for n in (problem.slices, mean))
    return f"{dtype} {slices}x{problem.d_out}x{problem.d_in} length {length}"


@cache
def _tuned(gpu: str) -> dict[str, Config]:
    """The tuner's table of a GPU. What is no table of shipped configurations is left out, with one warning."""
    path = table_path(gpu)
    if not path.exists():
        return {}
    try:
        found = {key: _config(entry) for key, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        _ignore(path, f"no table of the tuner: {error}")
        return {}
    table = {key: config for key, config in found.items() if config is not None}
    if len(table) < len(found):
        unknown = ", ".join(key for key in found if key not in table)
        _ignore(path, f"holds configurations that do not ship, for {unknown}")
    return table


def _config(entry: Any) -> Config | None:
    """The shipped configuration with these fields, if there is one."""
    return next((config for config in (*_HALF, *_SINGLE) if config._asdict() == entry), None)


def _ignore(path: Path, reason: str) -> None:
    warnings.warn(
        f"{path}: {reason}. The rule decides there instead; tune again or delete the file.", stacklevel=2
    )
