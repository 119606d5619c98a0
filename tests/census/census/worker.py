"""The process of a `census.pool.Worker`: names of architectures in, rows out, a line each."""

from __future__ import annotations

import json
import sys
import time

import transformers

from census.checks import census_row
from census.streaming import streaming_row


def main() -> None:
    """Answer until the input ends; what else is printed goes to stderr."""
    make = streaming_row if sys.argv[1:] == ["streaming"] else census_row
    answers, sys.stdout = sys.stdout, sys.stderr
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        start = time.process_time()
        row = make(line.strip())
        row["seconds"] = round(time.process_time() - start, 2)
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()
