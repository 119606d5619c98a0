"""How much memory a call takes on top of what is there before it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from tomfisher.runtime.machine import free_memory

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PARTS = ("RssAnon", "RssFile", "RssShmem")


def peak_extra_bytes(run: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Peak memory during a call minus what was in use when it began; its result, still alive, is included.

    On the CPU that is the process's resident memory, pages of mapped files included; see
    `peak_anonymous_bytes` for calls that read mapped files.

    Args:
        run: the call.
        device: whose memory.

    Returns:
        Bytes; None where the system does not tell (no Linux).
    """
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        kept = run()
        torch.cuda.synchronize(place)
        del kept
        return torch.cuda.max_memory_allocated(place) - before
    if not _CLEAR.exists():
        run()
        return None
    _trim()
    reset_peak()
    before = _field("VmRSS")
    kept = run()
    peak = _field("VmHWM")
    del kept
    return max(0, peak - before)


def peak_anonymous_bytes(run: Callable[[], object], every_s: float = 0.001) -> int | None:
    """Like `peak_extra_bytes` on the CPU, without pages of mapped files: sampled by a thread during the call."""
    if not _STATUS.exists():
        run()
        return None
    _trim()
    before = peak = _field("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(every_s):
            peak = max(peak, _field("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        kept = run()
        peak = max(peak, _field("RssAnon"))
        del kept
    finally:
        done.set()
        watcher.join()
    return peak - before


def reset_peak() -> None:
    """Let the process's peak begin at what it uses now (Linux)."""
    _CLEAR.write_text("5")


def peak_bytes() -> int:
    """The process's peak resident memory since `reset_peak` (Linux)."""
    return _field("VmHWM")


def resident_bytes() -> int:
    """The process's resident memory now (Linux)."""
    return _field("VmRSS")


def resident_parts() -> dict[str, int]:
    """What the resident memory is made of now, in bytes: anonymous, of mapped files, shared (Linux)."""
    status = _STATUS.read_text()
    return {name: int(status.split(f"{name}:")[1].split()[0]) * 1024 for name in _PARTS}


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that a call could still take."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    free = free_memory()
    return 1 << 62 if free is None else free


def _trim() -> None:
    """Give freed memory back to the system (glibc): what the allocator keeps would hide what a call takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _field(name: str) -> int:
    return int(_STATUS.read_text().split(f"{name}:")[1].split()[0]) * 1024
