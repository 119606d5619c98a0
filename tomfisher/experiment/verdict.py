"""What the numbers say: did a sparse mask remove the ability, and only it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tomfisher.evaluate.scenes import TEST
from tomfisher.evaluate.statistics import holm as holm
from tomfisher.experiment.power import ALPHA as ALPHA
from tomfisher.experiment.power import too_few
from tomfisher.experiment.results import CONTROL_ONLY, RANDOM, TASK_CONTROL, Point, Results
from tomfisher.experiment.table import rise

PERPLEXITY_LIMIT = 0.05


@dataclass(frozen=True)
class Verdict:
    """The outcome of a study, computed from its results alone.

    Args:
        found: whether at some κ the task-minus-control mask lowers the headline accuracy significantly,
            clearly more than every control mask, with the perplexity rising by less than 5 %.
        kappa: that κ (where the accuracy falls most), or None.
        sentences: the outcome in words, the rule applied included.
        enough: False where there are too few questions for any outcome to be significant.
    """

    found: bool
    kappa: float | None
    sentences: tuple[str, ...]
    enough: bool = True

    def __str__(self) -> str:
        return "\n".join(self.sentences)


@dataclass(frozen=True)
class _Effect:
    """One κ: the point, its corrected p, and how it stands against the controls."""

    point: Point
    p: float
    controls: tuple[Point, ...]
    headline: str
    falls: bool
    clear: bool
    perplexity_rise: float

    @property
    def holds(self) -> bool:
        return self.falls and self.clear and self.perplexity_rise < PERPLEXITY_LIMIT


def judge(results: Results) -> Verdict:
    """Decide from the results whether an ability-specific sparse mask was found.

    The baseline must lie above chance by its 95 % interval, and at a κ all of these must hold: the accuracy
    on the headline condition ("false-belief", or "all" where the task has none) falls, with p
    below 0.05 (exact sign-flip test over scenes) after Holm's correction over the κ; its 95 % interval lies wholly
    below the interval of the control-only mask and of every random mask; the perplexity rises by less than 5 %.

    Args:
        results: a whole study.

    Returns:
        The verdict, negative results included.
    """
    headline = results.baseline.headline()
    points = [point for kappa in results.kappas for point in results.at(kappa, TASK_CONTROL)]
    corrected = holm([point.conditions[headline]["p_vs_baseline"] for point in points])
    effects = [_effect(results, point, p, headline) for point, p in zip(points, corrected, strict=True)]
    holding = [effect for effect in effects if effect.holds]
    able, sentence = _baseline(results, headline)
    sentences = [sentence]
    if holding and able:
        best = min(holding, key=lambda effect: effect.point.accuracy(headline))
        sentences += _positive(results, best)
        return Verdict(True, best.point.kappa, tuple(sentences))
    score = results.baseline.conditions[headline]
    lacking = too_few(score.get("n_scenes", score["n"]), len(points))
    if lacking and points and not any(effect.falls for effect in effects):
        sentences.append(f"{lacking[0].upper()}{lacking[1:]}")
        return Verdict(False, None, tuple(sentences), enough=False)
    sentences += _negative(results, effects, headline, able)
    return Verdict(False, None, tuple(sentences))


def _effect(results: Results, point: Point, p: float, headline: str) -> _Effect:
    controls = (*results.at(point.kappa, CONTROL_ONLY), *results.at(point.kappa, RANDOM))
    falls = p < ALPHA and point.accuracy(headline) < results.baseline.accuracy(headline)
    top = point.conditions[headline]["ci95"][1]
    below = all(top < control.conditions[headline]["ci95"][0] for control in controls)
    complete = {control.mask for control in controls} == {CONTROL_ONLY, RANDOM}
    return _Effect(point, p, controls, headline, falls, complete and below, rise(results, point))


def _baseline(results: Results, headline: str) -> tuple[bool, str]:
    """Whether the untouched model has the ability at all, as far as chance is known; and in words."""
    score = results.baseline.conditions[headline]
    low, high = score["ci95"]
    words = (
        f"Baseline: {headline} accuracy {score['accuracy']:.3f} "
        f"({_counted(score)}, 95 % interval {low:.3f} to {high:.3f})"
    )
    chance = results.provenance.get("evaluation", {}).get("chance", {}).get(headline)
    if chance is None:
        return True, f"{words}."
    if low > chance:
        return True, f"{words}, above chance ({chance:.3f})."
    if high < chance:
        return False, f"{words}, below chance ({chance:.3f}): the untouched model prefers the wrong answer."
    return False, f"{words}, not distinguishable from chance ({chance:.3f}): no ability is seen."


def _counted(score: Mapping[str, Any]) -> str:
    """The number of questions, and of their scenes where they are fewer."""
    n, scenes = score["n"], score.get("n_scenes", score["n"])
    return f"n = {n}" if scenes == n else f"n = {n} on {scenes} scenes"


def _positive(results: Results, effect: _Effect) -> list[str]:
    point, headline = effect.point, effect.headline
    lowest, *others = sorted({f"{control.accuracy(headline):.3f}" for control in effect.controls})
    randoms = len(results.at(point.kappa, RANDOM))
    sentences = [
        f"Found: at kappa = {point.kappa:g}, {point.nnz} perturbed weights take {headline} accuracy from "
        f"{results.baseline.accuracy(headline):.3f} to {point.accuracy(headline):.3f} "
        f"(p = {effect.p:.2g}: {TEST}, Holm), while the control-only mask and {randoms} random masks of "
        f"the same size leave it at {lowest}{' or more' if others else ''}; "
        f"perplexity: {effect.perplexity_rise:+.1%}."
    ]
    return sentences + _other_questions(results, point, headline)


def _other_questions(results: Results, point: Point, headline: str) -> list[str]:
    """How specific it is: the questions about reality on the same stories."""
    name = f"{headline}/reality"
    if name not in point.conditions:
        return []
    before, after = results.baseline.accuracy(name), point.accuracy(name)
    p = point.conditions[name]["p_vs_baseline"]
    return [f"The reality questions on the same stories went from {before:.3f} to {after:.3f} (p = {p:.2g})."]


def _negative(results: Results, effects: list[_Effect], headline: str, able: bool) -> list[str]:
    rule = (
        f"Not found: no kappa meets the rule (baseline above chance; a fall of {headline} accuracy that is "
        "significant after Holm; clearly below every random and control-only mask; less than "
        f"{PERPLEXITY_LIMIT:.0%} more perplexity)."
    )
    falling = [effect for effect in effects if effect.falls]
    if not falling:
        smallest = min((effect.p for effect in effects), default=1.0)
        return [rule, f"No significant fall at any kappa; the smallest corrected p is {smallest:.2g}."]
    best = min(falling, key=lambda effect: effect.point.accuracy(headline))
    return [rule, _shortfall(results, best, able)]


def _shortfall(results: Results, effect: _Effect, able: bool) -> str:
    point, headline = effect.point, effect.headline
    reasons = [] if able else ["the baseline is not above chance"]
    if not results.at(point.kappa, RANDOM):
        reasons.append("no random mask was measured there")
    elif not effect.clear and effect.controls:
        lowest = min(effect.controls, key=lambda control: control.accuracy(headline))
        reasons.append(f"a {lowest.mask} mask of the same size gives {lowest.accuracy(headline):.3f}")
    if not effect.perplexity_rise < PERPLEXITY_LIMIT:
        reasons.append(f"perplexity changes by {effect.perplexity_rise:+.1%}")
    return (
        f"The largest significant fall is at kappa = {point.kappa:g}: "
        f"{results.baseline.accuracy(headline):.3f} to {point.accuracy(headline):.3f} "
        f"(p = {effect.p:.2g}), but {' and '.join(reasons)}."
    )
