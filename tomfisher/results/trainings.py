"""A comparison of trainings as tables and in words."""

from __future__ import annotations

from tomfisher.evaluate.statistics import TEST
from tomfisher.masks.store import some
from tomfisher.results.columns import COUNT, answers, interval, measured, tested
from tomfisher.results.power import ALPHA
from tomfisher.results.results import Results, corrected
from tomfisher.results.row import RANDOM, Row
from tomfisher.results.tables import TEXT, Column, Line, Style, Table, table

UNTOUCHED, START, MASKED, LORA = "untouched", "start", "masked", "lora"
TRAINED = (MASKED, RANDOM, LORA)


def training_table(results: Results, style: Style = TEXT) -> Table:
    """One line per state; random masks as least to most over their seeds.

    Columns: state, number of trained values, learning rate, accuracy of the headline condition ("false-belief"
    where the task has it) with its 95 % interval and its corrected p against the start, accuracy of all questions,
    perplexity per token and its rise over the untouched model.

    Args:
        results: of `tomfisher.studies.finetune.compare`.
        style: `TEXT` or `PAGE`.
    """
    headline = results.headline
    trained = [row for row in results.select(condition=headline) if row.state in TRAINED]
    columns = [
        Column("trained", lambda row: row.trainable or None, "{:.0f}"),
        Column("rate", lambda row: row.learning_rate, "{:g}"),
        *measured(results, [interval(headline), tested(corrected(trained, "p_vs_start"))]),
    ]
    caption = (
        f"Accuracy on {headline} before and after training, with 95 % intervals; p is that of the {TEST} against the "
        "start, after Holm over the trainings. Random entries: least to most over the seeds."
    )
    return table(["state"], columns, _lines(results, style), style, caption)


def condition_table(results: Results) -> str:
    """One line per condition: accuracy of every state, with its 95 % interval; random masks as least..most."""
    states = {str(line.labels[0]): line.rows for line in _lines(results, TEXT)}
    columns = [COUNT]
    for name, rows in states.items():
        columns += answers(name, beside=name, ci95="" if rows[0].state == RANDOM else " [{:.2f}, {:.2f}]")
    lines = [
        Line(
            [condition],
            [results.baseline(condition)],
            {name: [row for row in rows if row.condition == condition] for name, rows in states.items()},
        )
        for condition in results.conditions
    ]
    return table(["condition"], columns, lines).text()


def sentences(results: Results) -> list[str]:
    """What was found, in words: did the ability rise from the start, what else moved, and how the trainings compare.

    A rise is a higher accuracy whose p against the start (exact sign-flip test over clusters) is below 0.05 after
    Holm's correction over all trainings.
    """
    start = start_of(results)
    said = [
        f"Start: {start.condition} accuracy {start.accuracy:.3f} (n = {start.n}, "
        f"95 % interval {start.ci95_low:.3f} to {start.ci95_high:.3f}), perplexity {start.perplexity:.4g}."
    ]
    trained = [row for row in results.rows if row.state in TRAINED and row.condition == results.headline]
    said += [_training(results, row, p) for row, p in corrected(trained, "p_vs_start").items()]
    said += [
        f"{label(row)} against masked, {row.condition}: p = {row.p_vs_masked:.2g} ({TEST}, uncorrected)."
        for row in trained
        if row.p_vs_masked is not None
    ]
    return said + [f"Not done: {name}: {why}" for name, why in results.left_out.items()]


def start_of(results: Results, condition: str | None = None) -> Row:
    """The state from which every training begins, on a condition (None: the headline)."""
    wanted = condition or results.headline
    return (results.select(state=START, condition=wanted) or (results.baseline(wanted),))[0]


def label(row: Row) -> str:
    """The state's name, with the seed of random entries."""
    return f"{row.state} (seed {row.seed})" if row.state == RANDOM else str(row.state)


def _training(results: Results, row: Row, p: float) -> str:
    start = start_of(results)
    change = "no significant change"
    if p < ALPHA:
        change = "a significant rise" if row.accuracy > start.accuracy else "a significant fall"
    assert row.perplexity is not None and start.perplexity is not None
    text = (
        f"{label(row)}: {row.trainable} values, {row.condition} {start.accuracy:.3f} to {row.accuracy:.3f}, {change} "
        f"(p = {p:.2g}: {TEST}, Holm); perplexity {row.perplexity / start.perplexity - 1:+.1%}"
    )
    fallen, others = _fallen(results, row), len(results.conditions) - 1
    return (
        f"{text}; {len(fallen)} of {others} other rows fall significantly: {some(fallen)}."
        if fallen
        else f"{text}."
    )


def _fallen(results: Results, headline: Row) -> list[str]:
    """Conditions that the training harmed, after Holm's correction over all but the headline."""
    others = [
        row
        for row in results.select(state=headline.state, seed=headline.seed)
        if row.condition != headline.condition
    ]
    before = {row: start_of(results, row.condition).accuracy for row in others}
    return [
        f"{row.condition} ({before[row]:.3f} to {row.accuracy:.3f})"
        for row, p in corrected(others, "p_vs_start").items()
        if p < ALPHA and row.accuracy < before[row]
    ]


def _lines(results: Results, style: Style) -> list[Line]:
    lines = []
    for name in (UNTOUCHED, START, *TRAINED):
        if rows := results.select(state=name):
            count = len({row.seed for row in rows})
            lines.append(Line([f"{name} {style.times}{count}" if name == RANDOM else name], rows))
    return lines
