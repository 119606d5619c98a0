"""How much of the ability each mask of each rule takes, for how much of the language; which criterion does best."""

from __future__ import annotations

from collections.abc import Sequence

from tomfisher.evaluate.statistics import TEST
from tomfisher.masks import criteria
from tomfisher.results.columns import CI95, WEIGHTS, answers, on_text, tested
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.rule import PAPER, Rule
from tomfisher.results.tables import TEXT, Line, Style, Table, table
from tomfisher.results.verdict import PERPLEXITY_LIMIT, effects_of, headline_tests


def is_frontier(results: Results) -> bool:
    """Whether a study has masks of other rules than the paper's."""
    return any(rule != PAPER for rule in results.rules)


def frontier_table(results: Results, style: Style = TEXT, strong: Sequence[Row] = ()) -> Table:
    """One line per rule and κ: accuracies, corrected p, the rise of the perplexity, and the controls of the same rule.

    Args:
        results: a study with several rules.
        style: `TEXT` or `PAGE`.
        strong: rows that the text around the table speaks of.
    """
    headline, *others = results.tested
    columns = [
        WEIGHTS,
        *answers(headline, headline, ci95=CI95),
        tested(headline_tests(results)),
        *(column for name in others for column in answers(name, name)),
        *on_text(results),
        *answers("control only", headline, CONTROL_ONLY),
        *answers("random", headline, RANDOM),
        *on_text(results, "rise, random", RANDOM),
    ]
    lines = [Line(["none", "", ""], results.select(mask=BASELINE))]
    marked = []
    for rule in results.rules:
        for kappa in results.kappas:
            if rows := results.select(kappa=kappa, mask=TASK_CONTROL, rule=rule):
                beside = {
                    mask: results.select(kappa=kappa, mask=mask, rule=rule) for mask in (CONTROL_ONLY, RANDOM)
                }
                if any(row in rows for row in strong):
                    marked.append(len(lines))
                lines.append(
                    Line(
                        [rule.criterion or criteria.FISHER, f"{kappa:g}", _control(rule, kappa)], rows, beside
                    )
                )
    caption = (
        f"Every mask of every rule: {headline} accuracy with its 95 % interval, p of the {TEST} against the untouched "
        "model after Holm over all masks of this table, the rise of the perplexity, and the control masks of the same "
        "rule and κ (the task's and the control's ranking exchanged; random ones least to most)."
    )
    return table(
        ["criterion", style.kappa, f"{style.kappa} of control"], columns, lines, style, caption, (0,), marked
    )


def _control(rule: Rule, kappa: float) -> str:
    """What a mask leaves to the control."""
    if not criteria.get(rule.criterion).subtracts:
        return "none"
    return f"{kappa if rule.control_kappa is None else rule.control_kappa:g}"


def criteria_table(results: Results, style: Style = TEXT) -> Table:
    """One line per criterion: the fewest weights that meet the verdict's rule, the lowest accuracy within its limit.

    The rule is that of `tomfisher.results.verdict.judge`, with one correction over all masks of the study.

    Args:
        results: a study with several criteria.
        style: `TEXT` or `PAGE`.
    """
    effects = effects_of(results)
    names = dict.fromkeys(effect.row.criterion for effect in effects)
    rows = []
    for name in names:
        own = [effect for effect in effects if effect.row.criterion == name]
        holding = sorted((e for e in own if e.holds), key=lambda e: (e.row.nnz or 0, e.row.accuracy))
        within = [e for e in own if e.perplexity_rise < PERPLEXITY_LIMIT]
        lowest = min(within, key=lambda e: (e.row.accuracy, e.row.nnz or 0), default=None)
        fewest = holding[0] if holding else None
        rows.append(
            [
                name or criteria.FISHER,
                criteria.get(name).formula,
                str(len(own)),
                *_cells(results, None if fewest is None else fewest.row, style),
                *_cells(results, None if lowest is None else lowest.row, style),
            ]
        )
    four = ["weights", "accuracy", "rise", "mask"]
    columns = [
        "criterion",
        "score",
        "masks",
        *(f"fewest: {c}" for c in four),
        *(f"lowest: {c}" for c in four),
    ]
    caption = (
        "Which criterion needs the fewest weights: fewest is the smallest mask that meets the rule of the verdict "
        f"({results.headline} accuracy falls significantly after Holm over all masks, clear of every control mask, "
        f"less than {PERPLEXITY_LIMIT:+.0%} perplexity); lowest is the lowest accuracy of any mask within that "
        "perplexity."
    )
    return Table(caption, columns, rows, words=(0, 1, 6, 10))


def _cells(results: Results, row: Row | None, style: Style) -> list[str]:
    if row is None:
        return ["none", style.absent, style.absent, style.absent]
    low, high = row.ci95
    where = f"{row.kappa:g}" + ("" if row.control_kappa is None else f" without {row.control_kappa:g}")
    return [f"{row.nnz:,}", f"{row.accuracy:.3f} [{low:.3f}, {high:.3f}]", f"{results.rise(row):+.1%}", where]
