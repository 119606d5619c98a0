"""Points of a study on their way into the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import Scores
from tomfisher.results.conditions import measured, perplexities
from tomfisher.results.folder import RunFolder
from tomfisher.results.row import BASELINE
from tomfisher.studies.points import PlannedPoint

if TYPE_CHECKING:
    from tomfisher.evaluate import Perplexity


def save_point(
    folder: RunFolder,
    plan: PlannedPoint,
    nnz: int,
    rules: Mapping[str, Any],
    scores: Scores,
    perplexity: Perplexity,
) -> None:
    """Write a measured point into the folder, compared with the baseline that lies there; of several ranks one does.

    Args:
        folder: of the run.
        plan: the point.
        nnz: number of weights written.
        rules: how the first point was run.
        scores: the answers.
        perplexity: of the held-out text.

    Raises:
        ValueError: the baseline is damaged, or was scored in another way.
    """
    if not folder.writes:
        return
    if "rules" not in folder.pinned():
        folder.pin(rules=rules)
    baseline = None if plan.mask == BASELINE else _saved_scores(folder, scores)
    rows = measured(
        scores,
        baseline,
        kappa=plan.kappa,
        mask=plan.mask,
        seed=plan.seed,
        nnz=nnz,
        **perplexities(perplexity),
    )
    folder.save_point(rows, scores.to_dict())


def _saved_scores(folder: RunFolder, present: Scores) -> Scores:
    """The baseline's, if it was scored as the present state was."""
    saved = folder.load_point("baseline")
    if saved is None:
        raise ValueError(f"The baseline of {folder.path} is damaged. Run the same command again.")
    baseline = Scores.from_dict(saved[1])
    if baseline.packed != present.packed:
        ways = {True: "with questions packed in one sequence", False: "without packing questions"}
        raise ValueError(
            f"The baseline of {folder.path} was scored {ways[baseline.packed]}, its other points would be scored "
            f"{ways[present.packed]}, which rounds differently: another version of tomfisher began it. Give another "
            "--output_path, or --overwrite to start again."
        )
    return baseline
