"""A command in several processes: each does its share of the work, the first one writes and prints."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator

from tomfisher.progress import muted

TORCHRUN = "torchrun --nproc_per_node 2 -m tomfisher"


def is_one_of_several() -> bool:
    """Whether torchrun, or what sets the same variables, started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "")
    return "RANK" in os.environ and size.isdecimal() and int(size) > 1


def told_by(message: str) -> str:
    """A message with the rank that it is from, where there are several."""
    return f"rank {os.environ['RANK']}: {message}" if is_one_of_several() else message


def execute(args: argparse.Namespace, check: Callable[[argparse.Namespace], None]) -> int:
    """Run the chosen command on this rank, within the process group that its launcher asks for.

    Args:
        args: of the command.
        check: what is looked at before the work, by the first rank alone.

    Raises:
        ValueError: the command has no work to share.
        RankError: another rank has ended.
    """
    from tomfisher.runtime import ranks

    if not getattr(args, "several", False):
        raise ValueError(
            f"`{args.parser.prog}` works in one process, but is started as one of {ranks.launched()}. Start it without "
            "torchrun; fisher, evaluate and run share their work."
        )
    with ranks.started(getattr(args, "device", None)) as team, team.call(args.parser.prog):
        team.first("a look at --output_path", lambda: check(args))
        with contextlib.nullcontext() if team.is_first else _unheard():
            return int(args.execute(args) or 0)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Print nothing: what every rank would say, the first one says."""
    with contextlib.redirect_stdout(io.StringIO()), muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
