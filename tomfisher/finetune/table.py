"""A comparison of trainings as tables and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from tomfisher.evaluate.scenes import TEST
from tomfisher.experiment.table import align
from tomfisher.experiment.verdict import ALPHA, holm
from tomfisher.finetune.results import MASKED, RANDOM, UNTOUCHED, Comparison, State
from tomfisher.masks.store import some


def render(comparison: Comparison) -> str:
    """One line per state; random masks as least..most over their seeds.

    Columns: state, number of trained values, learning rate, accuracy of the headline condition ("false-belief"
    where the task has it) and of all questions, p of the headline against the start, perplexity per token
    and its change against the untouched model.

    Args:
        comparison: what was found.

    Returns:
        Lines joined by newlines, without colour.
    """
    headline = comparison.start.headline()
    conditions = [headline] if headline == "all" else [headline, "all"]
    header = ["state", "trained", "rate", *conditions, "p", "perplexity", "change"]
    groups = [list(group) for _, group in groupby(comparison.states, key=lambda state: state.name)]
    return align(header, [_row(comparison, group, headline, conditions) for group in groups], left=(0,))


def render_conditions(comparison: Comparison) -> str:
    """One line per condition: accuracy of every state, with its 95 % interval; random masks as least..most."""
    groups = [list(group) for _, group in groupby(comparison.states, key=lambda state: state.name)]
    header = ["condition", "n", *(_name(group) for group in groups)]
    rows = []
    for condition, score in comparison.start.conditions.items():
        rows.append([condition, str(score["n"]), *(_cell(group, condition) for group in groups)])
    return align(header, rows, left=(0,))


def sentences(comparison: Comparison) -> list[str]:
    """What was found, in words: did the ability rise from the start, what else moved, and how the trainings compare.

    A rise is a higher accuracy whose p against the start (exact sign-flip test over scenes) is below 0.05 after Holm's
    correction over all trainings.
    """
    headline, start = comparison.start.headline(), comparison.start
    score = start.conditions[headline]
    low, high = score["ci95"]
    said = [
        f"Start: {headline} accuracy {score['accuracy']:.3f} (n = {score['n']}, "
        f"95 % interval {low:.3f} to {high:.3f}), perplexity {start.perplexity:.4g}."
    ]
    trained = comparison.trained
    corrected = holm([state.conditions[headline]["p_vs_start"] for state in trained])
    said += [_training(comparison, state, headline, p) for state, p in zip(trained, corrected, strict=True)]
    said += [
        _against(state, headline) for state in trained if state.name != MASKED and comparison.named(MASKED)
    ]
    return said + [f"Not done: {note}" for note in comparison.notes]


def label(state: State) -> str:
    """The state's name, with the seed of random entries."""
    return f"{state.name} (seed {state.seed})" if state.name == RANDOM else state.name


def _training(comparison: Comparison, state: State, headline: str, p: float) -> str:
    before, after = comparison.start.accuracy(headline), state.accuracy(headline)
    change = "no significant change"
    if p < ALPHA:
        change = "a significant rise" if after > before else "a significant fall"
    cost = state.perplexity / comparison.start.perplexity - 1
    text = (
        f"{label(state)}: {state.trainable} values, {headline} {before:.3f} to {after:.3f}, {change} "
        f"(p = {p:.2g}: {TEST}, Holm); perplexity {cost:+.1%}"
    )
    fallen = _fallen(comparison, state, headline)
    others = len(state.conditions) - 1
    return (
        f"{text}; {len(fallen)} of {others} other rows fall significantly: {some(fallen)}."
        if fallen
        else f"{text}."
    )


def _fallen(comparison: Comparison, state: State, headline: str) -> list[str]:
    """Rows that the training harmed, after Holm's correction over all rows but the headline."""
    names = [name for name in state.conditions if name != headline]
    corrected = holm([state.conditions[name]["p_vs_start"] for name in names])
    return [
        f"{name} ({comparison.start.accuracy(name):.3f} to {state.accuracy(name):.3f})"
        for name, p in zip(names, corrected, strict=True)
        if p < ALPHA and state.accuracy(name) < comparison.start.accuracy(name)
    ]


def _against(state: State, headline: str) -> str:
    p = state.conditions[headline]["p_vs_masked"]
    return f"{label(state)} against masked, {headline}: p = {p:.2g} ({TEST}, uncorrected)."


def _row(comparison: Comparison, group: list[State], headline: str, conditions: list[str]) -> list[str]:
    base = comparison.named(UNTOUCHED)[0].perplexity
    first = group[0]
    rates = [state.learning_rate for state in group if state.learning_rate is not None]
    return [
        _name(group),
        "" if not first.trainable else _span([state.trainable for state in group], "{:.0f}".format),
        _span(rates, "{:g}".format) if rates else "",
        *(_span([state.accuracy(name) for state in group], "{:.3f}".format) for name in conditions),
        _span([state.conditions[headline]["p_vs_start"] for state in group], "{:.2g}".format)
        if first in comparison.trained
        else "",
        _span([state.perplexity for state in group], "{:.4g}".format),
        ""
        if first.name == UNTOUCHED
        else _span([round(state.perplexity / base - 1, 3) + 0.0 for state in group], "{:+.1%}".format),
    ]


def _name(group: list[State]) -> str:
    return f"{RANDOM} x{len(group)}" if group[0].name == RANDOM else group[0].name


def _cell(group: list[State], condition: str) -> str:
    if group[0].name == RANDOM:
        return _span([state.accuracy(condition) for state in group], "{:.3f}".format)
    low, high = group[0].conditions[condition]["ci95"]
    return f"{group[0].accuracy(condition):.3f} [{low:.2f}, {high:.2f}]"


def _span(values: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low}..{high}"
