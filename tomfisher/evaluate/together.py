"""What several processes make sure of before they share an evaluation."""

from __future__ import annotations

import json
from typing import Any

from tomfisher.files import sha256_of_text
from tomfisher.models.load import identify
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.sharded import sharded_names
from tomfisher.runtime.tensor_parallel import is_tensor_parallel


def agree(team: Team, model: Any, what: str, texts: Any, settings: Any) -> None:
    """Refuse to go on where ranks have different models, texts or settings.

    Args:
        team: the ranks.
        model: a causal language model of transformers.
        what: they are about to do, for the message.
        texts: JSON, such as token ids.
        settings: JSON.

    Raises:
        ValueError: naming the rank and the difference; or the weights are spread over the ranks.
    """
    if team.size == 1:
        return
    if not is_tensor_parallel(model) and (spread := sharded_names(model.named_parameters())):
        raise ValueError(
            f"{spread[0]} and {len(spread) - 1} more weights are spread over the ranks (DTensor), so that every "
            "forward is one of all ranks, and questions cannot be shared. Within tomfisher.runtime.ranks.alone() "
            "every rank asks all of them."
        )
    said = {"model": identify(model, getattr(model.config, "_name_or_path", "")), "settings": settings}
    team.agree(what, {**said, "texts_sha256": sha256_of_text(json.dumps(texts))})
