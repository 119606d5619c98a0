"""Several parts of the analysis in one pass; what a model does not have is reported, not fatal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tomfisher.analysis.collect import TOKENS_PER_BATCH, collect
from tomfisher.analysis.rope import RopeCollector
from tomfisher.analysis.sinks import SinkCollector
from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.near_miss import unknown
from tomfisher.runtime.gate import check_model
from tomfisher.runtime.rules import check_rules, remembered
from tomfisher.runtime.torch_state import plain_torch

PARTS = ("rope", "sinks")


@dataclass(frozen=True)
class Analysis:
    """What was found, part by part.

    Attributes:
        results: "rope": `RopeSpectrum`, "sinks": `AttentionSinks`.
        unavailable: why a part that was asked for is missing.
        rules: how the model was run and why (`tomfisher.runtime.rules`); None where it was not run.
    """

    results: dict[str, Any]
    unavailable: dict[str, str]
    rules: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Results and reasons, JSON-ready."""
        return {part: result.to_dict() for part, result in self.results.items()} | {
            "unavailable": self.unavailable,
            "rules": self.rules,
        }


@plain_torch()
@remembered()
def analyze(
    model: Any,
    prompts: Sequence[Sequence[int] | Tensor],
    parts: Sequence[str] = PARTS,
    heads: Iterable[tuple[int, int]] = (),
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> Analysis:
    """Measure RoPE spectrum and attention sinks of a model in one forward pass over the prompts.

    Args:
        model: a causal language model of transformers, as it is.
        prompts: token ids, at least two each.
        parts: of "rope" (`rope_spectrum`) and "sinks" (`attention_sinks`).
        heads: (layer, head) whose whole attention map of the first prompt is wanted ("sinks").
        tokens_per_batch: upper bound of batch size times length.
        progress: show a bar on a terminal.

    Returns:
        An `Analysis`; a part that this model cannot have is in `unavailable` with the reason.

    Raises:
        ValueError: no or an unknown part, maps without "sinks", unusable prompts, or a head that the model does
            not have.
    """
    heads = list(heads)
    check_request(parts, heads)
    check_model(model)
    make: dict[str, Callable[[Architecture], Any]] = {
        "rope": RopeCollector,
        "sinks": lambda architecture: SinkCollector(architecture, heads=heads),
    }
    collectors: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    try:
        architecture = describe(model)
        for part in parts:
            try:
                collectors[part] = make[part](architecture)
            except UnsupportedModel as error:
                unavailable[part] = str(error)
        lengths: list[int] = []
        rules = None
        if collectors:
            seen = list(collectors.values())
            lengths = collect(model, architecture, prompts, seen, tokens_per_batch, progress)
            rules = check_rules(model, prompts, tokens=tokens_per_batch).to_dict()
    except UnsupportedModel as error:
        return Analysis({}, {part: unavailable.get(part, str(error)) for part in parts})
    return Analysis({part: c.result(lengths) for part, c in collectors.items()}, unavailable, rules)


def check_request(parts: Sequence[str], heads: Sequence[tuple[int, int]]) -> None:
    """Refuse what no model could answer, before one is loaded.

    Args:
        parts: names of parts.
        heads: (layer, head) whose maps are wanted.

    Raises:
        ValueError: no part, an unknown one, or maps without the part that they belong to.
    """
    if not parts:
        raise ValueError(f"No part to analyse. Parts: {', '.join(PARTS)}.")
    for part in parts:
        if part not in PARTS:
            raise ValueError(unknown("part", part, PARTS))
    if heads and "sinks" not in parts:
        raise ValueError('Maps of heads belong to the part "sinks". Ask for it too.')
