"""What the same study found in each of several architectures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tomfisher.results.analysis import chosen_kappa
from tomfisher.results.results import Results
from tomfisher.results.row import CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL, Row
from tomfisher.results.verdict import headline_tests, judge

FAMILIES = ("contents", "transfer", "second-order")
MASKS = (TASK_CONTROL, CONTROL_ONLY, RANDOM)


@dataclass(frozen=True)
class Outcome:
    """What the study found in one architecture, at one κ.

    Args:
        architecture: "llama", "qwen2", ...
        title: the same for a heading.
        positions: how positions enter: "RoPE", "ALiBi" or "none".
        found: the verdict (`tomfisher.results.judge`).
        kappa: the verdict's; where nothing was found, that of the most significant fall.
        weights: number of perturbed weights.
        p: of false-belief accuracy against the untouched model, by the sign-flip test over scenes, after Holm's
            correction over the κ.
        conditions: `{name: {"before", "after", "random", "control-only"}}` for "false-belief", its families and the
            control questions on the same stories: `{"n", "accuracy", "ci95"}` each, "random" a list of them.
        perplexity_rise: relative, under the task's mask.
        control_perplexity_rise: relative, under the control-only mask.
        random_perplexity_rises: relative, under each random mask.
        where: per group of weights its `{"share"}` of the mask and `{"weight_share"}`; None without an analysis.
        dominant_norm: mean relative change of the norm of each head's dominant rotary pair, per mask, or None.
        first_mass: attention to the first token, mean over all heads: "before" and per mask, or None.
        random_dominant_norms: the same change under each random mask that was analysed.
        random_first_masses: the same attention under each of them.
        reasons: why a part is None.
        verdict: in words.
        kappas: the same false-belief accuracies and perplexities at every κ (`at_kappas`).
    """

    architecture: str
    title: str
    positions: str
    found: bool
    kappa: float
    weights: int
    p: float
    conditions: dict[str, dict[str, Any]]
    perplexity_rise: float
    control_perplexity_rise: float
    random_perplexity_rises: tuple[float, ...]
    where: dict[str, dict[str, float]] | None
    dominant_norm: dict[str, float] | None
    first_mass: dict[str, float] | None
    reasons: dict[str, str]
    verdict: tuple[str, ...]
    kappas: tuple[dict[str, Any], ...] = ()
    random_dominant_norms: tuple[float, ...] = ()
    random_first_masses: tuple[float, ...] = ()


def outcome(name: str, results: Results, analysis: Mapping[str, Any] | None = None) -> Outcome:
    """Gather what is told about one architecture.

    Args:
        name: the architecture.
        results: its study.
        analysis: its `analysis.json`.

    Returns:
        An `Outcome`, at the κ of the analysis, or of the verdict where there is none.
    """
    from tomfisher.testbed.recipe import architecture

    entry, verdict = architecture(name), judge(results)
    kappa = float(analysis["kappa"]) if analysis is not None else chosen_kappa(results)
    kappas = at_kappas(results, headline_tests(results))
    (own,) = (row for row in kappas if row["kappa"] == kappa)
    return Outcome(
        architecture=name,
        title=entry.title,
        positions=entry.positions,
        found=verdict.found,
        kappa=kappa,
        weights=own["weights"],
        p=own["p"],
        conditions={condition: _condition(results, kappa, condition) for condition in _told(results)},
        perplexity_rise=own["perplexity_rise"],
        control_perplexity_rise=own["control_perplexity_rise"],
        random_perplexity_rises=tuple(own["random_perplexity_rises"]),
        where=_where(analysis),
        dominant_norm=_dominant_norm(analysis),
        first_mass=_first_mass(analysis),
        reasons=_reasons(analysis),
        verdict=verdict.sentences,
        kappas=kappas,
        random_dominant_norms=_of_randoms(analysis, "rope", "dominant"),
        random_first_masses=_of_randoms(analysis, "sinks", "first_mass"),
    )


def _reasons(analysis: Mapping[str, Any] | None) -> dict[str, str]:
    if analysis is None:
        return {"inside": "The run folder has no analysis.json (analysis_prompts is 0)."}
    return {part: why for part, why in analysis["unavailable"].items() if part in ("rope", "sinks")}


def _told(results: Results) -> list[str]:
    headline = results.headline
    beliefs = [f"{family}/{HEADLINE}" for family in FAMILIES]
    controls = [f"{headline}/reality", f"{FAMILIES[-1]}/{HEADLINE}/first-order"]
    return [name for name in (headline, *beliefs, *controls) if name in results.conditions]


def _condition(results: Results, kappa: float, name: str) -> dict[str, Any]:
    return {
        "before": score(results.baseline(name)),
        "after": score(results.at(kappa, TASK_CONTROL, name)[0]),
        CONTROL_ONLY: score(results.at(kappa, CONTROL_ONLY, name)[0]),
        RANDOM: [score(row) for row in results.at(kappa, RANDOM, name)],
    }


def _where(analysis: Mapping[str, Any] | None) -> dict[str, dict[str, float]] | None:
    if analysis is None or not analysis.get("profile"):
        return None
    rows = analysis["profile"]["groups"]
    return {row["group"]: {"share": row["share"], "weight_share": row["weight_share"]} for row in rows}


def _states(analysis: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What was measured of a part, by mask; "before" is the untouched model."""
    found = {"before": analysis.get("baseline", {}), **analysis.get("states", {})}
    return {name: state[part] for name, state in found.items() if state.get(part)}


def _dominant_norm(analysis: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Per mask, the mean over layers, q and k and heads of after / before - 1 in the pair that was dominant."""
    states = {} if analysis is None else _states(analysis, "rope")
    if "before" not in states:
        return None
    before = _dominant(states["before"], states["before"])
    return {
        name: _mean(
            [
                new / old - 1
                for new, old in zip(_dominant(states[name], states["before"]), before, strict=True)
            ]
        )
        for name in MASKS
        if name in states
    }


def _dominant(spectrum: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[float]:
    """Mean norms of the pairs that are dominant in the baseline."""
    return [
        layer[part]["norm"][head][pair]
        for layer, reference in zip(spectrum["layers"], baseline["layers"], strict=True)
        for part in ("q", "k")
        for head, pair in enumerate(reference[part]["dominant"])
    ]


def _first_mass(analysis: Mapping[str, Any] | None) -> dict[str, float] | None:
    states = {} if analysis is None else _states(analysis, "sinks")
    masses = {
        name: _mean([mass for layer in state["layers"] for mass in layer["first_mass"]])
        for name, state in states.items()
    }
    return masses or None


def _of_randoms(analysis: Mapping[str, Any] | None, part: str, measure: str) -> tuple[float, ...]:
    """One mean of every random mask that was analysed; nothing where the part is missing."""
    rows = [] if analysis is None else analysis.get("randoms", [])
    return tuple(row[part][measure] for row in rows if row.get(part, {}).get(measure) is not None)


def at_kappas(results: Results, p: Mapping[Row, float]) -> tuple[dict[str, Any], ...]:
    """What a study measured at every κ on its headline condition.

    Args:
        results: the study.
        p: per κ, the headline row of the task's mask with its corrected p.

    Returns:
        Per κ `{"kappa", "weights", "p", "after", "control-only", "random", "perplexity_rise",
        "control_perplexity_rise", "random_perplexity_rises"}`; scores are `{"n", "accuracy", "ci95"}`, "random" a list
        of them.
    """
    found = []
    for row, corrected in p.items():
        assert row.kappa is not None
        (control,) = results.at(row.kappa, CONTROL_ONLY)
        randoms = results.at(row.kappa, RANDOM)
        found.append(
            {
                "kappa": row.kappa,
                "weights": row.nnz,
                "p": corrected,
                "after": score(row),
                CONTROL_ONLY: score(control),
                RANDOM: [score(random) for random in randoms],
                "perplexity_rise": results.rise(row),
                "control_perplexity_rise": results.rise(control),
                "random_perplexity_rises": [results.rise(random) for random in randoms],
            }
        )
    return tuple(found)


def score(row: Row) -> dict[str, Any]:
    """Number of questions, accuracy and 95 % interval."""
    return {"n": row.n, "accuracy": row.accuracy, "ci95": list(row.ci95)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
