"""What the same study found in each of several architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tomfisher.results.analysis import chosen_kappa, means
from tomfisher.results.results import Results
from tomfisher.results.row import CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL, Row, states_of
from tomfisher.results.verdict import Verdict, headline_tests, judge

FAMILIES = ("contents", "transfer", "second-order")
MASKS = (TASK_CONTROL, CONTROL_ONLY, RANDOM)


@dataclass(frozen=True)
class Outcome:
    """What the study found in one architecture.

    Args:
        architecture: "llama", "qwen2", ...
        title: the same for a heading.
        positions: how positions enter: "RoPE", "ALiBi" or "none".
        results: the study.
        kappa: its own κ: the verdict's; where nothing was found, that of the most significant fall.
        verdict: whether the effect was found, and in words.
        where: per group of weights its `{"share"}` of the mask and `{"weight_share"}`; None without an analysis.
        dominant_norm: mean relative change of the norm of each head's dominant rotary pair, per mask, or None.
        first_mass: attention to the first token, mean over all heads: "before" and per mask, or None.
        random_dominant_norms: the same change under each random mask that was analysed.
        random_first_masses: the same attention under each of them.
        reasons: why a part is None.
    """

    architecture: str
    title: str
    positions: str
    results: Results
    kappa: float
    verdict: Verdict
    where: dict[str, dict[str, float]] | None
    dominant_norm: dict[str, float] | None
    first_mass: dict[str, float] | None
    random_dominant_norms: tuple[float, ...]
    random_first_masses: tuple[float, ...]
    reasons: dict[str, str]

    @property
    def found(self) -> bool:
        """Whether the effect was found."""
        return self.verdict.found

    @property
    def conditions(self) -> list[str]:
        """Those that are told: the headline, the families of stories, and the control questions on the same stories."""
        headline = self.results.headline
        beliefs = [f"{family}/{HEADLINE}" for family in FAMILIES]
        controls = [f"{headline}/reality", f"{FAMILIES[-1]}/{HEADLINE}/first-order"]
        return [name for name in (headline, *beliefs, *controls) if name in self.results.conditions]

    def before(self, condition: str | None = None) -> Row:
        """The untouched model, on one condition (None: the headline)."""
        return self.results.baseline(condition)

    def after(self, condition: str | None = None, kappa: float | None = None) -> Row:
        """Under the task's mask, at one κ (None: the architecture's own)."""
        return self._at(TASK_CONTROL, condition, kappa)[0]

    def control(self, condition: str | None = None, kappa: float | None = None) -> Row:
        """Under the control-only mask."""
        return self._at(CONTROL_ONLY, condition, kappa)[0]

    def randoms(self, condition: str | None = None, kappa: float | None = None) -> tuple[Row, ...]:
        """Under each random mask."""
        return self._at(RANDOM, condition, kappa)

    def rise(self, row: Row) -> float:
        """Relative change of the perplexity against the untouched model."""
        return self.results.rise(row)

    def p(self, kappa: float | None = None) -> float:
        """Of the headline accuracy under the task's mask, after Holm's correction over the κ."""
        return headline_tests(self.results)[self.after(kappa=kappa)]

    def rows(self, kappa: float, condition: str) -> Iterator[Row]:
        """One condition under every mask at one κ, named "after", "control-only" and "random"."""
        yield self._named(self.after(condition, kappa), "after", kappa)
        yield self._named(self.control(condition, kappa), CONTROL_ONLY, kappa)
        for row in self.randoms(condition, kappa):
            yield self._named(row, RANDOM, kappa)

    def own_rows(self) -> Iterator[Row]:
        """Every condition that is told at the architecture's own κ, before the mask and under each."""
        for condition in self.conditions:
            yield self._named(self.before(condition), "before", self.kappa)
            yield from self.rows(self.kappa, condition)

    def to_dict(self) -> dict[str, Any]:
        """What `architectures.json` says of it; states as in `results.json`."""
        told = [row for row in self.results.rows if row.condition in self.conditions]
        return {
            "architecture": self.architecture,
            "title": self.title,
            "positions": self.positions,
            "found": self.found,
            "kappa": self.kappa,
            "p": self.p(),
            "verdict": list(self.verdict.sentences),
            "states": states_of(told),
            "where": self.where,
            "dominant_norm": self.dominant_norm,
            "first_mass": self.first_mass,
            "random_dominant_norms": list(self.random_dominant_norms),
            "random_first_masses": list(self.random_first_masses),
            "reasons": self.reasons,
        }

    def _at(self, mask: str, condition: str | None, kappa: float | None) -> tuple[Row, ...]:
        return self.results.at(self.kappa if kappa is None else kappa, mask, condition)

    def _named(self, row: Row, state: str, kappa: float) -> Row:
        return replace(row, architecture=self.architecture, state=state, kappa=kappa)


def outcome(name: str, results: Results, analysis: Mapping[str, Any] | None = None) -> Outcome:
    """Gather what is told about one architecture.

    Args:
        name: the architecture.
        results: its study.
        analysis: its `analysis.json`.

    Returns:
        An `Outcome`, at the κ of the analysis, or of the verdict where there is none.

    Raises:
        ValueError: a κ of the study has no task-control or no control-only mask.
    """
    from tomfisher.testbed.recipe import architecture

    for kappa in results.kappas:
        for mask in (TASK_CONTROL, CONTROL_ONLY):
            if len(results.at(kappa, mask)) != 1:
                raise ValueError(
                    f"at kappa = {kappa:g} it has {len(results.at(kappa, mask))} {mask} masks, not one"
                )
    entry = architecture(name)
    inside = _inside(analysis)
    return Outcome(
        architecture=name,
        title=entry.title,
        positions=entry.positions,
        results=results,
        kappa=float(analysis["kappa"]) if analysis is not None else chosen_kappa(results),
        verdict=judge(results),
        where=_where(analysis),
        dominant_norm=_of_states(inside, "rope", "dominant", MASKS),
        first_mass=_of_states(inside, "sinks", "first_mass", ("before", *MASKS)),
        random_dominant_norms=_of_randoms(analysis, "rope", "dominant"),
        random_first_masses=_of_randoms(analysis, "sinks", "first_mass"),
        reasons=_reasons(analysis),
    )


def _reasons(analysis: Mapping[str, Any] | None) -> dict[str, str]:
    if analysis is None:
        return {"inside": "The run folder has no analysis.json (analysis_prompts is 0)."}
    return {part: why for part, why in analysis["unavailable"].items() if part in ("rope", "sinks")}


def _where(analysis: Mapping[str, Any] | None) -> dict[str, dict[str, float]] | None:
    if analysis is None or not analysis.get("profile"):
        return None
    rows = analysis["profile"]["groups"]
    return {row["group"]: {"share": row["share"], "weight_share": row["weight_share"]} for row in rows}


def _inside(analysis: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What every state says on average; "before" is the untouched model."""
    if analysis is None:
        return {}
    before = analysis["baseline"]
    return {name: means(before, state) for name, state in {"before": before, **analysis["states"]}.items()}


def _of_states(
    inside: Mapping[str, Mapping[str, Any]], part: str, measure: str, names: tuple[str, ...]
) -> dict[str, float] | None:
    """One mean of every state that has it; None where none has."""
    known = {name: inside[name][part][measure] for name in names if part in inside.get(name, {})}
    return known or None


def _of_randoms(analysis: Mapping[str, Any] | None, part: str, measure: str) -> tuple[float, ...]:
    """One mean of every random mask that was analysed; nothing where the part is missing."""
    rows = [] if analysis is None else analysis.get("randoms", [])
    return tuple(row[part][measure] for row in rows if row.get(part, {}).get(measure) is not None)
