"""`tomfisher ablate`: which part of a mask, and what inside the model, carries the effect."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from tomfisher.cli.common import (
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    kappa,
    report_line,
)
from tomfisher.progress import note

ABLATIONS = "[ablations]"  # where the help lists them; it imports them only when it is shown
SETTINGS = ("limit", "random_seeds", "perplexity_tokens", "batch_size", "device")


class AblationHelp(argparse.RawDescriptionHelpFormatter):
    """Help that lists the parts of a mask and the interventions there are."""

    def add_text(self, text: str | None) -> None:
        """Add a paragraph."""
        super().add_text(text.replace(ABLATIONS, _known()) if text and ABLATIONS in text else text)


def _known() -> str:
    """Parts of a mask in one paragraph, then each intervention with the first sentence of its docstring."""
    from tomfisher.interventions import INTERVENTIONS, PARTS

    width = max(len(intervention.form) for intervention in INTERVENTIONS)
    acting = [_entry(f"  {i.form:{width}}", (i.__doc__ or "").partition("\n")[0]) for i in INTERVENTIONS]
    return "\n".join(
        [_entry("ablations of weights:", ", ".join(PARTS)), "ablations of activations:", *acting]
    )


def _entry(title: str, text: str) -> str:
    indent = " " * (len(title) + 2)
    return textwrap.fill(
        text, 115, initial_indent=f"{title}  ", subsequent_indent=indent, break_on_hyphens=False
    )


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "ablate",
        "parts of a study's mask, and changes of frequencies and sinks, through the same evaluation",
        "Measure a study's model again with parts of its mask alone (W_Q and W_K, V and O, the MLP, the rows of the\n"
        "dominant rotary frequencies), and with queries, keys or attention changed while the weights stay as they\n"
        "are; each beside random controls. Finished points are kept: the same command resumes where it stopped,\n"
        "another --only adds to them, and p is corrected over all of them.\n\n"
        f"{ABLATIONS}\n\n"
        "BAND is slow, middle, fast or dominant. Keys are those of the first token unless TOKEN, counted from 0, is\n"
        "given. @LAYER or @LAYER.HEAD/LAYER.HEAD after an ablation of activations says where it acts. Together:\n"
        "dominant-rows+off-sink:0.1",
        (
            "tomfisher ablate runs/demo-testbed",
            "tomfisher ablate runs/demo-testbed --kappa 0.05 --random_seeds 2",
            "tomfisher ablate runs/demo-testbed --only qk,vo,mlp,scale-band:slow:0.5,rotate-key:30,off-sink:0.1 \\\n"
            "      --combine 2 --output_path runs/pairs",
            "tomfisher ablate runs/demo-testbed --mask other.safetensors --only dominant-rows,not-dominant-rows \\\n"
            "      --output_path runs/other",
        ),
    )
    parser.formatter_class = AblationHelp
    parser.add_argument("run", metavar="RUN", help="folder of a finished `tomfisher run`")
    parser.add_argument("--only", help="ablations, comma-separated [a set of twelve]")
    parser.add_argument(
        "--combine", type=int, default=1, help="also all combinations of up to this many of them [1]"
    )
    parser.add_argument("--kappa", type=kappa, help="which of the study's masks [that of its verdict]")
    parser.add_argument("--mask", help="this mask file instead (tomfisher mask)")
    add_settings(parser, *SETTINGS)
    parser.add_argument("--output_path", help="folder for ablations.json and ablations.csv [RUN/ablations]")
    add_overwrite(parser)
    parser.set_defaults(execute=run, saves=True)


def run(args: argparse.Namespace) -> int:
    """Ablate, print the table and where the results lie."""
    from tomfisher.results.ablations import ablation_table, interventions
    from tomfisher.studies.ablate_run import ablate_run

    names = None if args.only is None else [name for name in args.only.split(",") if name.strip()]
    settings = {key: value for key, value in given_settings(args).items() if key in SETTINGS}
    output = Path(args.output_path or Path(args.run) / "ablations")
    results = ablate_run(
        args.run,
        names=names,
        combine=args.combine,
        kappa=args.kappa,
        mask=args.mask,
        output_path=output,
        overwrite=args.overwrite,
        settings=settings,
        say=note,
    )
    print(ablation_table(results).text())
    comparisons = len(interventions(results))
    count = f"{comparisons} comparison{'s' if comparisons > 1 else ''}"
    print(f"\nHolm's correction covers {count}: every ablation that is finished in {output}.")
    for name, reason in results.left_out.items():
        note(f"left out {name}: {reason}")
    print(f"\nResults: {output}/ablations.json, ablations.csv")
    print(report_line(args.run, output, "ablations"))
    return 0
