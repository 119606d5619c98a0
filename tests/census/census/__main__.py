"""`python -m census`: the whole census into docs/architectures.md, or the rows of the architectures that are named.

`python -m census streaming` makes the section on streaming alone anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from census.configs import model_types
from census.pool import rows
from census.table import PATH, joined, parted, render, render_streamed


def main(names: list[str]) -> None:
    """Print a row a line for `names`; without names, write the page."""
    if names and names != ["streaming"]:
        for row in rows(names):
            print(json.dumps(row), flush=True)
        return
    page = parted(PATH.read_text(encoding="utf-8"))[0] if names else render(_all())
    PATH.write_text(joined(page, render_streamed(_all("streaming"))), encoding="utf-8")


def _all(*arguments: str) -> Sequence[dict[str, object]]:
    found = []
    for row in rows(model_types(), *arguments):
        found.append(row)
        print(f"{len(found)} {row['type']}", flush=True)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
