"""The same masks with several fills, such as factors below and above 1: one study per fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomfisher.results.fill_grid import gathered
from tomfisher.results.folder import RunFolder
from tomfisher.results.results import GRID, Results
from tomfisher.studies.config import Config
from tomfisher.studies.experiment import Experiment
from tomfisher.studies.parsing import parse_fill


def run_grid(
    settings: Mapping[str, Any], fills: Sequence[str], overwrite: bool = False, progress: bool = True
) -> Results:
    """Run or resume one study per fill, and write the grid.

    Args:
        settings: of `Config`; `fill` is replaced, and `output_path` is the folder of the grid.
        fills: as `Config.fill` takes them; each gets a run folder of its own below the grid's.
        overwrite: delete earlier studies first.
        progress: show bars on a terminal, and say each step.

    Returns:
        The grid, as `gathered` gives it; it is in `grid.json` and `grid.csv` of the folder.

    Raises:
        ValueError: a fill is unknown or given twice, or a setting is unusable, or another process is working in
            the folder; nothing was run.
    """
    if len(set(map(parse_fill, fills))) < len(fills):
        raise ValueError(f"Every fill must be given once, got {', '.join(fills)}.")
    folder = Path(Config.from_dict({**settings, "fill": fills[0]}).output_path)
    configs = {
        fill: Config.from_dict(
            {**settings, "fill": fill, "output_path": str(folder / fill.replace(":", "-"))}
        )
        for fill in fills
    }
    with RunFolder(folder).opened() as opened:
        grid = gathered(
            {fill: Experiment(config, overwrite).run(progress) for fill, config in configs.items()}
        )
        grid.save(opened.path, GRID)
    return grid
