"""The window of the perplexity: the setting, or what fits the model."""

from __future__ import annotations

from typing import Any

from tomfisher.experiment.config import PERPLEXITY_WINDOW, Config
from tomfisher.runtime.gate import position_limit


def perplexity_window(config: Config, model: Any) -> int:
    """The window to measure the perplexity in, checked against the model.

    Args:
        config: the study; without a `perplexity_window` it is min(512, the model's context).
        model: its model.

    Returns:
        Input tokens per window.

    Raises:
        ValueError: the window that was asked for is larger than the model's context, or smaller than the stride.
    """
    limit = position_limit(model)
    window = config.perplexity_window
    if window is None:
        window = PERPLEXITY_WINDOW if limit is None else min(PERPLEXITY_WINDOW, limit)
        if config.perplexity_stride is not None and config.perplexity_stride > window:
            raise ValueError(
                f"--perplexity_stride {config.perplexity_stride} is larger than the perplexity window, {window} tokens "
                f"with this model. Give --perplexity_stride {window} or less."
            )
    elif limit is not None and min(window, config.perplexity_tokens) > limit:
        raise ValueError(
            f"--perplexity_window {window} is larger than the model's context of {limit} tokens. "
            f"Give --perplexity_window {limit} or less, or leave it out."
        )
    return window
