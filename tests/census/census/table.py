"""The table of `docs/architectures.md`: made from rows, and read back."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers

PATH = Path(__file__).resolve().parents[3] / "docs" / "architectures.md"
COLUMNS = (
    "architecture",
    "class",
    "weights",
    "Fisher",
    "in batches",
    "decoder-linear",
    "choice",
    "generate",
    "perplexity",
    "perturb",
    "heads",
    "positions",
    "frequencies",
    "sinks",
)
WORDS = {"exact": "exact", "right": "yes", "found": "yes", "refused": "refused"}

INTRODUCTION = """\
# Architectures

What tomfisher makes of the causal language models of transformers {version}, {total} in all: each built small and
random from its configuration, and everything compared with its definition by plain calls of the model. This page is
written by `make census`; `tests/census` fails where the page and the result differ.

{built} are built. The Fisher diagonal of all trainable parameters is exact for {exact} of them (float64 autograd one
sample at a time, on ragged samples; 1e-5 of a tensor's largest entry, or 1e-7 of the model's) and refused, with the
reason, for {refused}. Rotary frequencies can be analysed in {frequencies}, attention sinks in {sinks}.

- **in batches**: the share of the decoder's linear weights whose squares come out of a padded batch; the others are
  computed one sample at a time. **decoder-linear**: how many of the weights that a forward multiplies by in the
  decoder's layers the preset of that name covers.
- **choice, generate, perplexity**: equal to single rows without a cache, on every path that the model may be run.
  Choice: rows *packed* in one sequence, beginnings *shared* by a cache, whole rows *padded*, of *equal lengths*, or
  *single*: where one is missing, it was tried and the model gives other numbers.
- **perturb**: written, and undone to the bit.
- **heads**: query heads / key heads × dimensions, where `tomfisher.models.families.describe` finds them.
  **frequencies**, **sinks**: whether `tomfisher analyze` can measure them; a number is a reason below.
"""


STREAMED = "## Streamed\n"
STREAMED_INTRODUCTION = """
The Fisher diagonal of the decoder's linear weights, taken layer by layer as of a model that `open_model` has opened,
against the one of the model in memory, on two ragged samples. Of {built} architectures {bits} give the same bits,
{rounding} the same within rounding (1e-5 of a tensor's largest entry, or 1e-7 of the model's), and {refused} are
refused before the work, with the reason: something passes from layer to layer beside the hidden states, a weight
belongs to several layers, or no Fisher is taken of the model in memory either. The methods (captured or one sample at a
time) are the same throughout. Between the same bits and rounding a few architectures change from run to run, with where
tensors happen to lie in memory.
"""


def parted(page: str) -> tuple[str, str]:
    """A page without its section on streaming, and that section."""
    first, mark, second = page.partition(f"\n{STREAMED}")
    return first, (STREAMED + second if mark else "")


def joined(page: str, streamed: str) -> str:
    """The page with that section."""
    return f"{page}\n{streamed}"


def render_streamed(rows: Sequence[dict[str, Any]]) -> str:
    """The section on streaming."""
    built = [row for row in rows if row["built"]]
    number = Counter(row.get("verdict", "failed") for row in built)
    introduction = STREAMED_INTRODUCTION.format(
        built=len(built),
        bits=number["the same bits"],
        rounding=number["within rounding"],
        refused=number["refused"],
    )
    head = [("architecture", "streamed", "what differs, or why not"), ["---"] * 3]
    return f"{STREAMED}{introduction}\n" + "\n".join(map(_line, [*head, *map(streamed_cells, built)])) + "\n"


def streamed_cells(row: dict[str, Any]) -> list[str]:
    """The line of an architecture in that section."""
    if "failed" in row:
        return [f"`{row['type']}`", "**failed**", row["failed"]]
    return [
        f"`{row['type']}`",
        row["verdict"],
        _reason(row, row["note"].partition(" Such a model cannot")[0]),
    ]


def streamed_lines(page: str) -> dict[str, list[str]]:
    """What a page says about streaming, by architecture."""
    return {cells[0].strip("`"): cells for cells in _rows(parted(page)[1])}


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The page."""
    built = [row for row in rows if row["built"]]
    reasons: dict[str, int] = {}
    table = [_cells(row, reasons) for row in built]
    count = {
        name: sum(_verdict(row, name) in ("exact", "found") for row in built)
        for name in ("fisher", "frequencies", "sinks")
    }
    parts = [
        INTRODUCTION.format(
            version=transformers.__version__,
            total=len(rows),
            built=len(built),
            exact=count["fisher"],
            refused=sum(_verdict(row, "fisher") == "refused" for row in built),
            frequencies=count["frequencies"],
            sinks=count["sinks"],
        ),
        "\n".join(_line(cells) for cells in [COLUMNS, ["---"] * len(COLUMNS), *table]) + "\n",
        "## Reasons\n\n" + "".join(f"{number}. {reason}\n" for reason, number in reasons.items()),
    ]
    if len(built) < len(rows):
        parts.append("## Not built\n\n" + _not_built(rows))
    return "\n".join(parts)


def _cells(row: dict[str, Any], reasons: dict[str, int]) -> list[str]:
    cells = [f"`{row['type']}`", f"`{row['class']}`"]
    if "failed" in row:
        return [*cells, "", f"**{row['failed']}**", *[""] * (len(COLUMNS) - 4)]
    checks = row["checks"]

    def said(name: str, words: str = "") -> str:
        found = checks[name]
        if found["verdict"] == "refused":
            number = reasons.setdefault(_reason(row, found["reason"]), len(reasons) + 1)
            return f"no ({number})"
        if found["verdict"] in WORDS:
            return words or WORDS[found["verdict"]]
        return f"**{found['verdict']}**"

    fisher, selection, structure = checks["fisher"], checks["selection"], checks["structure"]
    return [
        *cells,
        f"{row['parameters']:,}",
        said("fisher"),
        f"{fisher['captured']:.0%}" if "captured" in fisher else "",
        f"{selection['coverage']:.0%}" if selection["verdict"] == "right" else said("selection"),
        said("choice", ", ".join(checks["choice"].get("ways", ()))),
        said("generate"),
        said("perplexity"),
        said("perturbation"),
        said("structure", _heads(structure)),
        ", ".join(structure.get("positions", ())),
        said("frequencies"),
        said("sinks"),
    ]


def _reason(row: dict[str, Any], sentence: str) -> str:
    """A reason as it holds for every architecture and machine: without names and measured numbers."""
    sentence = sentence.replace(row["class"], "This model")
    sentence = re.sub(r"^This model \([\w-]+\)|^[\w-]+(?= has no )", "This model", sentence)
    sentence = re.sub(r"\b([Tt]his) [\w-]+ model\b", r"\1 model", sentence)
    return re.sub(r"[\d.]+(e-?\d+)? nats", "some nats", sentence)


def _heads(structure: dict[str, Any]) -> str:
    if structure["verdict"] != "found":
        return ""
    heads = ", ".join(f"{queries}/{keys} × {width}" for queries, keys, width in structure["heads"])
    return heads or "no attention"


def _not_built(rows: Sequence[dict[str, Any]]) -> str:
    types = defaultdict(list)
    for row in rows:
        if not row["built"]:
            types[row["reason"]].append(f"`{row['type']}`")
    return "".join(f"- {', '.join(names)}: {reason}\n" for reason, names in types.items())


def _verdict(row: dict[str, Any], name: str) -> str:
    return row["checks"][name]["verdict"] if "checks" in row else "failed"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def version_of(page: str) -> str:
    """The version of transformers that a page is about."""
    return page.partition("models of transformers ")[2].partition(",")[0]


def verdicts(page: str) -> dict[str, str]:
    """What a page says about the Fisher of each architecture."""
    return {cells[0].strip("`"): cells[COLUMNS.index("Fisher")] for cells in _rows(parted(page)[0])}


def _rows(page: str) -> Iterator[list[str]]:
    for line in page.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
