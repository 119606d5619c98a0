"""Results as an aligned table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tomfisher.evaluate.records import ALL
from tomfisher.experiment.results import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Point, Results

MASK_ORDER = (TASK_CONTROL, CONTROL_ONLY, RANDOM)


def render(results: Results) -> str:
    """One line per mask and κ; random masks as least..most over their seeds.

    Columns: κ, mask, number of perturbed weights, accuracy of the headline condition ("false-belief" where
    the task has it) and of all questions, perplexity per token, and its rise over the baseline in percent.

    Args:
        results: a whole study, or the part measured so far.

    Returns:
        Lines joined by newlines, without colour.
    """
    headline = results.baseline.headline()
    conditions = [headline] if headline == ALL else [headline, ALL]
    header = ["kappa", "mask", "weights", *conditions, "perplexity", "rise"]
    rows = [_row(results, [results.baseline], conditions)]
    for kappa in results.kappas:
        found = [list(results.at(kappa, mask)) for mask in MASK_ORDER]
        rows += [_row(results, points, conditions) for points in found if points]
    return align(header, rows, left=(1,))


def align(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Columns padded to their widest entry, numbers to the right, the columns in `left` to the left."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def rise(results: Results, point: Point) -> float:
    """Relative change of the perplexity against the baseline: 0.05 is five percent more."""
    return point.perplexity / results.baseline.perplexity - 1.0


def _row(results: Results, points: list[Point], conditions: list[str]) -> list[str]:
    first = points[0]
    name = "none (baseline)" if first.mask == BASELINE else first.mask
    if first.mask == RANDOM:
        name = f"random x{len(points)}"
    accuracies = [_span([p.accuracy(name) for p in points], "{:.3f}".format) for name in conditions]
    rises = _span([round(rise(results, p), 3) + 0.0 for p in points], "{:+.1%}".format)
    return [
        f"{first.kappa:g}",
        name,
        _span([p.nnz for p in points], "{:.0f}".format),
        *accuracies,
        _span([p.perplexity for p in points], "{:.4g}".format),
        "" if first.mask == BASELINE else rises,
    ]


def _span(values: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low}..{high}"
