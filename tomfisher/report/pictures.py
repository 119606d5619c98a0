"""All figures of a run, each with a caption and its numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tomfisher.report.ablations import plot_interventions
from tomfisher.report.architectures import plot_architectures, says
from tomfisher.report.attention_maps import plot_attention_maps
from tomfisher.report.data import Missing, RunData
from tomfisher.report.fisher_values import LOOKS, entries, histogram, plot_fisher_values
from tomfisher.report.frontier import plot_frontier
from tomfisher.report.mask_profile import (
    density,
    dominant_counts,
    pair_counts,
    plot_frequency_rows,
    plot_mask_map,
)
from tomfisher.report.sinks import per_layer, plot_sinks
from tomfisher.report.spectrum import mean_norms, plot_spectrum, plot_spectrum_change, spectrum_change
from tomfisher.report.style import to_inline, to_png, to_svg
from tomfisher.report.sweep import plot_accuracy, plot_perplexity
from tomfisher.report.tables import STATES, mean_over_heads, span
from tomfisher.results.ablations import interventions
from tomfisher.results.frontier import is_frontier
from tomfisher.results.results import ABLATIONS, Results
from tomfisher.results.row import TASK_CONTROL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tomfisher.results.architecture_folder import Architectures

DAMAGED = (KeyError, IndexError, TypeError, ValueError, AttributeError)
_WORDS = {"q": "queries", "k": "keys"}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its files, such as "accuracy".
        section: of the report that it stands in: "sweep", "frontier", "values", "mask", "rope", "sinks", "ablations" or
            "architectures".
        caption: what is drawn, and how to read it.
        says: what it shows, in numbers, for those who do not see it.
        figure: the figure.
        tabled: whether a table beside it has the same numbers.
    """

    name: str
    section: str
    caption: str
    says: str
    figure: Figure
    tabled: bool = False

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file; drawing it is most of the time that a report takes."""
        return to_svg(self.figure)

    def inline(self, prefix: str) -> str:
        """The figure as an `<svg>` element in the page's colours."""
        return to_inline(self.svg, f"{prefix}-{self.name}", self.says)

    def files(self) -> dict[str, bytes]:
        """The figure as files, by name."""
        return {
            f"{self.name}.svg": self.svg.encode("utf-8"),
            f"{self.name}.png": to_png(self.figure),
        }


def draw(data: RunData) -> tuple[list[Picture], list[Missing]]:
    """Draw every figure that the run has the data for.

    Returns:
        The figures in the order of the report, and what could not be drawn although there was something to draw.
    """
    pictures, missing = [], []
    for name, make in _makers(data):
        try:
            pictures.append(make())
        except DAMAGED as error:
            reason = f"{type(error).__name__}: {error}"
            missing.append(
                Missing(f"Figure {name}", f"The data of the run for it cannot be drawn ({reason}).")
            )
    return pictures, missing


def _makers(data: RunData) -> Iterator[tuple[str, Callable[[], Picture]]]:
    yield "accuracy", lambda: _accuracy(data)
    yield "perplexity", lambda: _perplexity(data)
    if is_frontier(data.results):
        yield "frontier", lambda: _frontier(data.results)
    if data.values is not None:
        yield "fisher-values", partial(_fisher_values, data.values)
    if data.inside is not None:
        yield from _inside_makers(data.inside)
    if ABLATIONS in data.extras:
        yield ABLATIONS, partial(_ablations, data.extras[ABLATIONS])
    if data.architectures is not None:
        yield "architectures", partial(of_architectures, data.architectures)


def _inside_makers(inside: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Picture]]]:
    profile = inside.get("profile")
    if profile and any(part.get("layer") is not None for part in profile.get("parts", ())):
        yield "mask-map", lambda: _mask_map(profile)
    if profile and any(part.get("pairs") for part in profile.get("parts", ())):
        yield "frequency-rows", lambda: _frequency_rows(profile)
    randoms = len(inside.get("randoms") or ())
    spectra = of_states(inside, "rope")
    if "baseline" in spectra:
        for part in ("q", "k"):
            yield f"spectrum-{part}", partial(_spectrum, spectra, part, randoms)
        if TASK_CONTROL in spectra:
            for part in ("q", "k"):
                yield f"spectrum-change-{part}", partial(_spectrum_change, spectra, part)
    sinks = of_states(inside, "sinks")
    if "baseline" in sinks:
        yield "sink-mass", lambda: _sink(sinks, "first_mass", randoms)
        yield "sink-angle", lambda: _sink(sinks, "angle", randoms)
    if inside.get("maps"):
        yield "attention-maps", lambda: _maps(inside["maps"])


def of_states(inside: Mapping[str, Any], part: str) -> dict[str, Any]:
    """One part of the analysis in every state that has it, the untouched model first."""
    states = {"baseline": inside["baseline"], **{name: inside["states"].get(name, {}) for name in STATES}}
    return {name: state[part] for name, state in states.items() if state.get(part)}


def _accuracy(data: RunData) -> Picture:
    headline, results = data.results.headline, data.results
    before = results.baseline()
    says = [
        f"Accuracy on {headline} over kappa. Untouched: {before.accuracy:.3f}, 95 % interval "
        f"{before.ci95_low:.3f} to {before.ci95_high:.3f}."
    ]
    for kappa in results.kappas:
        accuracies = [
            f"{STATES[mask]} {span([row.accuracy for row in results.at(kappa, mask)], '{:.3f}')}"
            for mask in STATES
            if results.at(kappa, mask)
        ]
        says.append(f"At {kappa:g}: {', '.join(accuracies)}.")
    caption = (
        f"Accuracy on {headline} over κ. Bars are 95 % intervals, the pale band is that of the untouched "
        "model; random masks are shown from their least to their most accurate seed."
    )
    return Picture("accuracy", "sweep", caption, " ".join(says), plot_accuracy(results)[0], True)


def _perplexity(data: RunData) -> Picture:
    results = data.results
    says = [f"Perplexity over kappa. Untouched: {results.baseline().perplexity:.4g}."]
    for kappa in results.kappas:
        rises = [
            f"{STATES[mask]} {span([results.rise(row) for row in results.at(kappa, mask)], '{:+.1%}')}"
            for mask in STATES
            if results.at(kappa, mask)
        ]
        says.append(f"Change at {kappa:g}: {', '.join(rises)}.")
    caption = "Perplexity per token on held-out control text over κ. The dotted line is the most the verdict allows."
    return Picture("perplexity", "sweep", caption, " ".join(says), plot_perplexity(results)[0], True)


def _frontier(results: Results) -> Picture:
    before = results.baseline()
    says = [f"Fall of {results.headline} accuracy from {before.accuracy:.3f}, and rise of the perplexity."]
    for rule in results.rules:
        points = [
            f"{before.accuracy - row.accuracy:.3f} at {results.rise(row):+.1%}"
            for kappa in results.kappas
            for row in results.at(kappa, TASK_CONTROL, rule=rule)
        ]
        says.append(f"{rule}: {', '.join(points)}.")
    caption = (
        f"How far {results.headline} accuracy falls against how far the perplexity rises; each line is a rule, its "
        "points the values of κ, bars are 95 % intervals. Up and to the left is better. The dotted line is the most "
        "perplexity that the verdict allows; the axis is linear up to 2 % and logarithmic beyond."
    )
    return Picture("frontier", "frontier", caption, " ".join(says), plot_frontier(results)[0], True)


def _fisher_values(values: Mapping[str, Any]) -> Picture:
    says = ["Histogram of the Fisher values over powers of two."]
    for which in LOOKS:
        fisher = values[which]
        first, counts = histogram(fisher)
        if len(counts):
            low = 2.0 ** (first + int(counts.argmax()))
            says.append(
                f"The {entries(fisher):,} {which} values: the fullest bin is {low:.2g} to twice that "
                f"({counts.max():,}), and {entries(fisher, 'zeros'):,} are 0."
            )
    caption = (
        "How many weights have a Fisher value of each size, per power of two, on the task and on the control text "
        "(sums over the samples; zeros are left out). Below: the smallest value that each κ selects, from the least to "
        "the most over the matrices, the median marked."
    )
    return Picture("fisher-values", "values", caption, " ".join(says), plot_fisher_values(values)[0])


def _mask_map(profile: Mapping[str, Any]) -> Picture:
    layers, kinds, shares = density(profile)
    row, column = np.unravel_index(np.nanargmax(shares), shares.shape)
    says = (
        f"Share of masked weights in {len(layers)} layers and {len(kinds)} kinds of matrices. Densest: "
        f"{kinds[column]} of layer {layers[row]}, {100 * shares[row, column]:.3g}%; emptiest part: "
        f"{100 * np.nanmin(shares):.3g}%."
    )
    caption = "Share of the weights that is masked, layer by layer and matrix by matrix."
    return Picture("mask-map", "mask", caption, says, plot_mask_map(profile)[0])


def _frequency_rows(profile: Mapping[str, Any]) -> Picture:
    says = []
    for kind in ("q", "k"):
        counts, heads = pair_counts(profile, kind), dominant_counts(profile, kind)
        if len(counts):
            says.append(
                f"W_{kind.upper()}: {counts.sum():.0f} masked entries over {len(counts)} rotary pairs, most in pair "
                f"{counts.argmax()} ({counts.max():.0f}; evenly spread it would be {counts.mean():.0f})."
            )
        if len(heads):
            says.append(
                f"The pair that is dominant most often there is {heads.argmax()}, in {heads.max()} heads."
            )
    caption = (
        "Masked entries in the rows of W_Q and W_K that make each rotary pair, summed over layers and heads; below, in "
        "how many heads the pair has the largest mean norm. The paper's claim is that the two gather in the same pairs."
    )
    return Picture("frequency-rows", "mask", caption, " ".join(says), plot_frequency_rows(profile)[0])


def _first_of(randoms: int) -> str:
    """Behind a caption: of several random masks a figure draws one."""
    return f" Random: the first of {randoms} masks." if randoms > 1 else ""


def _spectrum(spectra: Mapping[str, Any], part: str, randoms: int = 0) -> Picture:
    means = {name: np.nanmean(mean_norms(spectrum, part), axis=0) for name, spectrum in spectra.items()}
    top = int(means["baseline"].argmax())
    rest = [f"{STATES[name]} {values[top]:.3g}" for name, values in means.items() if name != "baseline"]
    says = (
        f"Mean norm of {_WORDS[part]} per rotary pair. Largest in the untouched model: pair {top} of "
        f"{len(means['baseline'])}, {means['baseline'][top]:.3g}; there under the masks: "
        f"{', '.join(rest) or 'not measured'}."
    )
    caption = (
        f"RoPE spectrum of the {_WORDS[part]}: mean norm of every rotary pair, over all heads and layers."
        f"{_first_of(randoms)}"
    )
    return Picture(f"spectrum-{part}", "rope", caption, says, plot_spectrum(spectra, part)[0])


def _spectrum_change(spectra: Mapping[str, Any], part: str) -> Picture:
    before, after = spectra["baseline"], spectra[TASK_CONTROL]
    change = spectrum_change(before, after, part)
    row, column = np.unravel_index(np.nanargmax(np.abs(change)), change.shape)
    layer = before["layers"][row]["layer"]
    says = (
        f"Change of the mean norm of {_WORDS[part]} by the task-minus-control mask. Largest: layer {layer}, pair "
        f"{column}, {change[row, column]:+.1%}; mean over all layers and pairs {np.nanmean(change):+.1%}."
    )
    caption = f"What the task-minus-control mask does to the {_WORDS[part]}: relative change per layer and rotary pair."
    figure = plot_spectrum_change(before, after, part)[0]
    return Picture(f"spectrum-change-{part}", "rope", caption, says, figure)


def _sink(sinks: Mapping[str, Any], measure: str, randoms: int = 0) -> Picture:
    angle = measure == "angle"
    form, what = (
        ("{:.1f} degrees", "Angle between queries and the first token's key")
        if angle
        else ("{:.3f}", "Attention on the first token")
    )
    means = []
    for name, state in sinks.items():
        label = "untouched" if name == "baseline" else STATES[name]
        mean = mean_over_heads(state, measure)
        means.append(f"{label} {'unknown' if mean is None else form.format(mean)}")
    before, others = per_layer(sinks["baseline"], measure), sinks.get(TASK_CONTROL)
    says = f"{what}, mean over all heads of all layers: {', '.join(means)}."
    if others:
        change = per_layer(others, measure) - before
        at = int(np.nanargmax(np.abs(change)))
        layer = sinks["baseline"]["layers"][at]["layer"]
        says += (
            f" Largest change by the task-minus-control mask: layer {layer}, from {form.format(before[at])} to "
            f"{form.format(before[at] + change[at])}."
        )
    caption = (
        f"{what}, layer by layer, mean over heads and positions.{' 90° is orthogonal.' if angle else ''}"
        f"{_first_of(randoms)}"
    )
    name = "sink-angle" if angle else "sink-mass"
    return Picture(name, "sinks", caption, says, plot_sinks(sinks, measure)[0])


def _maps(maps: Mapping[str, Any]) -> Picture:
    says = []
    for head, states in maps.items():
        means = [np.mean([row[0] for row in states[state][1:]]) for state in ("baseline", TASK_CONTROL)]
        says.append(
            f"Head {head}: mean attention of later tokens on the first is {means[0]:.3f} before and {means[1]:.3f} "
            "after."
        )
    caption = (
        "Attention maps of the heads whose attention on the first token changes most (layer.head), on one prompt: each "
        "row is a query token, the first column is the first token."
    )
    return Picture("attention-maps", "sinks", caption, " ".join(says), plot_attention_maps(maps)[0])


def _ablations(results: Results) -> Picture:
    name, before = results.headline, results.baseline().accuracy
    accuracies = [f"{row.state} {row.accuracy:.3f}" for row in interventions(results)]
    says = f"Accuracy on {name}: untouched {before:.3f}; {'; '.join(accuracies)}."
    caption = f"Accuracy on {name} under each intervention, beside its controls."
    return Picture(ABLATIONS, ABLATIONS, caption, says, plot_interventions(results)[0], True)


def of_architectures(architectures: Architectures) -> Picture:
    """The figure of a folder of architectures."""
    caption = (
        "False-belief accuracy of every architecture, untouched and under each mask, one panel per κ. Bars are 95 % "
        "intervals; random masks from their least to their most accurate seed."
    )
    return Picture(
        "architectures",
        "architectures",
        caption,
        says(architectures),
        plot_architectures(architectures)[0],
        True,
    )
