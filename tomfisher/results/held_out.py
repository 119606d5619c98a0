"""`HeldOut`: the best mask of a grid, chosen on one half of the scenes and tested on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tomfisher.evaluate.statistics import cluster_interval, sign_flip_test
from tomfisher.results.controls import has_controls
from tomfisher.results.power import ALPHA
from tomfisher.results.rule import Rule

Answers = Mapping[str, tuple[float, str]]  # correctness and scene of each question, by id


class Candidate(NamedTuple):
    """A mask that may be chosen.

    Attributes:
        rule: how it was chosen.
        kappa: its κ.
        nnz: how many weights it holds.
        rise: relative change of the perplexity.
        answers: to the headline condition.
        controls: the same questions under the control masks of the same rule and κ.
        kinds: what each of these control masks is, such as "random".
    """

    rule: Rule
    kappa: float
    nnz: int
    rise: float
    answers: Answers
    controls: Sequence[Answers]
    kinds: Sequence[str]


@dataclass(frozen=True)
class HeldOut:
    """What the mask that does best on one half of the scenes does on the other half.

    Attributes:
        criterion: of the mask's rule.
        control_kappa: of the mask's rule.
        kappa: of the mask.
        nnz: weights in it.
        rise: relative change of the perplexity, whose text is not halved.
        candidates: number of masks that it was chosen from.
        chosen: accuracy on the first half before and after.
        n: questions of the second half.
        n_clusters: their scenes.
        before: accuracy on the second half of the untouched model.
        after: and with the mask.
        ci95: 95 % interval of `after`.
        p: of the exact sign-flip test over the second half's scenes: one test, nothing to correct.
        controls: on the second half, the lower ends of the 95 % intervals of the control masks of the same rule and κ.
        kinds: what each of them is, such as "random".
    """

    criterion: str | None
    control_kappa: float | None
    kappa: float
    nnz: int
    rise: float
    candidates: int
    chosen: tuple[float, float]
    n: int
    n_clusters: int
    before: float
    after: float
    ci95: tuple[float, float]
    p: float
    controls: tuple[float, ...]
    kinds: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """How the mask was chosen."""
        return Rule(self.criterion, self.control_kappa)

    @property
    def is_clear(self) -> bool:
        """Whether the interval of `after` lies below that of every control; False without controls."""
        return bool(self.controls) and self.ci95[1] < min(self.controls)

    @property
    def holds(self) -> bool:
        """Whether the fall is significant there, and clear of all the controls that the rule is compared with."""
        falls = self.p < ALPHA and self.after < self.before
        return falls and self.is_clear and has_controls(self.rule, self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeldOut:
        """Rebuild what `to_dict` gave.

        Raises:
            TypeError: it is no such thing.
        """
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**read)


def hold_out(baseline: Answers, candidates: Iterable[Candidate], limit: float) -> HeldOut | None:
    """Choose the mask with the lowest accuracy on one half of the scenes, and test it on the other.

    The scenes are put in the order of the SHA-256 of their names, and go to the halves in turn. Of masks with the same
    accuracy the smallest is chosen.

    Args:
        baseline: answers of the untouched model to the headline condition.
        candidates: the masks of the study, in the order of measurement.
        limit: masks whose perplexity rises by this much or more are left out.

    Returns:
        None where no mask is within the limit, or there are fewer than two scenes.
    """
    within = [each for each in candidates if each.rise < limit]
    first, second = _halves(baseline)
    if not within or not first or not second:
        return None
    best = min(within, key=lambda each: (_accuracy(each.answers, first), each.nnz))
    values, scenes = zip(*(best.answers[key] for key in second), strict=True)
    earlier = [baseline[key][0] for key in second]
    return HeldOut(
        criterion=best.rule.criterion,
        control_kappa=best.rule.control_kappa,
        kappa=best.kappa,
        nnz=best.nnz,
        rise=best.rise,
        candidates=len(within),
        chosen=(_accuracy(baseline, first), _accuracy(best.answers, first)),
        n=len(second),
        n_clusters=len(set(scenes)),
        before=_accuracy(baseline, second),
        after=_accuracy(best.answers, second),
        ci95=cluster_interval(values, scenes),
        p=sign_flip_test(earlier, values, scenes),
        controls=tuple(_low(answers, second) for answers in best.controls),
        kinds=tuple(best.kinds),
    )


def _halves(answers: Answers) -> tuple[list[str], list[str]]:
    """The ids of the questions on the scenes of either half."""
    scenes = sorted(
        {scene for _, scene in answers.values()}, key=lambda s: hashlib.sha256(s.encode()).digest()
    )
    first = set(scenes[::2])
    halves: tuple[list[str], list[str]] = ([], [])
    for key, (_, scene) in answers.items():
        halves[scene not in first].append(key)
    return halves


def _accuracy(answers: Answers, keys: Sequence[str]) -> float:
    return sum(answers[key][0] for key in keys) / len(keys)


def _low(answers: Answers, keys: Sequence[str]) -> float:
    values, scenes = zip(*(answers[key] for key in keys), strict=True)
    return cluster_interval(values, scenes)[0]
