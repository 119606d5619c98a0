"""Tables of what happens inside a model, of where a mask lies, and of what masks share, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tomfisher.analysis import Analysis, MaskProfile, Overlap, SinkChange, SpectrumChange
from tomfisher.results.tables import align

TITLES = {
    "rope": "RoPE spectrum: share of the rotated energy in slow, middle and fast pairs, mean over heads",
    "sinks": "Attention to the first token, mean over heads (angles in degrees, entropies in nats)",
}
PROFILE_TITLES = {
    "groups": "Mask profile: share of the masked weights and share of all weights of the mask's tensors",
    "kinds": "Mask profile by weight",
    "layers": "Mask profile by layer",
    "frequencies": "Mask profile: rows of W_Q and W_K by rotary frequency, and as expected by chance",
    "sparsity": "Mask profile: distinct rows and columns, effective rank of the change; means over matrices",
}
HEAD_COLUMNS = ("layer", "part", "head", "pairs", "masked", "found", "expected", "fold", "p_corrected")
OVERLAP_TITLE = "Overlap of masks, compared with random masks of the same counts"
LARGEST = 5


def analysis_tables(
    baseline: Analysis, changes: Mapping[str, SpectrumChange | SinkChange], parts: Iterable[str]
) -> list[str]:
    """Every part's table, and with a mask the table of what changed and the largest changes.

    Args:
        baseline: the model as it is.
        changes: what a mask changed, by part; empty without one.
        parts: which parts to show, of those that the model has.
    """
    blocks = []
    for part in parts:
        if part in baseline.unavailable:
            continue
        result = baseline.results[part]
        blocks.append(f"{TITLES[part]}\n{_table(result.summary())}")
        if part == "rope":
            blocks[-1] += (
                f"\n{result.prompts} prompts, {result.tokens} tokens; bands relative to {result.context} tokens"
            )
        if part in changes:
            kind = "relative change of norms" if part == "rope" else "masked minus baseline"
            largest = [row._asdict() for row in changes[part].largest(LARGEST)]
            blocks.append(f"{part}, {kind}\n{_table(changes[part].summary())}")
            blocks.append(f"{part}, largest changes\n{_table(largest)}")
    return blocks


def analysis_notes(baseline: Analysis, parts: Iterable[str]) -> list[str]:
    """What the tables of these parts leave out, a sentence each."""
    notes = []
    for part in parts:
        if part in baseline.unavailable:
            notes.append(f"no {part}: {baseline.unavailable[part]}")
        elif part == "sinks" and (result := baseline.results[part]).long_prompts < result.prompts:
            notes.append(
                f"{result.prompts - result.long_prompts} of {result.prompts} prompts are shorter than {result.window} "
                "tokens; the sink rate leaves them out"
            )
    return notes


def profile_tables(profile: MaskProfile) -> list[str]:
    """Where a mask lies, and the heads in which it stands out most."""
    blocks = [f"{PROFILE_TITLES[title]}\n{_table(rows)}" for title, rows in profile.summary().items() if rows]
    if profile.enrichment is not None:
        strongest = [test.to_dict() for test in profile.enrichment.strongest(LARGEST)]
        rows = [{name: row[name] for name in HEAD_COLUMNS} for row in strongest]
        title = "Mask profile, heads whose dominant rows stand out most among places (not among whole pairs)"
        blocks.append(f"{title}\n{_table(rows)}")
    return blocks


def overlap_table(overlap: Overlap) -> str:
    """A line for every pair of masks."""
    return f"{OVERLAP_TITLE}\n{_table(overlap.summary(), left=(0, 1))}"


def _table(rows: Sequence[Mapping[str, Any]], left: Sequence[int] = ()) -> str:
    names = [name.replace("_", " ") for name in rows[0]]
    return align(names, [[_cell(value, name) for name, value in row.items()] for row in rows], left)


def _cell(value: Any, name: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if not isinstance(value, float):
        return str(value)
    if value == 0.0 and (name == "p" or name.startswith("p_")):
        return "< 1e-300"  # too small for a float
    return "-" if math.isnan(value) else f"{value:.4g}"
