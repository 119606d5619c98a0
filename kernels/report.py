"""The table of registers, spills and shared memory in README.md: `python -m tomfisher.kernels.report [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import triton

from .resources import CHIPS, KIB, Chip, Resources, all_variants, compile_for, kernel_name
from .variant import Variant

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"


def table() -> str:
    """Compile every variant for every chip and lay the result out as Markdown."""
    lines = [
        f"Written by `make kernel-report` with Triton {triton.__version__}.",
        "A cell is registers per thread / shared memory per program in KiB, then spills, if any, in bytes (AMD: in",
        "registers). `!` marks more shared memory than the chip has: AMD is given shallower pipelines, never that one.",
        "",
        "| kernel | dtype | configuration | " + " | ".join(chip.name for chip in CHIPS) + " |",
        "| --- | --- | --- |" + " --- |" * len(CHIPS),
    ]
    return "\n".join([*lines, *(_row(variant) for variant in all_variants())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table into README.md, or with `--check` say whether the one there is true.

    Numbers are compared only where this Triton version wrote them; the list of kernels and configurations always.

    Returns:
        0, or 1 where `--check` finds the table stale.
    """
    parser = argparse.ArgumentParser(prog="python -m tomfisher.kernels.report", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the table is stale"
    )
    check = parser.parse_args(arguments).check
    before, old, after = _parts(README.read_text())
    new = table()
    if not check:
        README.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}")
        return 0
    same_triton = old.splitlines()[:1] == new.splitlines()[:1]
    stale = old != new if same_triton else _kernels(old) != _kernels(new)
    if stale:
        print(f"The compile report in {README} is stale. Run: make kernel-report", file=sys.stderr)
    return int(stale)


def _parts(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    return before, old.strip("\n"), after


def _kernels(text: str) -> list[list[str]]:
    return [line.split("|")[1:4] for line in text.splitlines() if line.startswith("|")]


def _row(variant: Variant) -> str:
    cells = [_cell(compile_for(variant, chip), chip) for chip in CHIPS]
    return " | ".join([f"| {kernel_name(variant)}", variant.dtype, variant.label, *cells]) + " |"


def _cell(used: Resources, chip: Chip) -> str:
    spills = f", {used.spilled} spilled" if used.spilled else ""
    over = "!" if used.shared > chip.shared_limit else ""
    return f"{used.registers} / {used.shared / KIB:.1f}{over}{spills}"


if __name__ == "__main__":
    sys.exit(main())
