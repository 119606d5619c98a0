"""`python -m census`: the whole census into docs/architectures.md, or the rows of the architectures that are named."""

from __future__ import annotations

import json
import sys

from census.configs import model_types
from census.pool import rows
from census.table import PATH, render


def main(names: list[str]) -> None:
    """Print a row a line for `names`; without names, write the page."""
    found = []
    for row in rows(names or model_types()):
        found.append(row)
        print(json.dumps(row) if names else f"{len(found)} {row['type']}", flush=True)
    if not names:
        PATH.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
