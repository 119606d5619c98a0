"""Where a result comes from: versions, machine, command, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tomfisher.version import __version__

PACKAGES = ("transformers", "safetensors", "tokenizers", "numpy", "triton", "gguf", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python, tomfisher, torch and the other packages that a result depends on, if installed."""
    installed = {"python": platform.python_version(), "tomfisher": __version__, "torch": torch.__version__}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git_commit()
    return installed if commit is None else {**installed, "tomfisher_commit": commit}


def git_commit() -> str | None:
    """The commit of the checkout that tomfisher runs from, "+dirty" if it has changes; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads and, for a CUDA device, the GPU's name and memory in bytes."""
    place = torch.device(device)
    described: dict[str, Any] = {
        "device": str(place),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        described |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return described


def _cpu_name() -> str:
    """The processor's name as the kernel gives it; the architecture where it gives none."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line() -> list[str]:
    """The command as typed: the program's name without its folder, then the arguments."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
