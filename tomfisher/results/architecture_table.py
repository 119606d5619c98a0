"""Several architectures side by side, as text: each at its own κ, and all at every κ that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tomfisher.results import equal_kappa
from tomfisher.results.architectures import Outcome
from tomfisher.results.row import HEADLINE, TASK_CONTROL, Row
from tomfisher.results.tables import align

GROUPS = {"qk": "q and k", "vo": "v and o", "mlp": "MLP", "mixer": "mixer"}
_INTERVALS = "  95 % intervals"


def render(outcomes: Sequence[Outcome]) -> str:
    """A table with a column per architecture, each at its own κ, and one of all at every κ that they share.

    Reasons for what is missing stand under the first.

    Args:
        outcomes: of the studies.

    Returns:
        Lines joined by newlines, without colour.
    """
    rows = [[label, *(cell(outcome) for outcome in outcomes)] for label, cell in _rows(outcomes)]
    lines = [align(["", *(outcome.title for outcome in outcomes)], rows, left=(0,))]
    told = {reason for outcome in outcomes for reason in outcome.reasons.values()}
    lines += [f"- {reason}" for reason in sorted(told)]
    lines += ["", "Under the task's mask at equal kappa: accuracy (95 % interval) rise of the perplexity"]
    return "\n".join([*lines, equal_kappa.render(outcomes)])


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, Callable[[Outcome], str]]]:
    """Label and cell of every row."""
    groups = [group for group in GROUPS if any(group in (outcome.where or {}) for outcome in outcomes)]
    headline, *others = dict.fromkeys(name for outcome in outcomes for name in outcome.conditions)
    return [
        ("positions", lambda o: o.positions),
        ("effect found", lambda o: "yes" if o.found else "no"),
        ("kappa", lambda o: f"{o.kappa:g}"),
        ("weights perturbed", lambda o: f"{o.after().nnz}"),
        (f"{headline} before", lambda o: _accuracy(o.before())),
        ("  95 % interval", lambda o: _interval(o.before())),
        (f"{headline} after", lambda o: _accuracy(o.after())),
        ("  95 % interval", lambda o: _interval(o.after())),
        ("  p (sign flip, Holm)", lambda o: f"{o.p():.2g}"),
        ("  random masks", lambda o: _range([row.accuracy for row in o.randoms()], "{:.3f}")),
        ("  control-only mask", lambda o: _accuracy(o.control())),
        ("    95 % interval", lambda o: _interval(o.control())),
        *(
            row
            for name in others
            for row in (
                (_short(name), _change_of(name, _accuracy)),
                (_INTERVALS, _change_of(name, _interval)),
            )
        ),
        ("perplexity", lambda o: f"{o.rise(o.after()):+.1%}"),
        ("  control-only mask", lambda o: f"{o.rise(o.control()):+.1%}"),
        ("  random masks", lambda o: _range([o.rise(row) for row in o.randoms()], "{:+.1%}")),
        *((f"mask in {GROUPS[group]} (of weights)", _share_of(group)) for group in groups),
        ("dominant rotary pairs", lambda o: _norm_change(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_dominant_norms, "{:+.1%}")),
        ("attention to first token", lambda o: _mass(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_first_masses, "{:.3f}")),
    ]


def _short(condition: str) -> str:
    family, _, kind = condition.partition(f"/{HEADLINE}")
    return family if not kind else f"{family} ({kind[1:]})"


def _accuracy(row: Row) -> str:
    return f"{row.accuracy:.3f}"


def _interval(row: Row) -> str:
    return f"{row.ci95_low:.2f}..{row.ci95_high:.2f}"


def _range(values: Sequence[float], form: str) -> str:
    return f"{form.format(min(values))}..{form.format(max(values))}" if values else "-"


def _change_of(condition: str, shown: Callable[[Row], str]) -> Callable[[Outcome], str]:
    """What a row shows before the mask and under it; a dash where the study has no such condition."""

    def cell(outcome: Outcome) -> str:
        if condition not in outcome.conditions:
            return "-"
        return f"{shown(outcome.before(condition))} > {shown(outcome.after(condition))}"

    return cell


def _share_of(group: str) -> Callable[[Outcome], str]:
    def cell(outcome: Outcome) -> str:
        shares = (outcome.where or {}).get(group)
        return f"{shares['share']:.0%} ({shares['weight_share']:.0%})" if shares else "-"

    return cell


def _norm_change(outcome: Outcome, mask: str) -> str:
    change = outcome.dominant_norm or {}
    return f"{change[mask]:+.1%}" if mask in change else "-"


def _mass(outcome: Outcome, mask: str) -> str:
    mass = outcome.first_mass or {}
    return f"{mass['before']:.3f} > {mass[mask]:.3f}" if {"before", mask} <= mass.keys() else "-"
