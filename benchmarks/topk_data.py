"""Values to select from: real Fisher values, distributions that are easy and hard, and files that hold them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import tomfisher
from tomfisher.benchmarks import models

DISTRIBUTIONS = ("fisher", "uniform", "lognormal", "equal", "sorted", "reversed", "few", "denormal")
_BASE = 1 << 27  # entries drawn; longer vectors repeat them, each time a little larger
_BLOCK = 1 << 20  # bytes per read: stays in the L2 cache


def values(name: str, n: int, store: str | None = None, device: torch.device | str = "cpu") -> Tensor:
    """`n` float32 values.

    Args:
        name: one of `DISTRIBUTIONS`: "fisher" (real values of a store, in its order), "uniform" on [0, 1),
            "lognormal" (σ = 3), "equal" (all 1), "sorted" (rising, the worst order for a rising bound; as float32
            has few values, many are equal), "reversed" (falling), "few" (whole numbers below 8) or "denormal"
            (uniform below the smallest normal number).
        n: how many.
        store: a Fisher store, for "fisher"; None computes a small one of the testbed.
        device: where.

    Returns:
        A vector.
    """
    out = torch.empty(n, device=device)
    position = 0
    for part in _parts(name, n, store, device):
        out[position : position + len(part)] = part
        position += len(part)
    return out


def write_file(name: str, n: int, store: str | None, path: Path) -> None:
    """Write the same values as a safetensors file with one tensor "F", block by block, and to the disk."""
    header = json.dumps({"F": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in _parts(name, n, store, "cpu"):
            part.contiguous().numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget a file's pages, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_file(path: Path, threads: int) -> int:
    """Read a file once into buffers that are overwritten, every thread its share; returns the bytes."""
    size = path.stat().st_size
    share = -(-size // threads)
    counts = [0] * threads

    def read(thread: int) -> None:
        buffer = bytearray(_BLOCK)
        start, stop = thread * share, min(size, (thread + 1) * share)
        file = os.open(path, os.O_RDONLY)
        try:
            while start < stop:
                got = os.preadv(file, [memoryview(buffer)[: stop - start]], start)
                start += got
                counts[thread] += got
        finally:
            os.close(file)

    workers = [threading.Thread(target=read, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts)


def fisher_values(store: str | None) -> Tensor:
    """All values of a Fisher store in its order; without one, of the testbed's model on eight samples."""
    if store is not None:
        F = tomfisher.FisherDiagonal.load(store, verify=False)
    else:
        model, samples = models.inputs("testbed-llama", None, "fp32", "cpu", 8, 32)
        F = tomfisher.fisher_diagonal(model, samples, progress=False)
    return torch.cat([F[name].flatten().float() for name in F])


def _parts(name: str, n: int, store: str | None, device: torch.device | str) -> Iterator[Tensor]:
    if name not in DISTRIBUTIONS:
        raise ValueError(f"A distribution is one of {', '.join(DISTRIBUTIONS)}, got {name!r}.")
    if name in ("sorted", "reversed"):
        for start in range(0, n, _BASE):
            rank = torch.arange(start, min(n, start + _BASE), device=device, dtype=torch.float64)
            yield (rank if name == "sorted" else n - 1 - rank).div(n).float()
        return
    base = _base(name, min(n, _BASE), store, device)
    for turn, start in enumerate(range(0, n, len(base))):
        factor = 1.0 if name in ("equal", "few") else 1.0 + turn / 1024
        yield base[: n - start] * factor


def _base(name: str, n: int, store: str | None, device: torch.device | str) -> Tensor:
    if name == "fisher":
        return fisher_values(store)[:n].to(device)
    if name == "equal":
        return torch.ones(n, device=device)
    generator = torch.Generator(device).manual_seed(0)
    if name == "few":
        return torch.randint(8, (n,), device=device, generator=generator).float()
    if name in ("uniform", "denormal"):
        scale = torch.finfo(torch.float32).tiny if name == "denormal" else 1.0
        return torch.rand(n, device=device, generator=generator).mul_(scale)
    return torch.randn(n, device=device, generator=generator).mul_(3.0).exp_()
