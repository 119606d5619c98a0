"""What tables show of measured states: each column once, selected by every table that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.tables import Column, Line

CI95 = " [{:.3f}, {:.3f}]"
COUNT = Column("n", lambda row: row.n, "{:.0f}")
WEIGHTS = Column("weights", lambda row: row.nnz, "{:,.0f}")


def answers(
    header: str, condition: str | None = None, beside: str | None = None, ci95: str = ""
) -> list[Column]:
    """What every table shows of a state's answers to a condition: the accuracy.

    Args:
        header: of the accuracy, and the beginning of any other.
        condition: see `Column`, as the rest.
        beside: see there.
        ci95: see there, of the accuracy.
    """
    return [Column(header, lambda row: row.accuracy, condition=condition, beside=beside, ci95=ci95)]


def on_text(results: Results, header: str = "rise", beside: str | None = None) -> list[Column]:
    """What every table of states shows of the text: the relative change of the perplexity.

    Args:
        results: the study that the rows are of.
        header: of the change, and the beginning of any other.
        beside: see `Column`.
    """
    return [Column(header, lambda row: change(results, row), "{:+.1%}", beside=beside)]


def measured(results: Results, tests: Sequence[Column] = ()) -> list[Column]:
    """What the tables of one study's states show: accuracies, perplexity and its rise over the untouched model.

    Args:
        results: what is shown.
        tests: columns beside the accuracy of the headline condition.
    """
    headline, *others = (answers(name, name) for name in results.tested)
    perplexity = Column("perplexity", lambda row: row.perplexity, "{:.4g}")
    return [*headline, *tests, *chain(*others), perplexity, *on_text(results)]


def masks_at(
    results: Results, kappa: float | None, labels: Sequence[str], condition: str | None = None
) -> Line:
    """A line of one condition (None: the headline) at one κ: the task-minus-control mask, beside it the other states.

    `mask_columns` shows it. Without a κ it has the untouched model alone.
    """
    beside: dict[str, Sequence[Row]] = {BASELINE: (results.baseline(condition),)}
    if kappa is None:
        return Line(labels, (), beside)
    beside |= {mask: results.at(kappa, mask, condition) for mask in (CONTROL_ONLY, RANDOM)}
    return Line(labels, results.at(kappa, TASK_CONTROL, condition), beside)


def mask_columns(p: Mapping[Row, float] | None = None) -> list[Column]:
    """The answers of every state on a line of `masks_at`, with corrected p of the task-minus-control mask."""
    return [
        *answers("untouched", beside=BASELINE, ci95=CI95),
        *answers("task minus control", ci95=CI95),
        *([] if p is None else [tested(p)]),
        *answers("control only", beside=CONTROL_ONLY, ci95=CI95),
        *answers("random", beside=RANDOM),
    ]


def interval(
    condition: str | None = None, header: str = "95 % interval", beside: str | None = None
) -> Column:
    """The 95 % interval of the accuracy, in a column of its own."""
    return Column(header, lambda row: row.ci95, condition=condition, beside=beside, to=" to ")


def tested(p: Mapping[Row, float], header: str = "p (Holm)") -> Column:
    """Corrected p of the rows that have one."""
    return Column(header, p.get, p_value)


def p_value(p: float) -> str:
    """A p-value with two digits; one that is too small for a float is said to be."""
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def change(results: Results, row: Row) -> float | None:
    """The rise of the perplexity in whole per mille; None for the untouched model itself."""
    if row.of_state == results.rows[0].of_state:
        return None
    return round(results.rise(row), 3) + 0.0
