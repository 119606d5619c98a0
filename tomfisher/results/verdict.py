"""What the numbers say: did a sparse mask remove the ability, and only it?"""

from __future__ import annotations

from dataclasses import dataclass

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.controls import has_controls
from tomfisher.results.held_out import HeldOut
from tomfisher.results.power import ALPHA, too_few
from tomfisher.results.results import Results, corrected
from tomfisher.results.row import CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.rule import PAPER, Rule

PERPLEXITY_LIMIT = 0.05


@dataclass(frozen=True)
class Verdict:
    """The outcome of a study, computed from its results alone.

    Args:
        found: whether at some κ the task-minus-control mask lowers the headline accuracy significantly,
            clearly more than every control mask, with the perplexity rising by less than 5 %.
        kappa: that κ (where the accuracy falls most), or None.
        rule: how the mask of that κ was chosen: the paper's, unless the study has others.
        sentences: the outcome in words, the rule applied included.
        enough: False where there are too few questions for any outcome to be significant.
    """

    found: bool
    kappa: float | None
    sentences: tuple[str, ...]
    enough: bool = True
    rule: Rule = PAPER

    def __str__(self) -> str:
        return "\n".join(self.sentences)


@dataclass(frozen=True)
class Effect:
    """One mask: its headline row, its corrected p, and how it stands against the controls.

    Args:
        row: of the mask, on the headline condition.
        p: after Holm.
        controls: rows of the control masks of the same rule and κ.
        falls: whether the accuracy falls significantly.
        clear: whether its interval lies below that of every control, and none of the controls is missing.
        perplexity_rise: relative to the untouched model.
    """

    row: Row
    p: float
    controls: tuple[Row, ...]
    falls: bool
    clear: bool
    perplexity_rise: float

    @property
    def holds(self) -> bool:
        """Whether the mask meets the rule of the verdict, the baseline's accuracy aside."""
        return self.falls and self.clear and self.perplexity_rise < PERPLEXITY_LIMIT


def judge(results: Results) -> Verdict:
    """Decide from the results whether an ability-specific sparse mask was found.

    The baseline must lie above chance by its 95 % interval, and at a κ all of these must hold: the accuracy
    on the headline condition ("false-belief", or "all" where the task has none) falls, with p
    below 0.05 (exact sign-flip test over clusters) after Holm's correction over the κ; its 95 % interval lies wholly
    below the interval of the control-only mask and of every random mask; the perplexity rises by less than 5 %.
    Where a study has masks of other rules than the paper's, all are judged and the correction runs over them all;
    controls are those of the same rule and κ (a criterion that reads no texts has no control-only mask).

    Args:
        results: a whole study.

    Returns:
        The verdict, negative results included.
    """
    effects = effects_of(results)
    holding = [effect for effect in effects if effect.holds]
    able, sentence = _baseline(results)
    if holding and able:
        best = min(holding, key=lambda effect: effect.row.accuracy)
        told = (sentence, *_positive(results, best), *_on_held_out(results))
        return Verdict(True, best.row.kappa, told, rule=best.row.rule)
    lacking = too_few(_clusters(results.baseline()), len(effects), _noun(results))
    if lacking and effects and not any(effect.falls for effect in effects):
        return Verdict(False, None, (sentence, f"{lacking[0].upper()}{lacking[1:]}"), enough=False)
    return Verdict(False, None, (sentence, *_negative(results, effects, able), *_on_held_out(results)))


def headline_tests(results: Results, condition: str | None = None) -> dict[Row, float]:
    """The task-control mask of every rule and κ, on one condition (None: the headline), with p after Holm over all."""
    return corrected(
        row
        for rule in results.rules
        for kappa in results.kappas
        for row in results.at(kappa, TASK_CONTROL, condition, rule)
    )


def effects_of(results: Results) -> list[Effect]:
    """Every mask that the verdict looks at, with one correction over all of them."""
    return [_effect(results, row, p) for row, p in headline_tests(results).items()]


def _effect(results: Results, row: Row, p: float) -> Effect:
    assert row.kappa is not None
    controls = tuple(
        control
        for mask in (CONTROL_ONLY, RANDOM)
        for control in results.at(row.kappa, mask, row.condition, row.rule)
    )
    falls = p < ALPHA and row.accuracy < results.baseline().accuracy
    below = all(row.ci95_high < control.ci95_low for control in controls)
    complete = has_controls(row.rule, {control.mask for control in controls})
    return Effect(row, p, controls, falls, complete and below, results.rise(row))


def _baseline(results: Results) -> tuple[bool, str]:
    """Whether the untouched model has the ability at all, as far as chance is known; and in words."""
    row = results.baseline()
    words = (
        f"Baseline: {row.condition} accuracy {row.accuracy:.3f} "
        f"({_counted(row)}, 95 % interval {row.ci95_low:.3f} to {row.ci95_high:.3f})"
    )
    chance = results.provenance.get("evaluation", {}).get("chance", {}).get(row.condition)
    if chance is None:
        return True, f"{words}."
    if row.ci95_low > chance:
        return True, f"{words}, above chance ({chance:.3f})."
    if row.ci95_high < chance:
        return False, f"{words}, below chance ({chance:.3f}): the untouched model prefers the wrong answer."
    return False, f"{words}, not distinguishable from chance ({chance:.3f}): no ability is seen."


def _clusters(row: Row) -> int:
    return row.n if row.n_clusters is None else row.n_clusters


def _counted(row: Row) -> str:
    """The number of questions, and of their clusters where they are fewer."""
    clusters = _clusters(row)
    return f"n = {row.n}" if clusters == row.n else f"n = {row.n} in {clusters} clusters"


def _noun(results: Results) -> str:
    """What the verdict looks at several of."""
    return "kappa" if set(results.rules) <= {PAPER} else "mask"


def _place(row: Row) -> str:
    """Which mask it is."""
    return f"kappa = {row.kappa:g}" + ("" if row.rule == PAPER else f" ({row.rule})")


def _others(effect: Effect) -> str:
    """The control-only mask, where there is one, with its size where that is not the mask's own."""
    sizes = [control.nnz for control in effect.controls if control.mask == CONTROL_ONLY]
    if not sizes:
        return ""
    own = "" if sizes[0] == effect.row.nnz else f" ({sizes[0]} weights)"
    return f"the control-only mask{own} and "


def _on_held_out(results: Results) -> list[str]:
    """What the mask chosen on one half of the scenes does on the other, where the study has that."""
    held = results.held_out
    if held is None:
        return []
    return [
        f"Chosen on one half of the scenes, of {held.candidates} masks under {PERPLEXITY_LIMIT:+.0%} perplexity: "
        f"{held.rule} at kappa = {held.kappa:g} ({held.nnz} weights, perplexity {held.rise:+.1%}), "
        f"{held.chosen[0]:.3f} to {held.chosen[1]:.3f}. On the other half (n = {held.n} in {held.n_clusters} "
        f"clusters): {held.before:.3f} to {held.after:.3f}, 95 % interval {held.ci95[0]:.3f} to {held.ci95[1]:.3f}, "
        f"p = {held.p:.2g}"
        f"{_beside(held)}."
    ]


def _beside(held: HeldOut) -> str:
    """How it stands against the control masks on the second half."""
    if not held.controls:
        return ""
    clear = "clear of" if held.is_clear else "not clear of"
    lowest = f"whose intervals begin at {min(held.controls):.3f} or more"
    return f"; {clear} its {len(held.controls)} control masks, {lowest}"


def _positive(results: Results, effect: Effect) -> list[str]:
    row = effect.row
    lowest, *others = sorted({f"{control.accuracy:.3f}" for control in effect.controls})
    randoms = sum(control.mask == RANDOM for control in effect.controls)
    sentences = [
        f"Found: at {_place(row)}, {row.nnz} perturbed weights take {row.condition} accuracy from "
        f"{results.baseline().accuracy:.3f} to {row.accuracy:.3f} "
        f"(p = {effect.p:.2g}: {TEST}, Holm), while {_others(effect)}{randoms} random masks of "
        f"the same size leave it at {lowest}{' or more' if others else ''}; "
        f"perplexity: {effect.perplexity_rise:+.1%}."
    ]
    return sentences + _other_questions(results, row)


def _other_questions(results: Results, headline: Row) -> list[str]:
    """How specific it is: the questions about reality on the same stories."""
    name = f"{headline.condition}/reality"
    assert headline.kappa is not None
    return [
        f"The reality questions on the same stories went from {results.baseline(name).accuracy:.3f} to "
        f"{row.accuracy:.3f} (p = {row.p_vs_baseline:.2g})."
        for row in results.at(headline.kappa, TASK_CONTROL, name, headline.rule)
    ]


def _negative(results: Results, effects: list[Effect], able: bool) -> list[str]:
    rule = (
        f"Not found: no {_noun(results)} meets the rule (baseline above chance; a fall of {results.headline} accuracy "
        "that is significant after Holm; clearly below every random and control-only mask; less than "
        f"{PERPLEXITY_LIMIT:.0%} more perplexity)."
    )
    falling = [effect for effect in effects if effect.falls]
    if not falling:
        smallest = min((effect.p for effect in effects), default=1.0)
        return [
            rule,
            f"No significant fall at any {_noun(results)}; the smallest corrected p is {smallest:.2g}.",
        ]
    best = min(falling, key=lambda effect: effect.row.accuracy)
    return [rule, _shortfall(results, best, able)]


def _shortfall(results: Results, effect: Effect, able: bool) -> str:
    row = effect.row
    reasons = [] if able else ["the baseline is not above chance"]
    if not any(control.mask == RANDOM for control in effect.controls):
        reasons.append("no random mask was measured there")
    elif not effect.clear and effect.controls:
        lowest = min(effect.controls, key=lambda control: control.accuracy)
        size = "the same size" if lowest.nnz == row.nnz else f"{lowest.nnz} weights"
        reasons.append(f"a {lowest.mask} mask of {size} gives {lowest.accuracy:.3f}")
    if not effect.perplexity_rise < PERPLEXITY_LIMIT:
        reasons.append(f"perplexity changes by {effect.perplexity_rise:+.1%}")
    return (
        f"The largest significant fall is at {_place(row)}: "
        f"{results.baseline().accuracy:.3f} to {row.accuracy:.3f} "
        f"(p = {effect.p:.2g}), but {' and '.join(reasons)}."
    )
