"""The parts of the report on one run: texts, figures and tables in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from tomfisher.analysis.sinks import WINDOW
from tomfisher.report.architectures import architecture_table, equal_kappa_table, family_table
from tomfisher.report.data import Missing, RunData
from tomfisher.report.pictures import DAMAGED, Picture, of_states
from tomfisher.report.provenance import provenance_section_parts
from tomfisher.report.tables import (
    STATES,
    band_table,
    condition_table,
    enrichment_table,
    group_table,
    mean_over_heads,
    sink_table,
    span,
    sparsity_table,
    values_table,
)
from tomfisher.results.ablations import ablation_table
from tomfisher.results.equal_kappa import sentences
from tomfisher.results.fill_grid import grid_table
from tomfisher.results.frontier import criteria_table, frontier_table, is_frontier
from tomfisher.results.interaction import study_table
from tomfisher.results.results import ABLATIONS, FINETUNE, GRID, Results
from tomfisher.results.row import CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.sweep import sweep_table
from tomfisher.results.tables import PAGE, Table
from tomfisher.results.trainings import training_table

_SCOPES = {
    "tensor": "of the entries of each weight matrix",
    "layer": "of the weights of each layer",
    "model": "of all weights of the model together",
}


class Block(NamedTuple):
    """Preformatted text under a heading."""

    title: str
    text: str


class Fact(NamedTuple):
    """A figure worth knowing at once, and what is to be known about it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        id: unique on the page.
        title: its heading.
        texts: paragraphs.
        notes: a list of what is missing and why.
        pictures: figures.
        tables: tables.
        blocks: preformatted texts.
    """

    id: str
    title: str
    texts: Sequence[str] = ()
    notes: Sequence[Missing] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Block] = ()


@dataclass
class Writer:
    """Collects the sections of one run; what is damaged is noted instead of shown.

    Args:
        data: the run.
        pictures: its figures.
        missing: what is known to be missing; grows.
        prefix: of the ids.
    """

    data: RunData
    pictures: Sequence[Picture]
    missing: list[Missing]
    prefix: str
    done: list[Section] = field(default_factory=list)

    def sections(self) -> list[Section]:
        """All sections that the run has something for, what is missing and the provenance last."""
        self._sweep()
        if is_frontier(self.data.results):
            self._frontier(self.data.results)
        if self.data.values is not None:
            self._values(self.data.values)
        if self.data.together is not None:
            self._together(self.data.together)
        if self.data.inside is not None:
            self._inside(self.data.inside)
        self._extras()
        if self.missing:
            self._add("missing", "What this report cannot show", notes=self.missing)
        texts, tables, blocks = provenance_section_parts(self.data)
        self._add(
            "provenance",
            "Where the numbers come from",
            texts,
            tables=tables,
            blocks=[Block(*block) for block in blocks],
        )
        return self.done

    def _add(self, name: str, title: str, texts: Sequence[str] = (), **parts: Any) -> None:
        pictures = [picture for picture in self.pictures if picture.section == name]
        if texts or pictures or any(parts.values()):
            self.done.append(Section(f"{self.prefix}-{name}", title, texts, pictures=pictures, **parts))

    def _tables(self, what: str, *makers: Any) -> list[Table]:
        """The tables that can be made; a damaged one is noted."""
        tables = []
        for make in makers:
            try:
                table = make()
            except DAMAGED as error:
                reason = f"{type(error).__name__}: {error}"
                self.missing.append(
                    Missing(f"A table of {what}", f"The data of the run for it are damaged ({reason}).")
                )
                continue
            if table is not None:
                tables.append(table)
        return tables

    def _sweep(self) -> None:
        data = self.data
        tables = self._tables(
            "the sweep",
            lambda: sweep_table(data.results, PAGE, data.focus),
            lambda: condition_table(data),
        )
        text = (
            f"A task-minus-control mask holds the weights that the task ({data.task}) needs most and the control text "
            f"({data.control}) does not. It is compared with the weights that only the control needs, and with random "
            "ones: as many of them in every matrix."
        )
        self._add("sweep", "What the masks do", [text], tables=tables)

    def _frontier(self, results: Results) -> None:
        verdict = self.data.verdict
        told = [row for row in results.select(mask=TASK_CONTROL, kappa=verdict.kappa, rule=verdict.rule)]
        makers = [lambda: frontier_table(results, PAGE, told)]
        if len({rule.criterion for rule in results.rules}) > 1:
            makers.append(lambda: criteria_table(results, PAGE))
        text = (
            "How much a mask leaves to the control decides how specific it is. Here the share of the control's ranking "
            "that is left alone varies apart from κ, or other criteria than the Fisher diagonal rank the weights. One "
            "correction runs over all of these masks; what was chosen among them is also tested on scenes that did not "
            "choose it (last sentence of the verdict)."
        )
        tables = self._tables("the frontier", *makers)
        self._add("frontier", "Ability lost against language lost", [text], tables=tables)

    def _values(self, values: Mapping[str, Any]) -> None:
        tables = self._tables("the Fisher values", lambda: values_table(values))
        text = (
            "A weight's Fisher value is the sum over the samples of the squared derivative of a sample's loss by that "
            "weight: how much the model's answers depend on it. A mask takes the far right end of the task's."
        )
        self._add("values", "How large the Fisher values are", [text], tables=tables)

    def _together(self, together: Mapping[str, Any]) -> None:
        tables = self._tables("the interaction", lambda: study_table(together, PAGE))
        given = (self.data.results.provenance.get("config") or {}).get("task_store")
        whose = "samples of the task" if given else "samples that the task's Fisher diagonal was taken of"
        text = (
            "The method ranks weights one by one, by the diagonal of the Fisher matrix. What a mask does to the loss "
            "also depends on how its weights act together, which the diagonal leaves out. Both are compared here, and "
            f"with what happens, on the {together.get('samples', 'same')} {whose}."
            + (" The diagonal that the masks are made of comes from a store that was given." if given else "")
        )
        self._add("interaction", "What the diagonal misses", [text], tables=tables)

    def _inside(self, inside: Mapping[str, Any]) -> None:
        for part, why in (inside.get("unavailable") or {}).items():
            self.missing.append(Missing(f"Analysis: {part}", str(why)))
        kappa = inside.get("kappa")
        at = f"At κ = {kappa:g}" if isinstance(kappa, (int, float)) else "At one κ"
        prompts = f"{at}, on {inside.get('prompts', 'some')} prompts of the evaluation task."
        profile = inside.get("profile")
        if profile:
            self._profile(profile, at)
        if of_states(inside, "rope"):
            tables = self._tables("frequencies", lambda: band_table(inside))
            text = (
                f"{prompts} Rotary pairs turn from fast to slow; the paper finds the slow, dominant ones of queries "
                "and keys disturbed by the mask. Random masks show how much any change of that size does."
            )
            self._add("rope", "Rotary frequencies of queries and keys", [text], tables=tables)
        if of_states(inside, "sinks"):
            self._sinks(inside, prompts)

    def _profile(self, profile: Mapping[str, Any], at: str) -> None:
        for part, why in (profile.get("unavailable") or {}).items():
            self.missing.append(Missing(f"Mask profile: {part}", str(why)))
        tables = self._tables(
            "the mask",
            lambda: group_table(profile),
            lambda: enrichment_table(profile),
            lambda: sparsity_table(profile),
        )
        text = f"{at}: {profile.get('nnz', 0):,} of {profile.get('numel', 0):,} weights are masked."
        self._add("mask", "Where the mask sits", [text], tables=tables)

    def _sinks(self, inside: Mapping[str, Any], prompts: str) -> None:
        text = (
            f"{prompts} Many heads put most of their attention on the first token. The paper finds that the mask turns "
            "queries away from that token's key, so that attention leaves it."
        )
        try:
            sentence = sink_sentence(inside)
        except DAMAGED:
            sentence = ""
        self._short_prompts(inside)
        tables = self._tables("sinks", lambda: sink_table(inside))
        self._add("sinks", "Attention sinks", [text, sentence] if sentence else [text], tables=tables)

    def _short_prompts(self, inside: Mapping[str, Any]) -> None:
        """Note that the sink rate is of fewer prompts than the rest."""
        measured = inside["baseline"]["sinks"]
        long, prompts = measured.get("long_prompts"), measured.get("prompts")
        if long is not None and prompts is not None and long < prompts:
            window = measured.get("window", WINDOW)
            self.missing.append(
                Missing(
                    "Sink rate of all prompts" if long else "Sink rate",
                    f"It covers the first {window} tokens, and {prompts - long} of the {prompts} prompts have fewer: "
                    f"{f'it is of the other {long}' if long else 'there is none'}. For longer prompts: tomfisher "
                    "analyze --model MODEL --texts FILE --parts sinks.",
                )
            )

    def _extras(self) -> None:
        extras = self.data.extras
        if extra := extras.get(ABLATIONS):
            tables = self._tables("ablations", partial(ablation_table, extra, PAGE))
            notes = [Missing(name, f"Left out: {why}") for name, why in extra.left_out.items()]
            text = "Parts of the mask alone, and interventions on activations that leave the weights as they are."
            self._add(ABLATIONS, "Ablations", [text], tables=tables, notes=notes)
        if extra := extras.get(GRID):
            texts = ["The same masks with other fills.", *extra.conclusions]
            tables = self._tables("the grid of fills", partial(grid_table, extra, PAGE))
            self._add(GRID, "Other fills", texts, tables=tables)
        if extra := extras.get(FINETUNE):
            notes = [Missing(f"Not done: {name}", why) for name, why in extra.left_out.items()]
            of = " of every condition" if extra.provenance.get("balanced") else ""
            text = (
                f"The masked weights alone, as many random ones, and LoRA, trained on the same stories{of}."
            )
            tables = self._tables("the training", partial(training_table, extra, PAGE))
            self._add(FINETUNE, "Training only the masked weights", [text], tables=tables, notes=notes)
        beside = self.data.architectures
        if beside is not None:
            tables = self._tables(
                "the architectures",
                lambda: equal_kappa_table(beside),
                lambda: architecture_table(beside),
                lambda: family_table(beside),
            )
            self._add(
                "architectures",
                "The same study on other architectures",
                sentences(beside.outcomes),
                tables=tables,
            )


def context(data: RunData) -> list[str]:
    """What the verdict rests on, in words: what κ is a share of, and how many trainings were seen."""
    sentences = []
    kappa = data.focus
    if kappa is not None:
        where = _SCOPES.get(str(data.config.get("scope", "tensor")), "of the weights")
        share = f"{100 * kappa:g} %"
        sentences.append(
            f"Kappa is a share {where}: at kappa = {kappa:g} the mask takes the {share} with the largest values of the "
            f"task's Fisher diagonal, less those that are among the {share} with the largest of the control's."
        )
    if str(data.config.get("model", "")).startswith("testbed"):
        sentences.append(
            "The testbed model was trained once, with one seed: how the effect varies from training to training is not "
            "known."
        )
    return sentences


def facts(data: RunData) -> list[Fact]:
    """What one wants to know first."""
    results = data.results
    before = results.baseline()
    told = [_accuracy(f"Untouched, {results.headline} (n = {before.n})", before)]
    kappa = data.focus
    if kappa is None:
        return told
    masked, randoms = results.at(kappa, TASK_CONTROL), results.at(kappa, RANDOM)
    told += [_accuracy(f"Task minus control, κ\u00a0=\u00a0{kappa:g}", row) for row in masked]
    told += [_accuracy("Control only, same κ", row) for row in results.at(kappa, CONTROL_ONLY)]
    if randoms:
        value = span([row.accuracy for row in randoms], "{:.3f}")
        told.append(Fact("Random, same κ", value, f"least to most of {len(randoms)}"))
    for row in masked:
        told.append(Fact("Weights overwritten", f"{row.nnz:,}"))
        told.append(Fact("Perplexity", f"{results.rise(row):+.1%}", f"{row.perplexity:.4g} per token"))
    return told


def _accuracy(name: str, row: Row) -> Fact:
    return Fact(name, f"{row.accuracy:.3f}", f"95 % interval {row.ci95_low:.3f} to {row.ci95_high:.3f}")


def sink_sentence(inside: Mapping[str, Any]) -> str:
    """The sinks' change in one sentence; empty where the untouched or the masked state is missing."""
    states = of_states(inside, "sinks")
    if not {"baseline", TASK_CONTROL} <= set(states):
        return ""
    mass = {name: mean_over_heads(state, "first_mass") for name, state in states.items()}
    angle = {name: mean_over_heads(state, "angle") for name, state in states.items()}
    if any(value is None for value in (*mass.values(), *angle.values())):
        return ""
    shown = {name: f"{mass[name]:.3f}" for name in (CONTROL_ONLY, RANDOM) if name in mass}
    if RANDOM in shown and (ranges := (inside.get("random_range") or {}).get("sinks")):
        shown[RANDOM] = span(ranges["first_mass"], "{:.3f}")
    others = ", ".join(f"{STATES[name]} {value}" for name, value in shown.items())
    return (
        f"Here the mean attention on the first token goes from {mass['baseline']:.3f} to {mass[TASK_CONTROL]:.3f} "
        f"under the task-minus-control mask{f' ({others})' if others else ''}, and the mean angle between queries and "
        f"the first key from {angle['baseline']:.1f}° to {angle[TASK_CONTROL]:.1f}°."
    )
