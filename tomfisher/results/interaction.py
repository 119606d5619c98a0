"""What `interaction.json` says: how far the weights of each mask of a study act together, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tomfisher.results.tables import TEXT, Style, Table

FILE = "interaction.json"
CAPTION = (
    "How the loss of a sample changes by each mask, nats, mean over the samples with 95 % intervals: first order "
    "(gradient times change), the diagonal of the second order (what the Fisher diagonal sees), the joint second order "
    "(the whole Gauss-Newton block of the masked weights), and the change as measured. Joint / diagonal is 1 where the "
    "weights act on their own, more where they act together, less where they cancel (interval by bootstrap over the "
    "samples). Effective rank: of the block's spectrum, at most the number of samples."
)
_PARTS = ("first", "diagonal", "joint", "measured")


def interaction_table(
    labels: Sequence[str], lines: Sequence[tuple[Sequence[str], Mapping[str, Any]]], style: Style = TEXT
) -> Table:
    """One line per mask.

    Args:
        labels: headers of what names a mask.
        lines: its names, and `tomfisher.analysis.Interaction.to_dict`.
        style: `TEXT` or `PAGE`.
    """
    rows = [
        [
            *names,
            f"{found['nnz']:,}",
            *(
                _interval(found[part], "{:+.3g}" if part in ("first", "measured") else "{:.3g}")
                for part in _PARTS
            ),
            _interval(found["ratio"], "{:.3g}"),
            style.absent if found["spectrum"] is None else f"{found['spectrum']['effective_rank']:.1f}",
        ]
        for names, found in lines
    ]
    header = [
        *labels,
        "weights",
        "first order",
        "diagonal",
        "joint",
        "measured",
        "joint / diagonal",
        "effective rank",
    ]
    return Table(CAPTION, header, rows, words=tuple(range(len(labels))))


def study_table(content: Mapping[str, Any], style: Style = TEXT) -> Table:
    """The table of a study: one line per rule, κ and kind of mask.

    Args:
        content: of `interaction.json`.
        style: `TEXT` or `PAGE`.
    """
    lines = [
        ([entry["rule"], f"{entry['kappa']:g}", style.masks.get(entry["mask"], entry["mask"])], entry)
        for entry in content["masks"]
    ]
    return interaction_table(["rule", style.kappa, "mask"], lines, style)


def _interval(values: Sequence[float | None], form: str) -> str:
    """A mean with its interval; a dash where it is not defined."""
    if values[0] is None:
        return "-"
    low, high = ("?" if end is None else form.format(end) for end in values[1:])
    return f"{form.format(values[0])} [{low}, {high}]"
