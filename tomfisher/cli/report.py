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
        "A second run is reported on the same page and compared with the first, or the page says why it cannot be.\n"
        "What a run does not have yet is listed there.",
        (
            "tomfisher report runs/demo-testbed",
            "tomfisher report runs/architectures",
            "tomfisher report runs/demo-testbed runs/demo-smollm2 --output_path both.html",
        ),
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a study (tomfisher run), or of the preset architectures"
    )
    parser.add_argument("other", metavar="RUN2", nargs="?", help="a second one, to compare")
    parser.add_argument("--output_path", help="the HTML file [RUN/report.html]")
    parser.set_defaults(execute=run, output_is_file=True, saves=True)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the verdict and where the page lies."""
    from tomfisher.report import load, write
    from tomfisher.report.data import beside_each_other
    from tomfisher.results.architecture_folder import is_folder

    page = write(args.run, args.output_path, compare_with=args.other)
    if args.other is None and is_folder(args.run):
        _tell_architectures(args.run)
        print(f"\nReport:  {page}\nFigures: {args.run}/figures")
        return 0
    for data in beside_each_other([load(folder) for folder in filter(None, (args.run, args.other))]):
        print(f"{data.heading}: {data.verdict.sentences[1]}")
        for missing in data.missing:
            print(f"  not in the report: {missing.what}. {missing.why}")
    print(f"\nReport:  {page}")
    print(f"Figures: {', '.join(f'{folder}/figures' for folder in filter(None, (args.run, args.other)))}")
    return 0


def _tell_architectures(folder: str) -> None:
    """Print the verdict on a folder of architectures, and what it lacks."""
    from tomfisher.report.architecture_page import missing_of, word_of
    from tomfisher.results.architecture_folder import read
    from tomfisher.results.equal_kappa import sentences

    results = read(folder)
    print(word_of(results))
    for sentence in sentences(results.outcomes):
        print(sentence)
    for missing in missing_of(results):
        print(f"  not in the report: {missing.what}. {missing.why}")
