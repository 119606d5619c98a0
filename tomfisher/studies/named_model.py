"""The model that a config names, in memory or in its files."""

from __future__ import annotations

import torch

from tomfisher.models.load import LoadedModel, load_model, resolve_dtype
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.positions import has_learned_positions, position_limit
from tomfisher.studies.config import Config


def named_model(
    config: Config,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    parallel: str | None = None,
    shard: bool = False,
) -> LoadedModel:
    """The config's model in this dtype; with `stream`, opened alone.

    Args:
        config: the study.
        dtype: as for `load_model`.
        device: as for `load_model`; a streamed model is on the CPU.
        parallel: as for `load_model`.
        shard: whether the rows of the weights are spread over the ranks of the process group, on the CPU.

    Raises:
        ValueError: as for `load_model` and `open_model`.
    """
    if config.is_streamed or shard:
        if parallel is not None:
            raise ValueError(
                "parallel holds the whole model in several processes, stream one layer at a time. Leave one out."
            )
        from tomfisher.models.opened import load_opened
        from tomfisher.models.sharded import spread

        if config.boundary_folder is not None and not config.boundary_folder.is_dir():
            raise ValueError(
                f"boundary must be ram or a folder, but there is no folder {config.boundary!r}. Make it."
            )
        precision = resolve_dtype(dtype, torch.device("cpu"))
        loaded = load_opened(config.model, precision, config.trust_remote_code, config.revision)
        _ask_for_positions(loaded)
        return spread(loaded) if shard else loaded
    return load_model(config.model, dtype, device, config.trust_remote_code, config.revision, parallel)


def _ask_for_positions(loaded: LoadedModel) -> None:
    """Let a model say how many positions it has while the tables of them are in memory; it is remembered."""
    if has_learned_positions(loaded.model):
        opened = loaded.opened
        with opened.loaded(opened.outer), Layers(opened, Boundaries()).recording():
            position_limit(loaded.model)
