"""`stream: auto`: the layers are read one after the other where the model, and F if one is taken, do not fit."""

from __future__ import annotations

import dataclasses
import os

import torch

from tomfisher.fisher.sizes import sizes_of
from tomfisher.fisher.way import Work
from tomfisher.fisher.ways import ROOM, choose_way
from tomfisher.models.adapters import adapter_in
from tomfisher.models.bases import adapter_folder
from tomfisher.models.load import find_place, load_structure, resolve_device, resolve_dtype
from tomfisher.runtime import ranks
from tomfisher.runtime.machine import Machine, free_memory
from tomfisher.studies.byte_sizes import bytes_of
from tomfisher.studies.config import Config
from tomfisher.studies.parsing import parse_params


def decided(config: Config, dtype: str | torch.dtype | None = None) -> tuple[Config, str]:
    """A config that streams where "auto" has to, and why it does: as `tomfisher plan` chooses, by what memory is free.

    Of several ranks the first one decides; the processes of one machine share its memory.

    Args:
        config: the settings.
        dtype: of the weights where no F is taken; None where the config's Fisher diagonals are.

    Returns:
        The config, with `stream` "yes" where there is a reason, and the reason in a sentence, or "".
    """
    if config.stream != "auto":
        return config, ""
    why = ranks.current().first("whether the model fits", lambda: _reason(config, dtype))
    return (dataclasses.replace(config, stream="yes"), why) if why else (config, "")


def work_of(config: Config, samples: int | None = None, tokens: int | None = None) -> Work:
    """The study's samples.

    Args:
        config: the study.
        samples: of each Fisher diagonal, instead of its task's.
        tokens: of each sample, instead of its control's.
    """
    budget = config.tokens_per_batch
    return Work(
        samples=samples or config.n_task,
        length=tokens or config.control_length,
        fishers=max(1, [config.task_store, config.control_store].count(None)),
        tokens_per_batch=budget if budget == "auto" else int(budget),
    )


def _reason(config: Config, dtype: str | torch.dtype | None) -> str:
    memory = _memory(config)
    if memory is None or config.method != "choice" or resolve_device(config.device).type != "cpu":
        return ""
    place = find_place(config.model, config.trust_remote_code, config.revision)
    folder = adapter_folder(place)
    if folder is not None and adapter_in(folder, place.source) is not None:
        return ""  # cannot be streamed, whatever it takes
    model = load_structure(config.model, config.trust_remote_code, config.revision)
    if getattr(model.config, "quantization_config", None) is not None:
        return ""
    precision = resolve_dtype(config.fisher_dtype if dtype is None else dtype, torch.device("cpu"))
    sizes = sizes_of(model, parse_params(config.params), precision)
    if dtype is not None:
        held = "" if sizes.model_bytes <= ROOM * memory else "the model"
        needed: float = sizes.model_bytes
    else:
        choice = choose_way(sizes, Machine(memory=memory), work_of(config))
        resident, today = choice.candidates[0], choice.today
        held = "the model and F" if today is not None and today.way.stream else ""
        needed = resident.footprint.least
    if not held:
        return ""
    return (
        f"streaming: {held} would take {needed / 1e9:.3g} GB of {memory / 1e9:.3g} in memory; --stream no tries it "
        "all the same"
    )


def _memory(config: Config) -> int | None:
    """Bytes that this process may take; None where the system does not say and nothing is given."""
    free = free_memory()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or ranks.current().size
    known = [] if free is None else [free // beside]
    known += [] if config.max_memory is None else [bytes_of(config.max_memory)]
    return min(known, default=None)
