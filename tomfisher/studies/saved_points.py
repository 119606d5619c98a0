"""Points of a study on their way into the run folder, and from there into its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tomfisher.evaluate.records import Scores
from tomfisher.results.conditions import Members, by_clusters, measured, members_of, perplexities
from tomfisher.results.folder import RunFolder
from tomfisher.results.held_out import Candidate, HeldOut, hold_out
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.rule import PAPER
from tomfisher.results.verdict import PERPLEXITY_LIMIT
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
        criterion=plan.rule.criterion,
        control_kappa=plan.rule.control_kappa,
        mask=plan.mask,
        seed=plan.seed,
        nnz=nnz,
        **perplexities(perplexity),
    )
    folder.save_point(rows, scores.to_dict())


def collected(folder: RunFolder, plans: Sequence[PlannedPoint], provenance: dict[str, Any]) -> Results:
    """The results of a study from its finished points.

    Args:
        folder: of the run.
        plans: all points of the study, the baseline first.
        provenance: where the numbers come from.

    Raises:
        ValueError: a point is not there.
    """
    rows: list[Row] = []
    answers: dict[str, dict[str, Members]] = {}
    baseline: Scores | None = None
    several = any(plan.rule != PAPER for plan in plans)
    for plan in plans:
        saved = folder.load_point(plan.key)
        if saved is None:
            raise ValueError(f"Point {plan.key} vanished from {folder.path}. Run the same command again.")
        scores = Scores.from_dict(saved[1])
        rows += by_clusters(saved[0], scores, baseline)
        baseline = scores if baseline is None else baseline
        if several:
            answers[plan.key] = members_of(scores)
    results = Results(tuple(rows), provenance)
    return replace(results, held_out=_held_out(results, plans, answers)) if several else results


def _held_out(
    results: Results, plans: Sequence[PlannedPoint], answers: Mapping[str, Mapping[str, Members]]
) -> HeldOut | None:
    """The best of all masks, chosen on one half of the scenes."""
    headline = results.headline
    candidates = []
    for plan in (plan for plan in plans if plan.mask == TASK_CONTROL):
        (row,) = results.at(plan.kappa, TASK_CONTROL, rule=plan.rule)
        controls = [
            other
            for other in plans
            if other.mask in (CONTROL_ONLY, RANDOM) and (other.rule, other.kappa) == (plan.rule, plan.kappa)
        ]
        candidates.append(
            Candidate(
                plan.rule,
                plan.kappa,
                row.nnz or 0,
                results.rise(row),
                answers[plan.key][headline],
                [answers[other.key][headline] for other in controls],
                [other.mask for other in controls],
            )
        )
    return hold_out(answers[plans[0].key][headline], candidates, PERPLEXITY_LIMIT)


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
