"""`python -m tomfisher`."""

import sys

from tomfisher.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
