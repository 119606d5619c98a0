"""`tomfisher report`: a run folder as one HTML page."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import add_command


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "report",
        "figures, tables and verdict of a run as one HTML page",
        "Write RUN/report.html, a single file that needs no network, and the figures as SVG and PNG into RUN/figures.\n"
        "A second run is reported on the same page and compared with the first, or it is said why it cannot be.\n"
        "What a run does not have yet is named; the rest is there.",
        (
            "tomfisher report runs/demo-testbed",
            "tomfisher report runs/demo-testbed runs/demo-smollm2 --output_path both.html",
        ),
    )
    parser.add_argument("run", metavar="RUN", help="folder of a study (tomfisher run)")
    parser.add_argument("other", metavar="RUN2", nargs="?", help="a second one, to compare")
    parser.add_argument("--output_path", help="the HTML file [RUN/report.html]")
    parser.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the verdict and where the page lies."""
    from tomfisher.report import load, write

    page = write(args.run, args.output_path, compare_with=args.other)
    for folder in filter(None, (args.run, args.other)):
        data = load(folder)
        print(f"{data.name}: {data.verdict.sentences[1]}")
        for missing in data.missing:
            print(f"  not in the report: {missing.what}. {missing.why}")
    print(f"\nReport:  {page}")
    print(f"Figures: {', '.join(f'{folder}/figures' for folder in filter(None, (args.run, args.other)))}")
    return 0
