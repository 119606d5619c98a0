"""The machine that a plan is for: the one at hand, or one that is described."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tomfisher.models.load import resolve_device
from tomfisher.runtime import gpus
from tomfisher.runtime.machine import Machine, free_device_memory, free_memory
from tomfisher.studies.config import Config

ASSUMED_GPU = "h100"


@dataclass(frozen=True)
class Described:
    """What a user says of a machine; None is not said. Sizes in bytes, speeds in bytes per second.

    Attributes:
        gpu: a name in `tomfisher.runtime.gpus.GPUS`.
        devices: per node.
        nodes: how many.
        memory: of a device; on CPUs, of a process.
        host_memory: of a node.
        disk_speed: of a node.
        link_speed: of a device, within its node.
        network_speed: of a node.
    """

    gpu: str | None = None
    devices: int | None = None
    nodes: int | None = None
    memory: int | None = None
    host_memory: int | None = None
    disk_speed: int | None = None
    link_speed: int | None = None
    network_speed: int | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether this is another machine than the one at hand."""
        return any(value is not None for value in (self.gpu, self.devices, self.nodes, self.memory))


def machine_for(config: Config, said: Described = Described()) -> Machine:
    """The machine that was described, what was not said being a data sheet's; or the one at hand.

    Args:
        config: whose `device` says whether it has GPUs, and whose `output_path` is on the disk that is looked at.
        said: of the machine.

    Raises:
        ValueError: a number is not positive.
    """
    for name, value in vars(said).items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name} must be positive, got {value}.")
    machine = _described(config, said) if said.elsewhere else _at_hand(config)
    return replace(
        machine,
        host_memory=said.host_memory or machine.host_memory,
        disk_speed=said.disk_speed or machine.disk_speed,
        link=said.link_speed or machine.link,
        network=said.network_speed or machine.network,
    )


def _described(config: Config, said: Described) -> Machine:
    on_cpu = config.device is not None and torch.device(config.device).type == "cpu"
    gpu = None if on_cpu else gpus.named(said.gpu or ASSUMED_GPU)
    memory = said.memory or (int(gpu.memory) if gpu is not None else free_device_memory(torch.device("cpu")))
    return Machine(memory=memory, devices=said.devices or 1, nodes=said.nodes or 1, gpu=gpu)


def _at_hand(config: Config) -> Machine:
    device = resolve_device(config.device)
    free, disk = (
        free_device_memory(device),
        shutil.disk_usage(_standing(Path(config.output_path or "."))).free,
    )
    if device.type != "cuda":
        return Machine(memory=free, disk=disk)
    sheet = gpus.at_hand(device)
    if sheet is None:
        name = f"{torch.cuda.get_device_name(device)}, taken for an {ASSUMED_GPU.upper()}"
        sheet = replace(gpus.named(ASSUMED_GPU), name=name)
    return Machine(
        memory=free, devices=torch.cuda.device_count(), gpu=sheet, host_memory=free_memory(), disk=disk
    )


def _standing(path: Path) -> Path:
    """The nearest folder above a path, or the path itself, that is there."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
