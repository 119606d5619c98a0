"""Results of ablations: which rows are no controls, their corrected p, their order, and their table."""

from __future__ import annotations

from dataclasses import replace

from tomfisher.evaluate.statistics import TEST
from tomfisher.results.columns import WEIGHTS, answers, interval, measured, on_text, tested
from tomfisher.results.results import Results, corrected
from tomfisher.results.row import Row
from tomfisher.results.tables import TEXT, Line, Style, Table, table


def interventions(results: Results, condition: str | None = None) -> tuple[Row, ...]:
    """The ablations that are no controls, on one condition (None: the headline)."""
    rows = results.select(control=False, condition=condition or results.headline)
    return tuple(row for row in rows if row.state)


def with_holm(results: Results) -> Results:
    """With p after Holm's correction over all ablations, on the headline and on all questions."""
    p = {row: p for name in results.tested for row, p in corrected(interventions(results, name)).items()}
    return replace(results, rows=tuple(replace(row, p_holm=p.get(row)) for row in results.rows))


def in_order_of(results: Results, earlier: Results | None) -> Results:
    """The same rows in the order of an earlier answer, new ones last, and what either could not do.

    Args:
        results: of the present call.
        earlier: an answer about the same model and mask, or None.
    """
    if earlier is None:
        return results
    place = {state: i for i, state in enumerate(dict.fromkeys(row.state for row in earlier.rows))}
    rows = sorted(results.rows, key=lambda row: place.get(row.state, len(place)))
    measured_states = {row.state for row in rows}
    left_out = {**earlier.left_out, **results.left_out}
    kept = {name: why for name, why in left_out.items() if name not in measured_states}
    return replace(results, rows=tuple(rows), left_out=kept)


def controls(results: Results, ablation: Row) -> tuple[Row, ...]:
    """The controls of an ablation, on the same condition."""
    return results.select(state=ablation.state, control=True, condition=ablation.condition)


def ablation_table(results: Results, style: Style = TEXT) -> Table:
    """One line per ablation, with the range over its controls.

    Columns: ablation, number of perturbed weights, accuracy of the headline condition with its 95 % interval and
    corrected p, accuracy of all questions, perplexity and its rise; accuracy of the headline condition and rise of the
    perplexity under the controls.
    """
    headline, shown = results.headline, interventions(results)
    beside = {row.state: results.select(state=row.state, control=True) for row in shown}
    lines = [
        Line([row.state or style.untouched], rows, {"controls": beside.get(row.state, ())})
        for row in (results.baseline(), *shown)
        for rows in [results.select(state=row.state, control=False)]
    ]
    columns = [WEIGHTS, *measured(results, [interval(headline), tested(corrected(shown))])]
    if count := max((len({row.seed for row in rows}) for rows in beside.values()), default=0):
        columns += [
            *answers("1 control" if count == 1 else f"{count} controls", headline, beside="controls"),
            *on_text(results, "their rise", beside="controls"),
        ]
    caption = (
        f"Interventions: accuracy on {headline} with its 95 % interval, p of the {TEST} after Holm over all "
        f"{len(shown)} interventions, accuracy on all questions, perplexity, and the same under the controls, least to "
        "most."
    )
    return table(["intervention"], columns, lines, style, caption)
