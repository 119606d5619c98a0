"""`tomfisher`: reads the command line, runs one sub-command, turns errors into one clear message."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from tomfisher.cli import several
from tomfisher.cli.common import refuse_own_input
from tomfisher.cli.groups import Command
from tomfisher.cli.output import Terminal
from tomfisher.files import check_writable
from tomfisher.near_miss import nearest
from tomfisher.progress import note
from tomfisher.version import __version__

COMMANDS = (
    ("run", "fisher", "mask", "perturb", "evaluate", "analyze"),
    ("ablate", "finetune", "merge", "export", "sweep", "report"),
    ("plan", "ls", "testbed", "bench"),
)
EXAMPLES = """\
start here:
  tomfisher run --preset demo-testbed                      the effect on a tiny model, under a minute
  tomfisher run --preset demo-smollm2                      the same study on a real language model
  tomfisher run --model HuggingFaceTB/SmolLM2-360M         any causal language model
  tomfisher run --model smollm2-135m --task my_task.jsonl --control my_text.txt
  torchrun --nproc_per_node 2 -m tomfisher run --preset demo-smollm2      in several processes
  tomfisher plan --model smollm2-135m                      what a run will cost
  tomfisher ls                                             tasks, models, fills, presets
  tomfisher COMMAND --help                                 flags and more commands to paste
"""
USER_ERRORS = (ValueError, TypeError, FileNotFoundError, NotImplementedError, ImportError, FloatingPointError)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Results are on disk before they are printed. A reader of standard output that has gone away changes nothing; a
    standard output that cannot be written is an error where the print is all there is.

    Args:
        argv: arguments without the program's name; None takes `sys.argv`.

    Returns:
        Exit code: 0 done, 2 an error that was explained, 130 interrupted.
    """
    with Terminal() as terminal:
        args, code = argparse.Namespace(), 0
        try:
            args = parse(build_parser(), argv)
            code = _execute(args)
        except SystemExit as end:  # argparse: --help, --version, or a mistake that it has explained
            terminal.flush()
            if end.code or terminal.lost is None:
                raise
        terminal.flush()
        if terminal.lost is None:
            return code
        saved = getattr(args, "saves", getattr(args, "output_path", None) is not None)
        note(
            f"standard output could not be written ({terminal.lost}). "
            + (
                "The results are written all the same."
                if saved
                else "Nothing else holds what was to be printed."
            )
        )
        return code if saved else code or 2


def _execute(args: argparse.Namespace) -> int:
    """Run the chosen command; turn what it raises into one message and an exit code."""
    if not hasattr(args, "execute"):
        build_parser().print_help()
        return 0
    warnings.showwarning = _show_warning
    try:
        if getattr(args, "output_path", None) is not None:
            args.output_path = os.path.expanduser(args.output_path)
        if several.is_one_of_several():
            return several.execute(args, _check_output)
        _check_output(args)
        return int(args.execute(args) or 0)
    except KeyboardInterrupt:
        note("interrupted. Finished parts are kept; run the same command to resume.")
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if args.debug:
            traceback.print_exc()
        note(several.told_by(message))
        return 2


def _check_output(args: argparse.Namespace) -> None:
    """Make sure, before the work, that its result can be written and takes the place of nothing that is read."""
    if getattr(args, "output_path", None) is None:
        return
    kind = not getattr(args, "output_is_file", False)
    check_writable(args.output_path, folder=kind, replaced=getattr(args, "output_is_replaced", False))
    refuse_own_input(args)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments; what a command does not know is explained by that command, with the flag that is meant.

    Raises:
        SystemExit: as `parse_args`.
    """
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        command: argparse.ArgumentParser = getattr(args, "parser", parser)
        flags = (word.partition("=")[0] for word in unknown if word.startswith("--"))
        meant = [close for flag in flags if (close := nearest(flag, command._option_string_actions))]
        hint = f". Did you mean {' and '.join(meant)}?" if meant else f". Try {command.prog} --help"
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands; their heavy imports happen only when one runs."""
    parser = argparse.ArgumentParser(
        prog="tomfisher",
        description="Which few weights does a language model need for one ability, and what breaks without them?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tomfisher {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Command)
    for group in COMMANDS:
        for name in group:
            importlib.import_module(f"tomfisher.cli.{name}").add_parser(subparsers)
    for command in subparsers.choices.values():
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def explain(error: Exception) -> str | None:
    """An error as one paragraph for the user, or None when it is a defect of ours that needs a traceback."""
    if getattr(error, "errno", None) in NO_SPACE or any(os.strerror(code) in str(error) for code in NO_SPACE):
        place = getattr(error, "filename", None)
        return (
            f"the disk is full{f' (writing {place})' if place else ''}: {error}. Nothing that was written before is "
            "lost, and no half-written result is left. Free some space and run the same command again."
        )
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file or folder {str(error.filename)!r}. Check the path."
    if isinstance(error, USER_ERRORS):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        ours = error.errno is None and isinstance(error, (FileExistsError, PermissionError))
        return str(error) if ours else f"{error}. Check the path and its permissions."
    if type(error).__name__ == "RankError":
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of GPU memory: {error} Use a smaller --tokens_per_batch or --batch_size, or --device cpu."
        )
    return None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    """Warnings as one wrapped paragraph, without a line of source code."""
    text = textwrap.fill(
        f"tomfisher: warning: {message}", width=110, subsequent_indent="  ", break_on_hyphens=False
    )
    print(text, file=file or sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
