"""Progress bars of transformers belong on a terminal, not in a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Keep transformers' progress bars out of logs: they run only where standard error is a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
