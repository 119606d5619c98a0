"""What an evaluation gives back: one record per question, and the summaries made from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tomfisher.evaluate.normalize import TOTAL, decide, scores_of
from tomfisher.evaluate.statistics import cluster_interval, sign_flip_test
from tomfisher.tasks.story import scene_of

ALL = "all"


@dataclass(frozen=True)
class Record:
    """One question and how it was answered.

    Args:
        id: the story's id.
        group: the name it is reported under.
        condition: the story's condition.
        cell: what the two questions of one cell share.
        kind: "belief" or "reality".
        correct: mean correctness over the repetitions, in [0, 1].
        predicted: the choice taken, or the generated first word (of the first repetition).
        logprobs: log-probability of every choice in nats, or None when it was not measured.
        margin: score of the right choice minus the best other one, or None: nats, or nats per token, character or byte,
            as the choices were compared.
        outcomes: correctness in every repetition; one entry where nothing is repeated.
        choices: the choices, without the gap before them.
        answer: index of the right one.
        num_tokens: how many tokens the log-probability of every choice is the sum of, or None.
    """

    id: str
    group: str
    condition: str
    cell: str
    kind: str
    correct: float
    predicted: str
    logprobs: tuple[float, ...] | None = None
    margin: float | None = None
    outcomes: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int = 0
    num_tokens: tuple[int, ...] | None = None

    @classmethod
    def of_story(
        cls,
        story: Any,
        outcomes: tuple[float, ...],
        predicted: str,
        logprobs: tuple[float, ...] | None = None,
        margin: float | None = None,
        num_tokens: tuple[int, ...] | None = None,
    ) -> Record:
        """The record of one story from its correctness in every repetition."""
        return cls(
            id=story.id,
            group=story.group,
            condition=story.condition,
            cell=story.cell,
            kind=story.kind,
            correct=sum(outcomes) / len(outcomes),
            predicted=predicted,
            logprobs=logprobs,
            margin=margin,
            outcomes=outcomes,
            choices=tuple(story.choices),
            answer=story.answer,
            num_tokens=num_tokens,
        )

    @property
    def scene(self) -> str:
        """What the story shares with those told of the same scene (`tomfisher.tasks.story.scene_of`)."""
        return scene_of(self.cell)


@dataclass(frozen=True)
class GroupScore:
    """Accuracy of one group of records.

    Args:
        n: number of items (questions, or cells).
        accuracy: mean correctness in [0, 1].
        ci95: 95 % interval `(low, high)` of the accuracy: Wilson's, for the number of independent questions that
            the clusters are worth (`tomfisher.evaluate.cluster_interval`).
        n_clusters: number of clusters that the items form.
    """

    n: int
    accuracy: float
    ci95: tuple[float, float]
    n_clusters: int

    @classmethod
    def of(cls, items: Iterable[tuple[float, str]]) -> GroupScore:
        """Summarise some items, each given as correctness and cluster."""
        values, clusters = zip(*items, strict=True)
        interval = cluster_interval(values, clusters)
        return cls(len(values), sum(values) / len(values), interval, len(set(clusters)))

    def to_dict(self) -> dict[str, Any]:
        """`{"n", "n_scenes", "accuracy", "ci95": [low, high]}`, fit for JSON."""
        return {
            "n": self.n,
            "n_scenes": self.n_clusters,
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
        }


@dataclass(frozen=True)
class Scores:
    """All records of one evaluation, in the order of the stories.

    Args:
        records: one per question.
        method: "choice" or "generate".
        shared_prefix: whether tokens that several questions begin with were computed once.
        packed: whether that was done with questions side by side in one sequence. In low precision, compare scores
            only with others of the same kind.
        normalize: how the choices were compared: see `tomfisher.evaluate.normalize`.
        wording: how the questions were put: see `tomfisher.tasks.wording.Wording`.
        max_new_tokens: how many tokens were written for every answer, or None where none were.
        rules: how the model was run and why (`tomfisher.runtime.rules`), or None where it is not known.
    """

    records: tuple[Record, ...]
    method: str = "choice"
    shared_prefix: bool = False
    packed: bool = False
    normalize: str = TOTAL
    wording: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    rules: dict[str, Any] | None = field(default=None, compare=False)

    def normalized(self, normalize: str) -> Scores:
        """The same log-probabilities, with the choices compared in another way.

        `scores.normalized("total")` gives the `acc` of lm-evaluation-harness, "character" its `acc_norm`, "byte" its
        `acc_bytes`.

        Args:
            normalize: "total", "token", "character" or "byte".

        Raises:
            ValueError: another name, or scores without log-probabilities.
        """
        if self.method != "choice" or any(record.num_tokens is None for record in self.records):
            raise ValueError(
                "Only scores of method='choice' that say the choices' numbers of tokens can be compared in another way."
            )
        return replace(
            self, records=tuple(_compared(record, normalize) for record in self.records), normalize=normalize
        )

    def by_group(self) -> dict[str, GroupScore]:
        """Accuracy per group, in order of appearance, and of everything under "all" (last)."""
        groups: dict[str, list[tuple[float, str]]] = {}
        for record in self.records:
            groups.setdefault(record.group, []).append((record.correct, record.scene))
        groups[ALL] = [(record.correct, record.scene) for record in self.records]
        return {name: GroupScore.of(items) for name, items in groups.items()}

    def cells(self) -> dict[str, GroupScore]:
        """Accuracy per condition, counting cells instead of questions, and of everything under "all" (last).

        A cell is right in a repetition when all its questions are right in that repetition; its correctness is
        the mean over the repetitions. (A tie enters with its fraction, multiplied over the questions.)
        """
        cells: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            cells.setdefault((record.condition, record.cell), []).append(record)
        conditions: dict[str, list[tuple[float, str]]] = {}
        for (condition, _), members in cells.items():
            conditions.setdefault(condition, []).append((_all_right(members), members[0].scene))
        conditions[ALL] = [item for items in conditions.values() for item in items]
        return {name: GroupScore.of(items) for name, items in conditions.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and dicts, fit for JSON; `Scores.from_dict` reads it back."""
        return {
            "method": self.method,
            "shared_prefix": self.shared_prefix,
            "packed": self.packed,
            "normalize": self.normalize,
            "wording": self.wording,
            "max_new_tokens": self.max_new_tokens,
            "rules": self.rules,
            "records": [asdict(record) for record in self.records],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """Rebuild what `to_dict` gave, also after a trip through JSON."""
        return cls(
            tuple(_record_from(entry) for entry in data["records"]),
            data["method"],
            data["shared_prefix"],
            data.get("packed", False),
            data.get("normalize", TOTAL),
            data.get("wording", {}),
            data.get("max_new_tokens"),
            data.get("rules"),
        )


def compare(baseline: Scores, other: Scores) -> dict[str, float]:
    """Exact sign-flip test over clusters (`sign_flip_test`) of two evaluations of the same stories.

    Args:
        baseline: scores before.
        other: scores after, of the same story ids (in any order).

    Returns:
        The two-sided p-value per group, "all" last.

    Raises:
        ValueError: the two hold different stories.
    """
    after = {record.id: record.correct for record in other.records}
    missing = sorted({record.id for record in baseline.records} ^ set(after))
    if missing:
        raise ValueError(
            f"compare got scores of different stories: {len(missing)} ids are in only one of them, such as "
            f"{', '.join(map(repr, missing[:3]))}. Score the same stories twice."
        )
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for record in baseline.records:
        groups.setdefault(record.group, []).append((record.correct, after[record.id], record.scene))
    groups[ALL] = [item for group in groups.values() for item in group]
    return {name: sign_flip_test(*zip(*group, strict=True)) for name, group in groups.items()}


def _all_right(members: list[Record]) -> float:
    repetitions = list(zip(*(record.outcomes or (record.correct,) for record in members), strict=True))
    total = 0.0
    for outcomes in repetitions:
        right = 1.0
        for outcome in outcomes:
            right *= outcome
        total += right
    return total / len(repetitions)


def _compared(record: Record, normalize: str) -> Record:
    """A record with its choices compared in another way."""
    if record.logprobs is None or record.num_tokens is None:
        raise ValueError(f"Record {record.id!r} has no log-probabilities.")
    values = scores_of(record.logprobs, record.choices, record.num_tokens, normalize)
    correct, best, margin = decide(values, record.answer)
    return replace(
        record, correct=correct, predicted=record.choices[best], margin=margin, outcomes=(correct,)
    )


def _record_from(entry: dict[str, Any]) -> Record:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    return Record(**fields)
