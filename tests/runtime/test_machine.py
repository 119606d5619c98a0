"""How much memory a process can still take, as the system and its control groups say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tomfisher.runtime.machine import Machine, free_memory

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "meminfo").write_text(f"MemTotal: {32 << 20} kB\nMemAvailable: {24 << 20} kB\n")
    return {"meminfo": tmp_path / "meminfo", "cgroup": tmp_path / "cgroup", "mount": tmp_path / "mount"}


def group(folder: Path, limit: str | int, usage: int, inactive: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current", "inactive_file")}
    limit_name, usage_name, inactive_name = names.get(
        version, ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / usage_name).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{inactive_name} {inactive}\n")


def test_without_groups_it_is_what_the_system_has(system):
    assert free_memory(**system) == 24 * GIB
    assert free_memory(system["mount"] / "no-such-file") is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_around_the_process_counts(system, version):
    line = "0::/outer/inner" if version == 2 else "4:cpu,memory:/outer/inner"
    system["cgroup"].write_text(f"9:pids:/elsewhere\n{line}\n")
    root = system["mount"] / ("" if version == 2 else "memory")
    group(root / "outer", 8 * GIB, 6 * GIB, 1 * GIB, version)
    group(root / "outer/inner", "max" if version == 2 else 1 << 62, 2 * GIB, 0, version)
    assert free_memory(**system) == 3 * GIB  # file pages that the group would give back are free
    group(root / "outer", 1 * GIB, 6 * GIB, 0, version)
    assert free_memory(**system) == 0


def test_ranks_are_the_devices_of_all_nodes():
    assert Machine(memory=1, devices=8, nodes=4).ranks == 32
