"""The page of a folder that holds the same study on several architectures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tomfisher.report.architectures import (
    architecture_table,
    equal_kappa_table,
    family_table,
    outcomes_of,
)
from tomfisher.report.followups import Missing
from tomfisher.report.pictures import Picture, of_architectures
from tomfisher.report.sections import Block, Fact, Section
from tomfisher.results.architecture_folder import Architectures
from tomfisher.results.architecture_table import render

NAME = "architectures"


def name_of(architectures: Architectures) -> str:
    """What the folder is called in a report."""
    return f"The same study on {len(architectures.outcomes)} architectures"


def word_of(architectures: Architectures) -> str:
    """The verdict in a few words."""
    count = sum(outcome.found for outcome in architectures.outcomes)
    return f"An effect was found in {count} of {len(architectures.outcomes)} architectures."


def draw(architectures: Architectures) -> tuple[list[Picture], list[Missing]]:
    """The figure, or why there is none."""
    try:
        return [of_architectures(architectures)], []
    except ValueError as error:
        return [], [Missing(f"Figure {NAME}", str(error))]


def sections(
    architectures: Architectures, pictures: Sequence[Picture], missing: Sequence[Missing]
) -> list[Section]:
    """The parts of the page."""
    table = equal_kappa_table(architectures)
    own = [
        table
        for table in (architecture_table(architectures), family_table(architectures))
        if table is not None
    ]
    done = [
        Section(
            f"{NAME}-equal",
            "All architectures at equal κ",
            ["Compare architectures here: every one has the same share of its weights overwritten."],
            pictures=pictures,
            tables=[] if table is None else [table],
        ),
        Section(
            f"{NAME}-own",
            "Each at its own κ",
            tables=own,
            blocks=[
                Block("Also where the mask sits and what happens inside", render(architectures.outcomes))
            ],
        ),
    ]
    notes = [*missing, *missing_of(architectures)]
    if notes:
        done.append(Section(f"{NAME}-missing", "What this report cannot show", notes=notes))
    return [*done, _provenance(architectures)]


def missing_of(architectures: Architectures) -> list[Missing]:
    """Architectures without an outcome, and what keeps the others from being compared."""
    absent = [Missing(name, why) for name, why in architectures.missing.items()]
    return absent + [Missing("The comparison", note) for note in architectures.notes]


def _provenance(architectures: Architectures) -> Section:
    runs = [str(architectures.path / outcome.architecture) for outcome in architectures.outcomes]
    blocks = [
        Block(
            "Run it again",
            f"tomfisher run --preset {NAME} --output_path {shlex.quote(str(architectures.path))}",
        ),
        Block("Write this report again", f"tomfisher report {shlex.quote(str(architectures.path))}"),
        Block("Report on a single run", "\n".join(f"tomfisher report {shlex.quote(run)}" for run in runs)),
    ]
    texts = []
    if architectures.record:
        command = " ".join(map(shlex.quote, architectures.record["command"]))
        blocks.append(Block("What it was last run by", command))
        versions = ", ".join(
            f"{name} {version}" for name, version in architectures.record["versions"].items()
        )
        texts = [f"Finished {architectures.record['finished']}, with {versions}."]
    return Section(f"{NAME}-provenance", "Where the numbers come from", texts, blocks=blocks)


def facts(architectures: Architectures) -> list[Fact]:
    """Per architecture the accuracy before and after at its own κ."""
    told = []
    for outcome in outcomes_of(architectures):
        before, after = outcome.before(), outcome.after()
        detail = f"κ = {outcome.kappa:g}, 95 % interval after {after.ci95_low:.3f} to {after.ci95_high:.3f}"
        told.append(Fact(outcome.title, f"{before.accuracy:.3f} → {after.accuracy:.3f}", detail))
    return told
