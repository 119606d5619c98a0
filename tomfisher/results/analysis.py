"""What `analysis.json` says: the states of a study's model on average, and at which κ they are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomfisher.results.results import Results
from tomfisher.results.row import TASK_CONTROL
from tomfisher.results.rule import PAPER
from tomfisher.results.verdict import judge
from tomfisher.text_files import read_json

FILE = "analysis.json"
PARTS = ("rope", "sinks")


def chosen_kappa(results: Results) -> float:
    """The κ to analyse: the verdict's, or without one that of the fall with the lowest p (ties: the largest κ).

    Where the headline accuracy falls at no κ, it is the largest. It is a κ of the paper's rule: where the verdict
    names a mask of another one, it is chosen as without a verdict.

    Args:
        results: a whole study.
    """
    verdict = judge(results)
    if verdict.kappa is not None and verdict.rule == PAPER:
        return verdict.kappa
    tests = results.select(mask=TASK_CONTROL, condition=results.headline, rule=PAPER)
    falls = [
        (row.p_vs_baseline, -row.kappa)
        for row in tests
        if row.kappa is not None and row.accuracy < results.baseline().accuracy
    ]
    return -min(falls)[1] if falls else results.kappas[-1]


def read_analysis(run: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The `analysis.json` of a run folder; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    file = Path(run).expanduser() / FILE
    if not file.is_file():
        return None
    try:
        return dict(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it and run the same command again.") from None


def means(before: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state says on average over all heads of all layers; a part that it does not have is left out.

    Args:
        before: the untouched model, as `analysis.json` has it.
        state: a perturbed one.

    Returns:
        `{"sinks": {measure: mean, "sink_rate": of the first token}, "rope": {"dominant": relative change of the norm
        of each head's dominant pair, "q": {"dominant", "slow", "middle", "fast": relative change of the
        root-mean-square norm}, "k": the same}}`; None where nothing is known.
    """
    averages: dict[str, Any] = {}
    if sinks := state.get("sinks"):
        measures = [name for name in sinks["layers"][0] if name not in ("layer", "sink_rate")]
        averages["sinks"] = {
            name: _mean([value for layer in sinks["layers"] for value in layer[name]]) for name in measures
        }
        metric = sinks.get("metric")
        averages["sinks"]["sink_rate"] = metric[0] if metric else None
    if state.get("rope") and before.get("rope"):
        parts = {part: _dominant_changes(before["rope"], state["rope"], part) for part in ("q", "k")}
        averages["rope"] = {"dominant": _mean([*parts["q"], *parts["k"]])}
        for part, dominant in parts.items():
            averages["rope"][part] = {"dominant": _mean(dominant), **_band_changes(before, state, part)}
    return averages


def _band_changes(before: Mapping[str, Any], state: Mapping[str, Any], part: str) -> dict[str, float | None]:
    """Relative change of the root-mean-square norm of each band, where it was compared."""
    change = (state.get("change") or {}).get("rope")
    if change is None:
        return {}
    heads = [head for layer in change[part] for head in layer["bands"]]
    return {name: _mean([head[i] for head in heads]) for i, name in enumerate(before["rope"]["bands"])}


def _dominant_changes(before: Mapping[str, Any], after: Mapping[str, Any], part: str) -> list[float]:
    """Relative change of the norm of the pair that was dominant, of every head of every layer."""
    return [
        new[part]["norm"][head][pair] / old[part]["norm"][head][pair] - 1
        for old, new in zip(before["layers"], after["layers"], strict=True)
        for head, pair in enumerate(old[part]["dominant"])
        if old[part]["norm"][head][pair]
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
