"""A Fisher diagonal of several ranks: what they agree on before it, and one result of what each of them did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.fisher.flags import where
from tomfisher.fisher.record import Asked, Outcome
from tomfisher.fisher.selection import describe_params
from tomfisher.runtime.ranks import Team
from tomfisher.sample import Sample


def agree(
    team: Team, asked: Asked, selection: Mapping[str, nn.Parameter], identity: Mapping[str, Any], data: str
) -> None:
    """Refuse to begin where ranks differ in what F is of, or cannot add it.

    Args:
        team: the ranks.
        asked: the settings.
        selection: parameters by name.
        identity: of the model.
        data: digest of the samples.

    Raises:
        ValueError: naming the rank and the difference, or the backend of the process group.
    """
    if team.size == 1:
        return
    settings = {
        "definition": asked.definition,
        "params": describe_params(asked.params),
        "tokens_per_batch": asked.tokens_per_batch,
        "impl": asked.impl,
        "precision": asked.precision,
        "selected": {name: list(parameter.shape) for name, parameter in selection.items()},
    }
    facts = {"model": identity, "data_sha256": data, **settings}
    team.agree("what the Fisher diagonal is of", facts)
    team.check_backend([parameter.device for parameter in selection.values()])


def agree_on_weights(team: Team, identity: Mapping[str, Any]) -> None:
    """Refuse ranks that read other weights; where one that resumed has not read all of them, none is compared.

    Args:
        team: the ranks.
        identity: of an opened model.

    Raises:
        ValueError: naming the rank.
    """
    said = {key: identity[key] for key in ("weights_sha256", "content_sha256") if key in identity}
    if all(team.exchange("whether all weights were read", None not in said.values())):
        team.agree("the weights in the model's files", said)


def add_up(team: Team, F: Mapping[str, Tensor]) -> None:
    """Replace the sums of one rank by those of all, added in rank order.

    Raises:
        FloatingPointError: they do not fit into float32.
    """
    if team.size == 1:
        return
    team.sum_(list(F.values()))
    check_sums(F)


def check_sums(F: Mapping[str, Tensor]) -> None:
    """Refuse sums over ranks that overflow, which those of single ranks do not.

    Raises:
        FloatingPointError: naming the tensor.
    """
    # squares are no less than 0, so that the largest tells
    for name in where({n: ~torch.isfinite(f.amax()) for n, f in F.items() if f.numel()}):
        raise FloatingPointError(
            f"The squares of {name}, added over the ranks, overflow float32. Take fewer samples at once."
        )


def what_ran(outcomes: Sequence[Outcome], own: Sequence[int], samples: Sequence[Sample]) -> dict[str, Any]:
    """What one rank did with its own samples, as JSON."""
    return {
        "methods": {name: method for outcome in outcomes for name, method in outcome.methods.items()},
        "implementations": {op: impl for outcome in outcomes for op, impl in outcome.implementations.items()},
        "probed_tokens": max(outcome.probed_tokens for outcome in outcomes),
        "budget": min(outcome.budget for outcome in outcomes),
        "samples": len(own),
        "tokens": sum(len(samples[i]) for i in own),
    }


def methods_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Per parameter what the first rank says that did not capture it, or "captured".

    Args:
        parts: from `what_ran`, in rank order.
    """
    taken = [part["methods"] for part in parts]
    return {
        name: next((methods[name] for methods in taken if methods[name] != "captured"), "captured")
        for name in taken[0]
    }


def merged(
    metadata: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], split: str = "samples"
) -> dict[str, Any]:
    """The metadata of one rank with what all of them did, and who did how much.

    Args:
        metadata: from `describe_run`.
        parts: from `what_ran`, in rank order.
        split: what each rank has a part of, "samples" or "model".
    """
    return {
        **metadata,
        "probed_tokens": max(part["probed_tokens"] for part in parts),
        "tokens_per_batch": {
            **metadata["tokens_per_batch"],
            "least": min(part["budget"] for part in parts),
        },
        "implementations": {op: impl for part in parts for op, impl in part["implementations"].items()},
        "ranks": {
            "world_size": len(parts),
            "split": split,
            "samples": [part["samples"] for part in parts],
            "tokens": [part["tokens"] for part in parts],
        },
    }
