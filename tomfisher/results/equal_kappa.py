"""Architectures side by side at the same κ: what each study measured there, and what may be said about their order."""

from __future__ import annotations

from collections.abc import Sequence

from tomfisher.results.architectures import Outcome
from tomfisher.results.columns import answers, on_text
from tomfisher.results.tables import TEXT, Column, Line, align

ONE_SEED = (
    "Each architecture is one model, trained once with one seed: how much of a difference is the architecture's and "
    "how much that training's is not known."
)


def common_kappas(outcomes: Sequence[Outcome]) -> list[float]:
    """The κ that every study has, rising."""
    each = [set(outcome.results.kappas) for outcome in outcomes]
    return sorted(set.intersection(*each)) if each else []


def apart(outcomes: Sequence[Outcome], kappa: float) -> list[tuple[Outcome, list[Outcome]]]:
    """Architectures whose interval under the task's mask lies wholly below those of others, with these others."""
    rows = [(outcome, outcome.after(kappa=kappa)) for outcome in outcomes]
    pairs = [(low, [high for high, row in rows if own.ci95_high < row.ci95_low]) for low, own in rows]
    return [(low, above) for low, above in pairs if above]


def sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """Where the effect was found, and an order of two architectures only where their intervals at one κ lie apart."""
    words = [_found(outcomes)]
    if len(outcomes) > 1:
        orders = [_order(outcomes, kappa) for kappa in common_kappas(outcomes)]
        words += [order for order in orders if order]
        if not any(orders):
            words.append(
                "At no kappa that all have do the 95 % intervals of two architectures lie apart, so nothing is said "
                "about which of them the mask hits harder."
            )
    return [*words, ONE_SEED]


def _found(outcomes: Sequence[Outcome]) -> str:
    yes = [f"{outcome.title} (kappa = {outcome.kappa:g})" for outcome in outcomes if outcome.found]
    no = [outcome.title for outcome in outcomes if not outcome.found]
    parts = [f"found in {', '.join(yes)}"] if yes else []
    parts += [f"not found in {', '.join(no)}"] if no else []
    return f"The effect was {'; '.join(parts)}. Each kappa is that architecture's own, where its accuracy falls most."


def _order(outcomes: Sequence[Outcome], kappa: float) -> str:
    lower = [
        f"{low.title} ({low.after(kappa=kappa).accuracy:.3f}) than in {', '.join(o.title for o in above)}"
        for low, above in apart(outcomes, kappa)
    ]
    if not lower:
        return ""
    return (
        f"At kappa = {kappa:g} the accuracy under the task's mask is lower in {'; lower in '.join(lower)} (95 % "
        "intervals do not overlap; those of the other pairs do)."
    )


def render(outcomes: Sequence[Outcome]) -> str:
    """A line per κ that all studies have, a column per architecture: accuracy, interval, rise of the perplexity.

    Args:
        outcomes: of the studies.

    Returns:
        Lines joined by newlines, the first says what a cell holds; a sentence where no κ is common to all.
    """
    kappas = common_kappas(outcomes)
    shown = " ".join(column.header for column in _columns(outcomes[0]))
    heading = f"Under the task's mask at equal kappa: {shown}"
    if not kappas:
        return f"{heading}\nNo kappa is common to all studies."
    rows = [[f"{kappa:g}", *(_cell(outcome, kappa) for outcome in outcomes)] for kappa in kappas]
    return f"{heading}\n{align(['kappa', *(outcome.title for outcome in outcomes)], rows, left=(0,))}"


def _columns(outcome: Outcome) -> list[Column]:
    return [
        *answers("accuracy (95 % interval)", ci95=" ({:.2f}..{:.2f})"),
        *on_text(outcome.results, "rise of the perplexity"),
    ]


def _cell(outcome: Outcome, kappa: float) -> str:
    line = Line([], [outcome.after(kappa=kappa)])
    return " ".join(column.cell(line, TEXT) for column in _columns(outcome))
