"""What transformers prints while it loads: progress bars belong on a terminal, reports to those who judge them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from tomfisher.progress import on_terminal


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Keep transformers' progress bars out of logs: they run only where standard error is a terminal."""
    from transformers.utils import logging

    if on_terminal() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextlib.contextmanager
def report_kept() -> Iterator[list[str]]:
    """Keep transformers' table of missing and unexpected weights from being printed; yields what it said."""
    kept: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        kept.append(text)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield kept
    finally:
        logger.removeFilter(keep)
