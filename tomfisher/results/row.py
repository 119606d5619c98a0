"""The record that every study writes: one condition, measured in one state of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from tomfisher.results.rule import PAPER, Rule

HEADLINE = "false-belief"
BASELINE, TASK_CONTROL, CONTROL_ONLY, RANDOM = "none", "task-control", "control-only", "random"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One condition in one state of a model; what does not apply is None.

    Fields from `condition` to the last p are of the condition, all others of the state: that is where JSON files have
    them.

    Args:
        architecture: in studies of several models, which one.
        fill: in studies of several fills, what the masked weights became.
        state: name of the state: an ablation ("" for the untouched model), a training, "before" or "after".
        interventions: the parts of an ablation, in the order in which they act.
        control: whether an ablation is a random control, made with `seed`.
        kappa: fraction of each tensor's weights that was selected; 0.0 where no weight is masked.
        mask: "none", "task-control", "control-only" or "random".
        seed: seed of a random mask, of a control or of a training.
        criterion: what ranks the weights, where it is not the Fisher diagonal (`tomfisher.masks.criteria`).
        control_kappa: fraction of the control's ranking that the mask leaves alone, where it is not `kappa`.
        nnz: number of perturbed weights.
        trainable: number of trained values.
        learning_rate: the one that a training kept.
        train_loss: loss of the last step of a training, in nats.
        about: what else there is to say of the state, in words.
        condition: what the questions are about; unions and cells: see `conditions_of`.
        n: number of questions, or of cells.
        n_clusters: number of clusters that they come in.
        cluster: what a cluster is: the questions of one "story" are not independent of each other.
        accuracy: mean correctness, in [0, 1].
        ci95_low: lower end of the 95 % interval of the accuracy (`tomfisher.evaluate.statistics.cluster_interval`).
        ci95_high: its upper end.
        p_vs_baseline: two-sided p of the exact sign-flip test over clusters against the untouched model.
        p_vs_start: the same against the state in which training begins.
        p_vs_masked: the same against the trained mask.
        p_holm: `p_vs_baseline` after Holm's correction over the study's tests, where a study has one such family.
        perplexity: per token, on the held-out control text.
        word_perplexity: per word of the same text; None where it is beyond a float.
    """

    architecture: str | None = None
    fill: str | None = None
    state: str | None = None
    interventions: tuple[str, ...] | None = None
    control: bool | None = None
    kappa: float | None = None
    mask: str | None = None
    seed: int | None = None
    criterion: str | None = None
    control_kappa: float | None = None
    nnz: int | None = None
    trainable: int | None = None
    learning_rate: float | None = None
    train_loss: float | None = None
    about: str | None = None
    condition: str
    n: int
    n_clusters: int | None = None
    cluster: str = "story"
    accuracy: float
    ci95_low: float
    ci95_high: float
    p_vs_baseline: float | None = None
    p_vs_start: float | None = None
    p_vs_masked: float | None = None
    p_holm: float | None = None
    perplexity: float | None = None
    word_perplexity: float | None = None

    @property
    def of_state(self) -> tuple[Any, ...]:
        """What tells the states of a study apart."""
        mask = self.rule, self.kappa, self.mask, self.seed
        return self.architecture, self.fill, self.state, self.control, *mask

    @property
    def rule(self) -> Rule:
        """How the mask was chosen."""
        return Rule(self.criterion, self.control_kappa)

    @property
    def key(self) -> str:
        """The state's file name: "baseline", "task-control-1e-05", "random-1e-05-seed0", "off-sink_0.1".

        Of other rules than the paper's: "task-control-1e-05-without-0.001", "taylor-random-1e-05-seed0".
        """
        if self.state is not None:
            return state_key(self.state, self.seed if self.control else None)
        assert self.mask is not None and self.kappa is not None
        return point_key(self.mask, self.kappa, self.seed, self.rule)

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return self.ci95_low, self.ci95_high


_FIELDS = tuple(field.name for field in fields(Row))
RULE_COLUMNS = (
    "criterion",
    "control_kappa",
)  # of tables whose study has masks of other rules than the paper's
COLUMNS = tuple(name for name in _FIELDS if name not in RULE_COLUMNS)
_OF_CONDITION = COLUMNS[COLUMNS.index("condition") : COLUMNS.index("perplexity")]
_ALWAYS = ("kappa", "mask", "seed", "nnz")  # in every state of a file, None or not
_PERPLEXITIES = ("perplexity", "word_perplexity")
_OPTIONAL = tuple(n for n in _FIELDS if n not in (*_OF_CONDITION, *_ALWAYS, *_PERPLEXITIES))
# what `_score` writes by name; the rest of a condition's fields are written where they differ from their default
_SCORED = ("condition", "n", "n_clusters", "accuracy", "ci95_low", "ci95_high", "p_vs_baseline")
_FURTHER = tuple(n for n in _OF_CONDITION if n not in _SCORED)
_DEFAULTS = {field.name: field.default for field in fields(Row)}
_EARLIER_NAMES = {"name": "state", "p_vs_untouched": "p_vs_baseline", "n_scenes": "n_clusters"}


def point_key(mask: str, kappa: float, seed: int | None = None, rule: Rule = PAPER) -> str:
    """File name of a state of the sweep."""
    if mask == BASELINE:
        return "baseline"
    return rule.named(mask, kappa) + ("" if seed is None else f"-seed{seed}")


def state_key(state: str, seed: int | None = None) -> str:
    """File name of a named state: letters, digits, `.`, `+`, `-` and `_` alone, and the seed of a control."""
    readable = re.sub(r"[^A-Za-z0-9.+-]", "_", state) or "baseline"
    return readable + ("" if seed is None else f"-seed{seed}")


def rows_of(state: Mapping[str, Any]) -> list[Row]:
    """The rows of one state, as JSON files hold it.

    Args:
        state: fields of `Row`, and `conditions`: `{condition: {"n", "n_scenes", "accuracy", "ci95": [low, high],
            "p_vs_baseline", ...}}`. Names of earlier versions are understood, other keys are left out.

    Raises:
        KeyError, TypeError, ValueError: it is no such thing.
    """
    own = _known(state)
    if own.get("interventions") is not None:
        own["interventions"] = tuple(own["interventions"])
    rows = []
    for condition, score in state["conditions"].items():
        low, high = score["ci95"]
        rows.append(Row(**own, **_known(score), condition=condition, ci95_low=low, ci95_high=high))
    return rows


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {_EARLIER_NAMES.get(name, name): value for name, value in values.items()}
    return {name: value for name, value in named.items() if name in _FIELDS}


def states_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The states of some rows as JSON files hold them, each with all its conditions; `rows_of` reads one."""
    return [_state(group) for group in grouped(rows)]


def grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each state; those of one state stand together."""
    return (list(group) for _, group in groupby(rows, key=lambda row: row.of_state))


def _state(rows: Sequence[Row]) -> dict[str, Any]:
    first = rows[0]
    others = {name: getattr(first, name) for name in _OPTIONAL if getattr(first, name) is not None}
    return {
        **{name: getattr(first, name) for name in _ALWAYS},
        "conditions": {row.condition: _score(row) for row in rows},
        **{name: getattr(first, name) for name in _PERPLEXITIES},
        **others,
    }


def _score(row: Row) -> dict[str, Any]:
    clusters = {} if row.n_clusters is None else {"n_scenes": row.n_clusters}
    further = {name: getattr(row, name) for name in _FURTHER if getattr(row, name) != _DEFAULTS[name]}
    return {
        "n": row.n,
        **clusters,
        "accuracy": row.accuracy,
        "ci95": list(row.ci95),
        "p_vs_baseline": row.p_vs_baseline,
        **further,
    }
