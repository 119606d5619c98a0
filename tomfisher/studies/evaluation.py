"""`evaluation`: one model on one task, and the same model under a mask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import Scores
from tomfisher.results.conditions import conditions_of, perplexities
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.scan import scan_of
from tomfisher.studies.config import parse_fill
from tomfisher.studies.measure import Measure

if TYPE_CHECKING:
    from tomfisher.perturbation import Perturbation


@remembered()
def evaluation(
    measure: Measure,
    perturbation: Perturbation | None = None,
    mask: str | os.PathLike[str] | None = None,
    with_perplexity: bool = False,
) -> dict[str, Any]:
    """Measure a model as it is and, with a perturbation, once more while it is applied.

    Args:
        measure: the model and its questions.
        perturbation: of the same model, not applied yet.
        mask: the file that its mask is from, to record.
        with_perplexity: measure the perplexity too.

    Returns:
        JSON-ready: `{"model", "scan", "baseline": state}`, with a perturbation also `"masked": state`. A state is
        `{"conditions", "scores"}`, with the perplexity also `{"perplexity", "word_perplexity", "perplexity_rules"}`;
        the masked one says `{"mask", "nnz", "fill"}` too.
    """
    loaded = measure.loaded
    states = {"baseline": _state(measure, with_perplexity, None)}
    if perturbation is not None:
        with perturbation:
            masked = _state(measure, with_perplexity, states["baseline"]["scores"])
        fill = parse_fill(measure.config.fill)
        states["masked"] = {
            **masked,
            "mask": None if mask is None else os.fspath(mask),
            "nnz": perturbation.mask.nnz,
            "fill": fill,
        }
    return {"model": loaded.identity, "scan": scan_of(loaded.model), **states}


def _state(measure: Measure, with_perplexity: bool, baseline: dict[str, Any] | None) -> dict[str, Any]:
    scores = measure.score()
    before = None if baseline is None else Scores.from_dict(baseline)
    state: dict[str, Any] = {"conditions": conditions_of(scores, before), "scores": scores.to_dict()}
    if with_perplexity:
        perplexity = measure.perplexity()
        state |= {**perplexities(perplexity), "perplexity_rules": perplexity.rules}
    return state
