"""How large the Fisher values of a study are, tensor by tensor, and its file `fisher-values.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.text_files import read_json

if TYPE_CHECKING:
    from tomfisher.masks import Ranking
    from tomfisher.ops import Summary

FILE = "fisher-values.json"


def described(rankings: Mapping[str, Ranking], kappas: Sequence[float]) -> dict[str, Any]:
    """The content of `fisher-values.json`.

    Args:
        rankings: "task" and "control", taken with their summaries.
        kappas: of the study.

    Returns:
        JSON-ready: under each name `num_samples` (which the values are sums over), per tensor `numel`, `min`, `max`,
        how many entries are `zeros`, `negative` or `subnormal`, and `histogram`: `counts[i]` entries lie in
        `[2**(first + i), 2**(first + i + 1))`; and for each κ the `least`, `median` and `most` over the tensors (or
        groups, where κ is taken of groups) of the smallest value that it selects.
    """
    return {
        which: {
            "num_samples": ranking.source.get("num_samples"),
            "scope": ranking.scope,
            "tensors": {name: _tensor(summary) for name, summary in ranking.summaries.items()},
            "thresholds": [_thresholds(ranking, kappa) for kappa in sorted(kappas)],
        }
        for which, ranking in rankings.items()
    }


def is_whole(file: Path) -> bool:
    """Whether a file holds what `described` gives of both Fisher diagonals; a damaged one does not."""
    try:
        content = read_json(file)
        return all(content[which]["tensors"] for which in ("task", "control"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tensor(summary: Summary) -> dict[str, Any]:
    negative, zeros, subnormal, *normal = summary.histogram.tolist()
    numel = negative + zeros + subnormal + sum(normal)
    return {
        "numel": numel,
        "min": summary.min.item() if numel else None,
        "max": summary.max.item() if numel else None,
        "zeros": zeros,
        "negative": negative,
        "subnormal": subnormal,
        "histogram": _trimmed(normal, math.frexp(summary.edges[3].item())[1] - 1),
    }


def _trimmed(counts: list[int], exponent: int) -> dict[str, Any]:
    """Counts per power of two without the empty bins at both ends; `exponent` belongs to the first."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return {"first": 0, "counts": []}
    return {"first": exponent + filled[0], "counts": counts[filled[0] : filled[-1] + 1]}


def _thresholds(ranking: Ranking, kappa: float) -> dict[str, Any]:
    known = [value for value in ranking.thresholds(kappa) if value is not None]
    if not known:
        return {"kappa": kappa, "least": None, "median": None, "most": None}
    return {"kappa": kappa, "least": min(known), "median": statistics.median(known), "most": max(known)}
