"""How close `squared_gradient_` comes to a product without squares, by length of the samples, from GPU records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tomfisher.benchmarks.plots import curves
from tomfisher.benchmarks.tables import lookup

BOUNDS = {"percent_of_triton": "% of the plain product with the same tile", "percent_of_mm": "% of cuBLAS"}
OURS = "tomfisher triton"


def draw(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """A panel per GPU and bound, a curve per shape of a layer.

    Args:
        records: benchmark records; those of `squared_gradient` on a GPU count.
        path: PNG file.

    Raises:
        ValueError: there are none.
    """
    drawn = panels(records)
    if not drawn:
        raise ValueError(
            "There is no record of squared_gradient on a GPU. On a machine with one, make gpu "
            "OUT=benchmarks/results/NAME writes them."
        )
    curves(drawn, path, "squared_gradient_ by tokens per sample")


def panels(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `plots.curves` takes; nothing without records."""
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        if record["benchmark"] != "squared_gradient" or not str(record["machine"]["device"]).startswith(
            "cuda"
        ):
            continue
        for case in record["results"]["cases"]:
            tokens = sum(case["lengths"]) / len(case["lengths"])
            for key in BOUNDS:
                percent = lookup(case["contenders"].get(OURS, {}), key)
                if percent is not None:
                    panel = points.setdefault((record["machine"]["gpu"], key), {})
                    panel.setdefault(f"{case['d_out']}x{case['d_in']}", []).append((tokens, percent))
    return [
        {
            "title": gpu,
            "x": "tokens per sample (mean)",
            "y": BOUNDS[key],
            "series": {shape: sorted(set(series)) for shape, series in sorted(panel.items())},
        }
        for (gpu, key), panel in sorted(points.items())
    ]
