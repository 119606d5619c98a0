"""`evaluation`: one model on one task, and the same model under a mask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from tomfisher.evaluate.perplexity import Perplexity
from tomfisher.evaluate.records import Scores
from tomfisher.perturbation import State
from tomfisher.results.conditions import conditions_of, perplexities
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.scan import scan_of
from tomfisher.studies.measure import Measure
from tomfisher.studies.parsing import parse_fill

if TYPE_CHECKING:
    from tomfisher.perturbation import Perturbation


@remembered()
def evaluation(
    measure: Measure,
    perturbation: Perturbation | State | None = None,
    mask: str | os.PathLike[str] | None = None,
    with_perplexity: bool = False,
) -> dict[str, Any]:
    """Measure a model as it is and, with a perturbation, once more while it is applied.

    Args:
        measure: the model and its questions.
        perturbation: of the same model, not applied yet; of a streamed model what to write into it.
        mask: the file that its mask is from, to record.
        with_perplexity: measure the perplexity too.

    Returns:
        JSON-ready: `{"model", "scan", "baseline": state}`, with a perturbation also `"masked": state`. A state is
        `{"conditions", "scores"}`, with the perplexity also `{"perplexity", "word_perplexity", "perplexity_rules"}`;
        the masked one says `{"mask", "nnz", "fill"}` too.
    """
    loaded = measure.loaded
    if loaded.opened is None:
        found = _resident(measure, cast("Perturbation | None", perturbation), with_perplexity)
    else:
        found = _streamed(measure, cast("State | None", perturbation), with_perplexity)
    states = {"baseline": _described(*found[0])}
    if perturbation is not None and perturbation.mask is not None:
        states["masked"] = {
            **_described(*found[1], before=found[0][0]),
            "mask": None if mask is None else os.fspath(mask),
            "nnz": perturbation.mask.nnz,
            "fill": parse_fill(measure.config.fill),
        }
    return {"model": loaded.identity_now(), "scan": scan_of(loaded.model), **states}


_Found = tuple[Scores, Perplexity | None]


def _resident(measure: Measure, perturbation: Perturbation | None, with_perplexity: bool) -> list[_Found]:
    def present() -> _Found:
        return measure.score(), measure.perplexity() if with_perplexity else None

    found = [present()]
    if perturbation is not None:
        with perturbation:
            found.append(present())
    return found


def _streamed(measure: Measure, state: State | None, with_perplexity: bool) -> list[_Found]:
    states = [State(), *([] if state is None else [state])]
    found = [each.results for each in measure.in_states(states, with_perplexity)]
    return [(results[0], results[1] if with_perplexity else None) for results in found]


def _described(scores: Scores, perplexity: Perplexity | None, before: Scores | None = None) -> dict[str, Any]:
    state: dict[str, Any] = {"conditions": conditions_of(scores, before), "scores": scores.to_dict()}
    if perplexity is not None:
        state |= {**perplexities(perplexity), "perplexity_rules": perplexity.rules}
    return state
