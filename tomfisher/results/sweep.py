"""The table of a sweep: a line per mask and κ."""

from __future__ import annotations

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.columns import WEIGHTS, interval, measured, p_value, tested
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.results.rule import PAPER
from tomfisher.results.tables import PAGE, TEXT, Column, Line, Style, Table, table
from tomfisher.results.verdict import headline_tests

MASK_ORDER = (TASK_CONTROL, CONTROL_ONLY, RANDOM)
_CAPTION = (
    "Every mask of the sweep: accuracies and perplexity. Questions on one story form a cluster: intervals are "
    f"Wilson's for the number of independent questions that they are worth, p is the {TEST} against the untouched "
    "model, and its correction runs over {family}. Random masks: least to most over the seeds."
)
_OVER_KAPPA = "the values of κ of the task-minus-control mask"
_OVER_RULES = (
    "every task-minus-control mask of the study, those of other criteria and shares of the control included"
)


def sweep_table(results: Results, style: Style = TEXT, focus: float | None = None) -> Table:
    """One line per mask of the paper's rule, the untouched model first; random masks as least to most over their seeds.

    Columns: κ, mask, number of perturbed weights, accuracy of the headline condition ("false-belief" where
    the task has it) and of all questions, perplexity per token, and its rise over the baseline in percent. The page
    has intervals and tests beside.

    Args:
        results: a whole study, or the part measured so far.
        style: `TEXT` or `PAGE`.
        focus: the κ whose task-control mask the text around the table speaks of.
    """
    lines, strong = (
        [Line(["0" if style is TEXT else style.absent, style.untouched], results.select(mask=BASELINE))],
        [],
    )
    for kappa in results.kappas:
        for mask in MASK_ORDER:
            if rows := results.select(kappa=kappa, mask=mask, rule=PAPER):
                name = style.masks.get(mask, mask)
                if mask == RANDOM:
                    name += f" {style.times}{len(results.at(kappa, mask))}"
                if (kappa, mask) == (focus, TASK_CONTROL):
                    strong.append(len(lines))
                lines.append(Line([f"{kappa:g}", name], rows))
    columns = [WEIGHTS, *measured(results, _tests(results) if style is PAGE else ())]
    caption = _CAPTION.format(family=_OVER_KAPPA if set(results.rules) <= {PAPER} else _OVER_RULES)
    return table([style.kappa, "mask"], columns, lines, style, caption, words=(1,), strong=strong)


def _tests(results: Results) -> list[Column]:
    raw = Column("p (sign flip)", lambda row: row.p_vs_baseline, p_value, results.headline)
    return [interval(results.headline), raw, tested(headline_tests(results))]
