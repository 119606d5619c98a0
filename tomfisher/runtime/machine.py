"""What a machine can hold and how fast it moves bytes: the one at hand, or one that is described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tomfisher.runtime.gpus import Gpu

_MEMINFO, _CGROUP, _MOUNT = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # a limit above it is none


@dataclass(frozen=True)
class Machine:
    """One or more equal nodes with equal devices; one process (rank) drives each device.

    Attributes:
        memory: bytes that a device can give; on CPUs, what a process can take.
        devices: per node.
        nodes: how many.
        gpu: data sheet of a device; None for CPUs.
        host_memory: bytes that a node's main memory can give to all its ranks; None where that is not known.
        disk: free bytes where the store goes; None where that is not known.
        link: bytes per second that a device sends to others of its node.
        network: bytes per second that a node sends to other nodes.
        disk_speed: bytes per second that a node reads or writes.
        copy: bytes per second from a node's memory to a device.
    """

    memory: int
    devices: int = 1
    nodes: int = 1
    gpu: Gpu | None = None
    host_memory: int | None = None
    disk: int | None = None
    link: float = 450e9
    network: float = 50e9
    disk_speed: float = 2e9
    copy: float = 25e9

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.nodes


def free_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP, mount: Path = _MOUNT) -> int | None:
    """Bytes of main memory that this process can still take: what the system has, or less where a cgroup limits it.

    File pages that a cgroup would give back at once (its inactive ones) count as free.

    Args:
        meminfo: the system's account.
        cgroup: which control groups the process is in.
        mount: where these are mounted, version 2 or 1.

    Returns:
        None where the system does not tell (no Linux).
    """
    if not meminfo.exists():
        return None
    free = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    return min([free, *_left_in_groups(cgroup, mount)])


def _left_in_groups(cgroup: Path, mount: Path) -> Iterator[int]:
    """What each memory group around the process has left, from its own up to the root."""
    for line in cgroup.read_text().splitlines() if cgroup.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        root = mount / "memory"
        if not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), mount
        group = root / path.strip("/")
        while group != root.parent:
            if (left := _left(group, *names)) is not None:
                yield left
            group = group.parent


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """None where the group sets no limit."""
    if not (group / limit).is_file() or not (group / usage).is_file():
        return None
    most = (group / limit).read_text().strip()
    if most == "max" or int(most) > _UNLIMITED:
        return None
    statistics = group / "memory.stat"
    fields = (
        dict(line.split() for line in statistics.read_text().splitlines()) if statistics.is_file() else {}
    )
    used = int((group / usage).read_text()) - int(fields.get(reclaimable, 0))
    return max(0, int(most) - max(0, used))


def free_device_memory(device: torch.device) -> int:
    """Bytes that the least free GPU of the machine can give, or this process on a CPU.

    Raises:
        ValueError: the system does not say how much memory is free.
    """
    if device.type == "cuda":
        return min(int(torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count()))
    free = free_memory()
    if free is None:
        raise ValueError(
            "This system does not say how much memory is free. Describe the machine: --devices 1 --memory 16GB."
        )
    return free
