"""How large the values of a Fisher store are, as a table: a line for every kind of tensor, and one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tomfisher.ops import Summary
from tomfisher.results.tables import Table
from tomfisher.runtime.structure import layer_pattern

ALL = "all"


def fisher_table(summaries: Mapping[str, Summary], thresholds: Sequence[float] = ()) -> Table:
    """Numbers of tensors, of entries, of zeros and of entries above thresholds, and the extremes.

    Args:
        summaries: of every tensor, with these thresholds (`tomfisher.masks.summary`).
        thresholds: numbers that entries were counted above.
    """
    kinds: dict[str, list[Summary]] = {}
    for name, found in summaries.items():
        kinds.setdefault(layer_pattern(name), []).append(found)
    everything = [part for parts in kinds.values() for part in parts]
    rows = [_row(kind, parts) for kind, parts in [*kinds.items(), (ALL, everything)]]
    columns = ["tensors of", "number", "entries", "zero", "smallest", "largest"]
    columns += [f"above {threshold:g}" for threshold in thresholds]
    return Table("Fisher values by kind of tensor.", columns, rows)


def _row(name: str, parts: Sequence[Summary]) -> list[str]:
    histograms = [part.histogram.tolist() for part in parts]
    counts = [sum(map(sum, histograms)), sum(counted[1] for counted in histograms)]
    extremes = min(part.min.item() for part in parts), max(part.max.item() for part in parts)
    above = [sum(column) for column in zip(*(part.above.tolist() for part in parts), strict=True)]
    return [name, str(len(parts)), *map(str, counts), *(f"{x:.3g}" for x in extremes), *map(str, above)]
