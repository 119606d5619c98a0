"""The masks of a study: two rankings for every criterion, of which each mask is a prefix, less another prefix."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from tomfisher.masks import criteria
from tomfisher.results.folder import RunFolder
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM
from tomfisher.studies import fisher_values
from tomfisher.studies.config import Config
from tomfisher.studies.points import PlannedPoint

if TYPE_CHECKING:
    from collections.abc import Collection

    from tomfisher.masks import Ranking, SparseMask
    from tomfisher.studies.materials import Materials


class StudyMasks:
    """Makes the mask of any point of a study.

    Args:
        config: the study.
        folder: its run folder.
        materials: gives what the criteria rank by, when it is first needed.
        say: told of every ranking.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        materials: Callable[[], Materials],
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.folder = folder
        self._materials, self._say = materials, say
        self._rankings: dict[str | None, tuple[Ranking, Ranking]] = {}

    @property
    def largest(self) -> float:
        """The κ that the rankings go up to."""
        return max((*self.config.kappas, *(self.config.control_kappa or ())))

    def rank(self, names: Collection[str | None]) -> None:
        """Rank by these criteria, the Fisher diagonal being None; `fisher-values.json` describes that one."""
        from tomfisher.masks import rank

        left = [name for name in dict.fromkeys(names) if name not in self._rankings]
        if not left:
            return
        materials, config = self._materials(), self.config
        materials.prepare(left)
        for name in left:
            by = "" if name is None else f" by {name}"
            self._say(f"ranking {len(materials.fisher['task'])} tensors{by} at kappa {self.largest:g}")
            thresholds = () if name is None else None
            once = not criteria.get(name).reads_texts
            rankings = {
                which: rank(
                    materials.scores(name, which), self.largest, config.scope, config.compat, thresholds
                )
                for which in (("task",) if once else ("task", "control"))
            }
            if name is None:
                content = fisher_values.described(rankings, config.kappas)
                text = json.dumps(content, allow_nan=False, separators=(",", ":"))
                self.folder.write_text(fisher_values.FILE, text + "\n")
            self._rankings[name] = rankings["task"], rankings.get("control", rankings["task"])

    def describe(self) -> None:
        """Write `fisher-values.json` anew."""
        self._rankings.pop(None, None)
        self.rank([None])

    def of(self, plan: PlannedPoint) -> SparseMask:
        """The mask of a point that is not the baseline.

        The first κ·n entries of the task's ranking, less those among the first κ_c·n of the control's where the
        criterion subtracts; with the two rankings exchanged for a control-only mask; for a random one, as many entries
        of every tensor.
        """
        rule, criterion = plan.rule, criteria.get(plan.rule.criterion)
        self.rank([rule.criterion])
        own, other = self._rankings[rule.criterion]
        if plan.mask == CONTROL_ONLY:
            own, other = other, own
        mask = own.mask(plan.kappa)
        if criterion.subtracts:
            mask = mask - other.mask(plan.kappa if rule.control_kappa is None else rule.control_kappa)
        return mask if plan.seed is None else mask.random_like(plan.seed)

    def saved(self, plan: PlannedPoint) -> SparseMask | None:
        """The mask of a point, written to the folder unless it is random; None for the baseline."""
        if plan.mask == BASELINE:
            return None
        mask = self.of(plan)
        if plan.mask != RANDOM and self.folder.writes:
            mask.save(self.folder.mask_path(plan.key))
        if mask.nnz == 0:
            self._say(f"the {plan.key} mask is empty: nothing is perturbed")
        return mask

    def kept(self, plan: PlannedPoint) -> SparseMask:
        """The mask that the folder keeps; made again where its file is gone or damaged."""
        from tomfisher.masks import SparseMask

        file = self.folder.mask_path(plan.key)
        try:
            return SparseMask.load(file)
        except (FileNotFoundError, ValueError):
            mask = self.of(plan)
            mask.save(file)
            return mask
