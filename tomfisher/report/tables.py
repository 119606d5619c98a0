"""What the report prints as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tomfisher.analysis.sinks import EPSILON, WINDOW
from tomfisher.evaluate.statistics import TEST
from tomfisher.report.data import RunData
from tomfisher.report.fisher_values import LOOKS, entries
from tomfisher.results.analysis import means
from tomfisher.results.columns import COUNT, mask_columns, masks_at, p_value
from tomfisher.results.results import corrected
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.results.rule import PAPER
from tomfisher.results.tables import PAGE, Table, table
from tomfisher.results.tables import span as span_of

ABSENT = PAGE.absent
STATES = {TASK_CONTROL: "task minus control", CONTROL_ONLY: "control only", RANDOM: "random"}


def condition_table(data: RunData) -> Table | None:
    """Every condition at the κ that the report is about; None where no task-minus-control mask was measured."""
    kappa, results = data.focus, data.results
    if kappa is None:
        return None
    tests = corrected(results.select(kappa=kappa, mask=TASK_CONTROL, rule=PAPER))
    before = COUNT._replace(beside=BASELINE)
    return table(
        ["condition"],
        [before, *mask_columns(tests)],
        [masks_at(results, kappa, [row.condition], row.condition) for row in tests],
        PAGE,
        f"Every condition at κ = {kappa:g}: accuracy with its 95 % interval; p is that of the {TEST}, after Holm "
        "over the conditions of this table (they overlap: unions and cells are listed beside their parts).",
        title=f"Every condition at κ = {kappa:g}",
    )


def values_table(values: Mapping[str, Any]) -> Table:
    """One row per Fisher diagonal: its size, its zeros and its extremes, and what each κ selects."""
    kappas = [threshold["kappa"] for threshold in values["task"]["thresholds"]]
    rows = []
    for which in LOOKS:
        fisher = values[which]
        tensors = list(fisher["tensors"].values())
        extremes = [
            pick((tensor[name] for tensor in tensors if tensor[name] is not None), default=None)
            for name, pick in (("min", min), ("max", max))
        ]
        rows.append(
            [
                which,
                number(fisher["num_samples"], "{:,}"),
                f"{entries(fisher):,}",
                f"{entries(fisher, 'zeros'):,}",
                *(number(value, "{:.3g}") for value in extremes),
                *(number(threshold["median"], "{:.3g}") for threshold in fisher["thresholds"]),
            ]
        )
    return Table(
        "Fisher values of all tensors together, as sums over the samples. From κ = … on: the smallest value selected, "
        "median over the matrices.",
        [
            "Fisher of",
            "Samples",
            "Weights",
            "Zero",
            "Smallest",
            "Largest",
            *(f"κ = {kappa:g}" for kappa in kappas),
        ],
        rows,
    )


def group_table(profile: Mapping[str, Any], random: Mapping[str, Any] | None = None) -> Table:
    """Share of the mask in attention, MLP and so on, beside the share of the weights."""
    names = {"qk": "W_Q and W_K", "vo": "W_V and W_O", "mlp": "MLP", "mixer": "mixer", "other": "other"}
    rows = [
        [
            names.get(row["group"], row["group"]),
            f"{row['masked']:,}",
            percent(row["share"]),
            percent(row["weight_share"]),
            number(row["fold"], "{:.2f}"),
        ]
        for row in profile["groups"]
    ]
    return Table(
        "Where the masked weights are, beside where the weights are. A mask that takes the same fraction of every "
        "matrix differs here only by what the control has taken away.",
        ["Part of the model", "Masked", "Share of the mask", "Share of the weights", "Ratio"],
        rows,
    )


def enrichment_table(profile: Mapping[str, Any]) -> Table | None:
    """Do masked entries of W_Q and W_K gather in the rows of some frequencies? None where it was not tested."""
    enrichment = profile.get("enrichment")
    if not enrichment:
        return None
    rows = []
    for test in enrichment["model"]:
        same = ("part", "rows")
        layers = [t for t in enrichment["layers"] if all(t[name] == test[name] for name in same)]
        out = [t for t in layers if t.get("p_pairs_corrected", 1.0) < 0.05]
        more = sum(t["found"] > t["expected"] for t in out)
        rows.append(
            [
                f"W_{test['part'].upper()}, {test['rows']}",
                f"{test['found']:,}",
                number(test["expected"], "{:,.1f}"),
                number(test["fold"], "{:.2f}"),
                span([test.get("p_pairs_corrected")], p_value),
                f"{more} of {len(layers)}",
                f"{len(out) - more} of {len(layers)}",
            ]
        )
    return Table(
        f"Masked entries in the rows of some frequencies. Dominant: the {_plural(enrichment['dominant_pairs'])} of "
        f"largest mean norm of each head; slow, middle and fast are relative to {enrichment['context']} tokens. "
        "Expected: if every place of the matrix were equally likely. p (pairs): two-sided, with each head's pairs "
        "permuted among the frequencies, their entries staying together, after Holm over this table; it asks whether "
        "it is these frequencies. Layers: those with such a p of their own below 0.05 after Benjamini and Hochberg "
        "over all layers and kinds of rows.",
        [
            "Rows",
            "Masked there",
            "Expected",
            "Ratio",
            "p (pairs)",
            "Layers with more",
            "Layers with fewer",
        ],
        rows,
    )


def sparsity_table(profile: Mapping[str, Any]) -> Table | None:
    """Rows, columns and rank of the change, beside random masks; None where nothing was measured."""
    rows = [
        [
            row["kind"],
            number(row["masked"], "{:,.1f}"),
            beside(row["rows"], row["rows_expected"]),
            beside(row["columns"], row["columns_expected"]),
            beside(row.get("effective_rank"), row.get("effective_rank_random")),
            number(row.get("full_rank"), "{:,.0f}"),
        ]
        for row in profile["sparsity"]
    ]
    if not rows:
        return None
    return Table(
        "Is the mask sparse, and the change of low rank? Means over the matrices of a kind; in brackets those of a "
        "random mask of the same size. Effective rank: exp of the entropy of the normalised singular values of the "
        "change.",
        [
            "Matrix",
            "Masked",
            "Distinct rows",
            "Distinct columns",
            "Effective rank of the change",
            "Full rank",
        ],
        rows,
    )


def band_table(inside: Mapping[str, Any]) -> Table | None:
    """Relative change of each band of frequencies, averaged over layers and heads; None without a spectrum."""
    before = inside["baseline"]["rope"]
    bands = before["bands"]
    rows = []
    for state, label in STATES.items():
        changed = means(inside["baseline"], inside["states"].get(state, {})).get("rope")
        if changed:
            ranges = _random_ranges(inside, state, "rope")
            for part, name in (("q", "queries"), ("k", "keys")):
                values = ranges.get(part) or {row: [value] for row, value in changed[part].items()}
                cells = (span(values[row] or [], "{:+.1%}") for row in ("dominant", *bands))
                rows.append([f"{label}: {name}", *cells])
    if not rows:
        return None
    return Table(
        "Change of the norm of each head's dominant pair (the one of largest mean norm in the untouched model), and of "
        "the root-mean-square norm of each band of pairs: mean over all heads of all layers. In brackets: how many of "
        f"a head's pairs a band has.{_said_of_randoms(inside)}",
        [
            "Mask and part",
            "Dominant pair",
            *(f"{band.capitalize()} pairs{_count(before, band)}" for band in bands),
        ],
        rows,
    )


def _count(spectrum: Mapping[str, Any], band: str) -> str:
    """Behind a band's name: the number of its rotary pairs, from the least to the most over the layers."""
    counts = [layer["band"].count(band) for layer in spectrum["layers"] if "band" in layer]
    return f" ({span(counts, '{:.0f}')})" if counts else ""


def sink_table(inside: Mapping[str, Any]) -> Table:
    """First-token attention and angle in every state, averaged over layers and heads."""
    measured = inside["baseline"]["sinks"]
    rate = f"Sink rate (ε = {measured.get('epsilon', EPSILON):g}, T = {measured.get('window', WINDOW)})"
    labels = {"baseline": "untouched", **STATES}
    forms = {"first_mass": "{:.3f}", "sink_rate": "{:.1%}", "angle": "{:.1f}°"}
    forms |= {"entropy": "{:.3f}", "key_ratio": "{:.3f}"}
    rows = []
    for state, own in {"baseline": inside["baseline"], **inside["states"]}.items():
        if sinks := means(inside["baseline"], own).get("sinks"):
            ranges = _random_ranges(inside, state, "sinks")
            values = ranges or {measure: [sinks[measure]] for measure in forms}
            cells = (span(values[measure] or [], form) for measure, form in forms.items())
            rows.append([labels.get(state, state), *cells])
    return Table(
        "Attention to the first token, mean over all heads of all layers and over all positions but the first. Sink "
        "rate: share of heads and prompts in which the first T tokens give the first one more than ε of their "
        f"attention on average (arXiv 2410.10781), of prompts that have T tokens.{_said_of_randoms(inside)}",
        [
            "State",
            "Mass",
            rate,
            "Angle of q to the first key",
            "Entropy, nats",
            "First key's norm, of the others'",
        ],
        rows,
    )


def _random_ranges(inside: Mapping[str, Any], state: str, part: str) -> Mapping[str, Any]:
    """Of the state "random": least and most of every mean over the random masks; nothing of the others."""
    ranges: Mapping[str, Any] = (inside.get("random_range") or {}) if state == RANDOM else {}
    return ranges.get(part) or {}


def _said_of_randoms(inside: Mapping[str, Any]) -> str:
    """Behind a caption: over how many random masks least and most are taken."""
    count = len(inside.get("randoms") or ())
    return f" Random: least to most of {count} masks." if count > 1 else ""


def mean_over_heads(sinks: Mapping[str, Any], measure: str) -> float | None:
    """One measure of `AttentionSinks.to_dict()`, averaged over all heads of all layers; None where none is known."""
    values = [value for layer in sinks["layers"] for value in layer[measure] if value is not None]
    return sum(values) / len(values) if values else None


def span(values: Sequence[float | None], form: str | Callable[[float], str]) -> str:
    """Least to most, or the one value that all have."""
    return span_of([value for value in values if value is not None], form, PAGE)


def percent(value: float | None) -> str:
    """A share."""
    return ABSENT if value is None else f"{value:.1%}"


def number(value: float | None, form: str) -> str:
    """A number that may be unknown."""
    return ABSENT if value is None else form.format(value)


def beside(value: float | None, other: float | None) -> str:
    """A mean and, after it, that of a random mask."""
    return ABSENT if value is None else f"{value:,.1f} (random {number(other, '{:,.1f}')})"


def _plural(pairs: int) -> str:
    return "rotary pair" if pairs == 1 else f"{pairs} rotary pairs"
