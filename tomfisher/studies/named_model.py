"""The model that a config names, in memory or in its files."""

from __future__ import annotations

import torch

from tomfisher.models.load import LoadedModel, load_model, resolve_dtype
from tomfisher.studies.config import Config


def named_model(config: Config, dtype: str | torch.dtype, device: str | torch.device | None) -> LoadedModel:
    """The config's model in this dtype; with `stream`, opened alone.

    Args:
        config: the study.
        dtype: as for `load_model`.
        device: as for `load_model`; a streamed model is on the CPU.

    Raises:
        ValueError: as for `load_model` and `open_model`.
    """
    if config.is_streamed:
        from tomfisher.models.opened import load_opened

        precision = resolve_dtype(dtype, torch.device("cpu"))
        return load_opened(config.model, precision, config.trust_remote_code, config.revision)
    return load_model(config.model, dtype, device, config.trust_remote_code, config.revision)
