"""The same study on five architectures, and one table of what was found in each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.experiment import equal_kappa
from tomfisher.experiment.config import ARCHITECTURES as PRESET
from tomfisher.experiment.config import Config
from tomfisher.experiment.equal_kappa import at_kappas, score
from tomfisher.experiment.inside import FILE, chosen_kappa
from tomfisher.experiment.results import CONTROL_ONLY, HEADLINE, RANDOM, TASK_CONTROL, Point, Results
from tomfisher.experiment.study import Experiment
from tomfisher.experiment.table import align, rise
from tomfisher.experiment.verdict import holm, judge
from tomfisher.text_files import read_json

FAMILIES = ("contents", "transfer", "second-order")
GROUPS = {"qk": "q and k", "vo": "v and o", "mlp": "MLP", "mixer": "mixer"}
MASKS = (TASK_CONTROL, CONTROL_ONLY, RANDOM)

_INTERVALS = "  95 % intervals"

Say = Callable[[str], None] | None


@dataclass(frozen=True)
class Outcome:
    """What the study found in one architecture, at one κ.

    Args:
        architecture: "llama", "qwen2", ...
        title: the same for a heading.
        positions: how positions enter: "RoPE", "ALiBi" or "none".
        found: the verdict (`tomfisher.experiment.judge`).
        kappa: the verdict's; where nothing was found, that of the most significant fall.
        weights: number of perturbed weights.
        p: of false-belief accuracy against the untouched model, by the sign-flip test over scenes, after Holm's
            correction over the κ.
        conditions: `{name: {"before", "after", "random", "control-only"}}` for "false-belief", its families and the
            control questions on the same stories: `{"n", "accuracy", "ci95"}` each, "random" a list of them.
        perplexity_rise: relative, under the task's mask.
        control_perplexity_rise: relative, under the control-only mask.
        random_perplexity_rises: relative, under each random mask.
        where: per group of weights its `{"share"}` of the mask and `{"weight_share"}`; None without an analysis.
        dominant_norm: mean relative change of the norm of each head's dominant rotary pair, per mask, or None.
        first_mass: attention to the first token, mean over all heads: "before" and per mask, or None.
        random_dominant_norms: the same change under each random mask that was looked at.
        random_first_masses: the same attention under each of them.
        reasons: why a part is None.
        verdict: in words.
        kappas: the same false-belief accuracies and perplexities at every κ (`tomfisher.experiment.equal_kappa`).
    """

    architecture: str
    title: str
    positions: str
    found: bool
    kappa: float
    weights: int
    p: float
    conditions: dict[str, dict[str, Any]]
    perplexity_rise: float
    control_perplexity_rise: float
    random_perplexity_rises: tuple[float, ...]
    where: dict[str, dict[str, float]] | None
    dominant_norm: dict[str, float] | None
    first_mass: dict[str, float] | None
    reasons: dict[str, str]
    verdict: tuple[str, ...]
    kappas: tuple[dict[str, Any], ...] = ()
    random_dominant_norms: tuple[float, ...] = ()
    random_first_masses: tuple[float, ...] = ()


def configs(
    given: Mapping[str, Any] | None = None, config: str | os.PathLike[str] | None = None
) -> dict[str, Config]:
    """The studies of the preset, by architecture.

    Args:
        given: settings that differ from the preset's; `output_path` is the folder that holds the five run folders.
        config: a YAML file with more of them.

    Returns:
        One config per architecture, its run folder named after it.

    Raises:
        ValueError: a model is given, or a setting is unknown or out of range.
    """
    from tomfisher.testbed import ARCHITECTURES

    given = dict(given or {})
    if "model" in given:
        raise ValueError(
            f"The preset {PRESET} runs the models testbed2-{', testbed2-'.join(ARCHITECTURES)}; leave the model out. "
            f"A study of {given['model']} alone: --model {given['model']} without the preset."
        )
    base = Path(Config.resolve(given, config, PRESET).output_path)
    own = {name: {"model": f"testbed2-{name}", "output_path": str(base / name)} for name in ARCHITECTURES}
    return {name: Config.resolve(given | settings, config, PRESET) for name, settings in own.items()}


def run_architectures(
    given: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    say: Say = None,
) -> tuple[Path, list[Outcome]]:
    """Run or resume the five studies and write `architectures.json`, `.csv` and `.txt` above their folders.

    Reports are written by `tomfisher.report.write`, of each run folder and of the one above them.

    Args:
        given: see `configs`.
        config: see `configs`.
        overwrite: delete earlier studies in the same folders first.
        progress: show bars on a terminal, and say each step.
        say: see `Experiment`.

    Returns:
        The folder, and what was found in each architecture.

    Raises:
        ValueError: a run folder holds another study, or a setting is out of range.
    """
    from tomfisher.experiment.architecture_folder import clear, save

    outcomes = []
    studies = configs(given, config)
    folder = Path(next(iter(studies.values())).output_path).parent
    if overwrite:
        clear(folder)
    for name, study in studies.items():
        experiment = Experiment(study, overwrite=overwrite, say=say)
        if progress:
            experiment.say(f"{name}: {study.output_path}")
        results = experiment.run(progress=progress)
        outcomes.append(outcome(name, results, read_inside(study.output_path)))
    save(folder, outcomes)
    return folder, outcomes


def read_inside(run: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The `analysis.json` of a run folder; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    file = Path(run).expanduser() / FILE
    if not file.is_file():
        return None
    try:
        return dict(read_json(file))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it and run the same command again.") from None


def outcome(name: str, results: Results, inside: Mapping[str, Any] | None = None) -> Outcome:
    """Gather what is told about one architecture.

    Args:
        name: the architecture.
        results: its study.
        inside: its `analysis.json`.

    Returns:
        An `Outcome`, at the κ of the analysis, or of the verdict where there is none.
    """
    from tomfisher.testbed.recipe import architecture

    entry, verdict = architecture(name), judge(results)
    kappa = float(inside["kappa"]) if inside is not None else chosen_kappa(results)
    point, control = (results.at(kappa, mask)[0] for mask in (TASK_CONTROL, CONTROL_ONLY))
    corrected = _p_values(results)
    return Outcome(
        architecture=name,
        title=entry.title,
        positions=entry.positions,
        found=verdict.found,
        kappa=kappa,
        weights=point.nnz,
        p=corrected[kappa],
        conditions={
            condition: _condition(results, kappa, condition) for condition in _told(results.baseline)
        },
        perplexity_rise=rise(results, point),
        control_perplexity_rise=rise(results, control),
        random_perplexity_rises=tuple(rise(results, random) for random in results.at(kappa, RANDOM)),
        where=_where(inside),
        dominant_norm=_dominant_norm(inside),
        first_mass=_first_mass(inside),
        reasons=_reasons(inside),
        verdict=verdict.sentences,
        kappas=at_kappas(results, corrected),
        random_dominant_norms=_of_randoms(inside, "rope", "dominant"),
        random_first_masses=_of_randoms(inside, "sinks", "first_mass"),
    )


def _reasons(inside: Mapping[str, Any] | None) -> dict[str, str]:
    if inside is None:
        return {"inside": "The run folder has no analysis.json (analysis_prompts is 0)."}
    return {part: why for part, why in inside["unavailable"].items() if part in ("rope", "sinks")}


def _p_values(results: Results) -> dict[float, float]:
    """Per κ, p of the headline accuracy (sign-flip test over scenes) after Holm's correction."""
    headline = results.baseline.headline()
    points = [results.at(kappa, TASK_CONTROL)[0] for kappa in results.kappas]
    raw = [point.conditions[headline]["p_vs_baseline"] for point in points]
    return dict(zip(results.kappas, holm(raw), strict=True))


def _told(baseline: Point) -> list[str]:
    headline = baseline.headline()
    beliefs = [f"{family}/{HEADLINE}" for family in FAMILIES]
    controls = [f"{headline}/reality", f"{FAMILIES[-1]}/{HEADLINE}/first-order"]
    return [name for name in (headline, *beliefs, *controls) if name in baseline.conditions]


def _condition(results: Results, kappa: float, name: str) -> dict[str, Any]:
    return {
        "before": score(results.baseline, name),
        "after": score(results.at(kappa, TASK_CONTROL)[0], name),
        CONTROL_ONLY: score(results.at(kappa, CONTROL_ONLY)[0], name),
        RANDOM: [score(point, name) for point in results.at(kappa, RANDOM)],
    }


def _where(inside: Mapping[str, Any] | None) -> dict[str, dict[str, float]] | None:
    if inside is None or not inside.get("profile"):
        return None
    rows = inside["profile"]["groups"]
    return {row["group"]: {"share": row["share"], "weight_share": row["weight_share"]} for row in rows}


def _states(inside: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What was measured of a part, by mask; "before" is the untouched model."""
    found = {"before": inside.get("baseline", {}), **inside.get("states", {})}
    return {name: state[part] for name, state in found.items() if state.get(part)}


def _dominant_norm(inside: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Per mask, the mean over layers, q and k and heads of after / before - 1 in the pair that was dominant."""
    states = {} if inside is None else _states(inside, "rope")
    if "before" not in states:
        return None
    before = _dominant(states["before"], states["before"])
    return {
        name: _mean(
            [
                new / old - 1
                for new, old in zip(_dominant(states[name], states["before"]), before, strict=True)
            ]
        )
        for name in MASKS
        if name in states
    }


def _dominant(spectrum: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[float]:
    """Mean norms of the pairs that are dominant in the baseline."""
    return [
        layer[part]["norm"][head][pair]
        for layer, reference in zip(spectrum["layers"], baseline["layers"], strict=True)
        for part in ("q", "k")
        for head, pair in enumerate(reference[part]["dominant"])
    ]


def _first_mass(inside: Mapping[str, Any] | None) -> dict[str, float] | None:
    states = {} if inside is None else _states(inside, "sinks")
    masses = {
        name: _mean([mass for layer in state["layers"] for mass in layer["first_mass"]])
        for name, state in states.items()
    }
    return masses or None


def _of_randoms(inside: Mapping[str, Any] | None, part: str, measure: str) -> tuple[float, ...]:
    """One mean of every random mask that was looked at; nothing where the part is missing."""
    rows = [] if inside is None else inside.get("randoms", [])
    return tuple(row[part][measure] for row in rows if row.get(part, {}).get(measure) is not None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def render(outcomes: Sequence[Outcome]) -> str:
    """A table with a column per architecture, each at its own κ, and one of all at every κ that they share.

    Reasons for what is missing stand under the first.

    Args:
        outcomes: of `run_architectures`.

    Returns:
        Lines joined by newlines, without colour.
    """
    rows = [[label, *(cell(found) for found in outcomes)] for label, cell in _rows(outcomes)]
    lines = [align(["", *(found.title for found in outcomes)], rows, left=(0,))]
    told = {reason for found in outcomes for reason in found.reasons.values()}
    lines += [f"- {reason}" for reason in sorted(told)]
    lines += ["", "Under the task's mask at equal kappa: accuracy (95 % interval) rise of the perplexity"]
    return "\n".join([*lines, equal_kappa.render(outcomes)])


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, Callable[[Outcome], str]]]:
    """Label and cell of every row."""
    groups = [group for group in GROUPS if any(group in (found.where or {}) for found in outcomes)]
    headline, *others = dict.fromkeys(name for found in outcomes for name in found.conditions)
    return [
        ("positions", lambda o: o.positions),
        ("effect found", lambda o: "yes" if o.found else "no"),
        ("kappa", lambda o: f"{o.kappa:g}"),
        ("weights perturbed", lambda o: f"{o.weights}"),
        (f"{headline} before", lambda o: _accuracy(o, headline, "before")),
        ("  95 % interval", lambda o: _interval(o, headline, "before")),
        (f"{headline} after", lambda o: _accuracy(o, headline, "after")),
        ("  95 % interval", lambda o: _interval(o, headline, "after")),
        ("  p (sign flip, Holm)", lambda o: f"{o.p:.2g}"),
        ("  random masks", lambda o: _random(o, headline)),
        ("  control-only mask", lambda o: _accuracy(o, headline, CONTROL_ONLY)),
        ("    95 % interval", lambda o: _interval(o, headline, CONTROL_ONLY)),
        *(
            row
            for name in others
            for row in ((_short(name), _change_of(name)), (_INTERVALS, _intervals(name)))
        ),
        ("perplexity", lambda o: f"{o.perplexity_rise:+.1%}"),
        ("  control-only mask", lambda o: f"{o.control_perplexity_rise:+.1%}"),
        ("  random masks", lambda o: _range(o.random_perplexity_rises, "{:+.1%}")),
        *((f"mask in {GROUPS[group]} (of weights)", _share_of(group)) for group in groups),
        ("dominant rotary pairs", lambda o: _norm_change(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_dominant_norms, "{:+.1%}")),
        ("attention to first token", lambda o: _mass(o, TASK_CONTROL)),
        ("  random masks", lambda o: _range(o.random_first_masses, "{:.3f}")),
    ]


def _short(condition: str) -> str:
    family, _, kind = condition.partition(f"/{HEADLINE}")
    return family if not kind else f"{family} ({kind[1:]})"


def _accuracy(found: Outcome, condition: str, state: str) -> str:
    return f"{found.conditions[condition][state]['accuracy']:.3f}" if condition in found.conditions else "-"


def _interval(found: Outcome, condition: str, state: str) -> str:
    low, high = found.conditions[condition][state]["ci95"]
    return f"{low:.2f}..{high:.2f}"


def _random(found: Outcome, condition: str) -> str:
    return _range([score["accuracy"] for score in found.conditions[condition][RANDOM]], "{:.3f}")


def _range(values: Sequence[float], form: str) -> str:
    return f"{form.format(min(values))}..{form.format(max(values))}" if values else "-"


def _change_of(condition: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        if condition not in found.conditions:
            return "-"
        return f"{_accuracy(found, condition, 'before')} > {_accuracy(found, condition, 'after')}"

    return cell


def _intervals(condition: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        if condition not in found.conditions:
            return "-"
        return f"{_interval(found, condition, 'before')} > {_interval(found, condition, 'after')}"

    return cell


def _share_of(group: str) -> Callable[[Outcome], str]:
    def cell(found: Outcome) -> str:
        shares = (found.where or {}).get(group)
        return f"{shares['share']:.0%} ({shares['weight_share']:.0%})" if shares else "-"

    return cell


def _norm_change(found: Outcome, mask: str) -> str:
    change = found.dominant_norm or {}
    return f"{change[mask]:+.1%}" if mask in change else "-"


def _mass(found: Outcome, mask: str) -> str:
    mass = found.first_mass or {}
    return f"{mass['before']:.3f} > {mass[mask]:.3f}" if {"before", mask} <= mass.keys() else "-"
