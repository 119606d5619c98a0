"""Several architectures side by side, as text: each at its own κ, and all at every κ that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tomfisher.results import equal_kappa
from tomfisher.results.architectures import Outcome
from tomfisher.results.row import CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL
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
    rows = [[label, *(cell(found) for found in outcomes)] for label, cell in _rows(outcomes)]
    lines = [align(["", *(found.title for found in outcomes)], rows, left=(0,))]
    told = {reason for found in outcomes for reason in found.reasons.values()}
    lines += [f"- {reason}" for reason in sorted(told)]
    lines += ["", "Under the task's mask at equal kappa: accuracy (95 % interval) rise of the perplexity"]
    return "\n".join([*lines, equal_kappa.render(outcomes)])


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, Callable[[Outcome], str]]]:
    """Label and cell of every row."""
    groups = [group for group in GROUPS if any(group in (found.where or {}) for found in outcomes)]
    headline, *others = dict.fromkeys(name for found in outcomes for name in found.conditions)
    return [
        ("positions", lambda o: o.positions),
        ("effect found", lambda o: "yes" if o.found else "no"),
        ("kappa", lambda o: f"{o.kappa:g}"),
        ("weights perturbed", lambda o: f"{o.weights}"),
        (f"{headline} before", lambda o: _accuracy(o, headline, "before")),
        ("  95 % interval", lambda o: _interval(o, headline, "before")),
        (f"{headline} after", lambda o: _accuracy(o, headline, "after")),
        ("  95 % interval", lambda o: _interval(o, headline, "after")),
        ("  p (sign flip, Holm)", lambda o: f"{o.p:.2g}"),
        ("  random masks", lambda o: _random(o, headline)),
        ("  control-only mask", lambda o: _accuracy(o, headline, CONTROL_ONLY)),
        ("    95 % interval", lambda o: _interval(o, headline, CONTROL_ONLY)),
        *(
            row
            for name in others
            for row in ((_short(name), _change_of(name)), (_INTERVALS, _intervals(name)))
        ),
        ("perplexity", lambda o: f"{o.perplexity_rise:+.1%}"),
        ("  control-only mask", lambda o: f"{o.control_perplexity_rise:+.1%}"),
        ("  random masks", lambda o: _range(o.random_perplexity_rises, "{:+.1%}")),
        *((f"mask in {GROUPS[group]} (of weights)", _share_of(group)) for group in groups),
        ("dominant rotary pairs", lambda o: _norm_change(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_dominant_norms, "{:+.1%}")),
        ("attention to first token", lambda o: _mass(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_first_masses, "{:.3f}")),
    ]


def _short(condition: str) -> str:
    family, _, kind = condition.partition(f"/{HEADLINE}")
    return family if not kind else f"{family} ({kind[1:]})"


def _accuracy(found: Outcome, condition: str, state: str) -> str:
    return f"{found.conditions[condition][state]['accuracy']:.3f}" if condition in found.conditions else "-"


def _interval(found: Outcome, condition: str, state: str) -> str:
    low, high = found.conditions[condition][state]["ci95"]
    return f"{low:.2f}..{high:.2f}"


def _random(found: Outcome, condition: str) -> str:
    return _range([score["accuracy"] for score in found.conditions[condition][RANDOM]], "{:.3f}")


def _range(values: Sequence[float], form: str) -> str:
    return f"{form.format(min(values))}..{form.format(max(values))}" if values else "-"


def _change_of(condition: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        if condition not in found.conditions:
            return "-"
        return f"{_accuracy(found, condition, 'before')} > {_accuracy(found, condition, 'after')}"

    return cell


def _intervals(condition: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        if condition not in found.conditions:
            return "-"
        return f"{_interval(found, condition, 'before')} > {_interval(found, condition, 'after')}"

    return cell


def _share_of(group: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        shares = (found.where or {}).get(group)
        return f"{shares['share']:.0%} ({shares['weight_share']:.0%})" if shares else "-"

    return cell


def _norm_change(found: Outcome, mask: str) -> str:
    change = found.dominant_norm or {}
    return f"{change[mask]:+.1%}" if mask in change else "-"


def _mass(found: Outcome, mask: str) -> str:
    mass = found.first_mass or {}
    return f"{mass['before']:.3f} > {mass[mask]:.3f}" if {"before", mask} <= mass.keys() else "-"
