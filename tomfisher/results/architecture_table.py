"""Several architectures side by side, as text: each at its own κ, and all at every κ that they share."""

from __future__ import annotations

from collections.abc import Sequence

from tomfisher.results import equal_kappa
from tomfisher.results.architectures import Outcome
from tomfisher.results.columns import WEIGHTS, answers, interval, masks_at, on_text, tested
from tomfisher.results.row import BASELINE, CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL
from tomfisher.results.tables import TEXT, Column, align, span
from tomfisher.results.verdict import headline_tests

GROUPS = {"qk": "q and k", "vo": "v and o", "mlp": "MLP", "mixer": "mixer"}
_STYLE = TEXT._replace(absent="-", once=False)


def render(outcomes: Sequence[Outcome]) -> str:
    """A table with a column per architecture, each at its own κ, and one of all at every κ that they share.

    Reasons for what is missing stand under the first.

    Args:
        outcomes: of the studies.

    Returns:
        Lines joined by newlines, without colour.
    """
    groups = [group for group in GROUPS if any(group in (outcome.where or {}) for outcome in outcomes)]
    conditions = list(dict.fromkeys(name for outcome in outcomes for name in outcome.conditions))
    each = [_cells(outcome, groups, conditions) for outcome in outcomes]
    rows = [[same[0][0], *(cell for _, cell in same)] for same in zip(*each, strict=True)]
    lines = [align(["", *(outcome.title for outcome in outcomes)], rows, left=(0,))]
    told = {reason for outcome in outcomes for reason in outcome.reasons.values()}
    lines += [f"- {reason}" for reason in sorted(told)]
    return "\n".join([*lines, "", equal_kappa.render(outcomes)])


def _cells(outcome: Outcome, groups: Sequence[str], conditions: Sequence[str]) -> list[tuple[str, str]]:
    """Label and cell of every row, the labels the same for each architecture."""
    results, (headline, *others) = outcome.results, conditions
    return [
        ("positions", outcome.positions),
        ("effect found", "yes" if outcome.found else "no"),
        ("kappa", f"{outcome.kappa:g}"),
        *_shown(
            outcome,
            WEIGHTS._replace(header="weights perturbed"),
            *answers(f"{headline} before", beside=BASELINE),
            _interval(beside=BASELINE),
            *answers(f"{headline} after"),
            _interval(),
            tested(headline_tests(results), "  p (sign flip, Holm)"),
            *answers("  random masks", beside=RANDOM),
            *answers("  control-only mask", beside=CONTROL_ONLY),
            _interval("    95 % interval", CONTROL_ONLY),
        ),
        *(cell for name in others for cell in _change_of(outcome, name)),
        *_shown(
            outcome,
            *on_text(results, "perplexity"),
            *on_text(results, "  control-only mask", CONTROL_ONLY),
            *on_text(results, "  random masks", RANDOM),
        ),
        *((f"mask in {GROUPS[group]} (of weights)", _share(outcome, group)) for group in groups),
        ("dominant rotary pairs", _norm_change(outcome, TASK_CONTROL)),
        ("  random masks", span(outcome.random_dominant_norms, "{:+.1%}", _STYLE)),
        ("attention to first token", _mass(outcome, TASK_CONTROL)),
        ("  random masks", span(outcome.random_first_masses, "{:.3f}", _STYLE)),
    ]


def _shown(outcome: Outcome, *columns: Column) -> list[tuple[str, str]]:
    line = masks_at(outcome.results, outcome.kappa, ())
    return [(column.header, column.cell(line, _STYLE)) for column in columns]


def _interval(header: str = "  95 % interval", beside: str | None = None) -> Column:
    return interval(header=header, beside=beside)._replace(form="{:.2f}", to=None)


def _change_of(outcome: Outcome, condition: str) -> list[tuple[str, str]]:
    """A condition before the mask and under it; dashes where the study has no such condition."""
    family, _, kind = condition.partition(f"/{HEADLINE}")
    columns = [*answers(f"{family} ({kind[1:]})" if kind else family), _interval("  95 % intervals")]
    if condition not in outcome.conditions:
        return [(column.header, _STYLE.absent) for column in columns]
    line = masks_at(outcome.results, outcome.kappa, (), condition)
    return [
        (after.header, f"{before.cell(line, _STYLE)} > {after.cell(line, _STYLE)}")
        for after in columns
        for before in [after._replace(beside=BASELINE)]
    ]


def _share(outcome: Outcome, group: str) -> str:
    shares = (outcome.where or {}).get(group)
    return f"{shares['share']:.0%} ({shares['weight_share']:.0%})" if shares else "-"


def _norm_change(outcome: Outcome, mask: str) -> str:
    change = outcome.dominant_norm or {}
    return f"{change[mask]:+.1%}" if mask in change else "-"


def _mass(outcome: Outcome, mask: str) -> str:
    mass = outcome.first_mass or {}
    return f"{mass['before']:.3f} > {mass[mask]:.3f}" if {"before", mask} <= mass.keys() else "-"
