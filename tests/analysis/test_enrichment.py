"""Enrichment of frequency rows: planted masks are named, random ones give uniform p-values."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from tomfisher import SparseMask
from tomfisher.analysis import permutation, rope_spectrum
from tomfisher.analysis.counts import PartCount, count_parts
from tomfisher.analysis.enrichment import Enrichment, dominant, enrichment
from tomfisher.analysis.hypergeometric import Draw, tails
from tomfisher.analysis.rope import LayerSpectrum, RopeSpectrum
from tomfisher.models.families import Architecture, Attention, Layer, Projection, Rotary, describe


def law(draw):
    """{found: probability}, exact."""
    n, k, m = draw.population, draw.special, draw.drawn
    return {x: Fraction(comb(k, x) * comb(n - k, m - x), comb(n, m)) for x in range(min(k, m) + 1)}


def summed(draws):
    total = {0: Fraction(1)}
    for draw in draws:
        total = {
            s: sum((p * law(draw).get(s - x, 0) for x, p in total.items()), Fraction(0))
            for s in range(max(total) + max(law(draw)) + 1)
        }
    return total


@pytest.mark.parametrize(
    "draws",
    [
        [Draw(40, 7, 12, 5)],
        [Draw(40, 7, 12, 0), Draw(30, 30, 4, 4), Draw(25, 3, 0, 0), Draw(16, 9, 14, 8)],
        [Draw(60, 6, 20, 6)] * 3,
    ],
)
def test_tails_are_those_of_the_enumerated_law(draws):
    found, total = sum(d.found for d in draws), summed(draws)
    exact = [
        float(sum(p for x, p in total.items() if keep(x)))
        for keep in (lambda x: x < found, lambda x: x == found, lambda x: x > found)
    ]
    assert list(tails(draws)) == pytest.approx(exact, rel=1e-9, abs=1e-15)
    mean = float(sum(x * p for x, p in total.items()))
    assert sum(d.expected for d in draws) == pytest.approx(mean)


def test_far_tails_keep_their_relative_precision():
    draws = [Draw(4096, 256, 20, 20), Draw(4096, 256, 20, 20)]
    (one,) = {float(law(draw)[20]) for draw in draws}
    assert tails(draws).at == pytest.approx(one**2, rel=1e-9) and one**2 < 1e-45


@pytest.mark.parametrize(
    "found",
    [3750 - 1900, 3750 - 500, 3750 - 220, 3750 - 60, 3750, 3750 + 60, 3750 + 220, 3750 + 500, 3750 + 1900],
)
def test_sums_of_many_values_are_exact_in_the_middle_and_far_out(found):
    """30,000 possible sums, from p = 1 to p below 1e-200: relative error of p below 1e-10, of log p below 1e-12."""
    below, at, above = (float(part.sum()) for part in split(direct(), found))
    exact = min(1.0, 2 * min(below + at, at + above))
    got = tails([Draw(20_000, 2_500, 1_000, found), *[Draw(20_000, 2_500, 1_000, 0)] * 29])
    assert got.two_sided == pytest.approx(exact, rel=1e-10)
    if exact < 0.5:
        assert math.log(got.two_sided) == pytest.approx(math.log(exact), rel=1e-12)
    assert list(got) == pytest.approx([below, at, above], abs=1e-12)


def split(sums, found):
    return sums[:found], sums[found : found + 1], sums[found + 1 :]


@functools.cache
def direct():
    """The law of the sum of thirty such draws, by direct convolution (only sums of positive numbers)."""
    one = [float(p) for p in law(Draw(20_000, 2_500, 1_000, 0)).values()]
    sums = np.ones(1)
    for _ in range(30):
        sums = np.convolve(sums, one)
    return sums


def test_unequal_draws_and_the_ends_of_their_range():
    draws = [
        Draw(300, 20, 8, 0),
        Draw(50, 50, 3, 3),
        Draw(7, 0, 2, 0),
        Draw(40, 39, 20, 19),
        Draw(90, 5, 60, 4),
    ]
    sums = summed(draws)
    exact = np.array([float(sums[x]) for x in range(max(sums) + 1)])
    possible = exact.nonzero()[0]
    for total in (possible[0], possible[0] + 1, 26, 30, possible[-1] - 1, possible[-1]):
        shifted = [draws[0]._replace(found=int(total) - sum(d.found for d in draws[1:])), *draws[1:]]
        below, at, above = (float(part.sum()) for part in split(exact, total))
        got = tails(shifted)
        assert got.at == pytest.approx(at, rel=1e-10) and list(got) == pytest.approx(
            [below, at, above], abs=1e-13
        )
        assert got.two_sided == pytest.approx(min(1, 2 * min(below + at, at + above)), rel=1e-10)


def rotary(pairs):
    return Rotary("half", 10000.0 ** (-torch.arange(pairs) / pairs), 1.0, 10000.0, "default")


def toy(seed=0, layers=3, heads=4, kv_heads=2, width=16, inputs=24):
    """An architecture without a model, its spectrum, and the shapes of its q and k weights."""
    generator = torch.Generator().manual_seed(seed)
    turns, found, spectra, shapes = rotary(width // 2), [], [], {}
    for i in range(layers):
        places = {}
        for part, n in (("q", heads), ("k", kv_heads)):
            name = f"layers.{i}.attn.{part}.weight"
            places[part] = Projection(name, 0, torch.arange(n * width).view(n, width))
            shapes[name] = (n * width, inputs)
        other = Projection("none", 0, torch.empty(0, 0, dtype=torch.int64))
        attention = Attention(
            f"layers.{i}.attn", None, heads, kv_heads, width, **places, v=other, o=other, rotary=turns
        )
        found.append(Layer(i, f"layers.{i}", attention, ()))
        q, k = (torch.rand(n, width // 2, generator=generator) for n in (heads, kv_heads))
        spectra.append(LayerSpectrum(i, turns, q, k, q**2, k**2))
    spectrum = RopeSpectrum(tuple(spectra), 4, 400, 100)
    return Architecture("toy", "rope", tuple(found)), spectrum, shapes


def some_of_each(shapes, n):
    return SparseMask({name: torch.arange(n) for name in shapes}, shapes)


def test_a_mask_planted_in_the_dominant_rows_of_one_head_is_named_with_its_exact_p(lab):
    model = lab.build("qwen3")
    spectrum = rope_spectrum(model, lab.prompts())
    architecture = describe(model)
    place = architecture.attention[1].k
    turns = architecture.attention[1].rotary
    best = int(spectrum.layers[1].k_norm[1].argmax())
    rows = place.index[1][turns.pairs[best]]
    width = model.get_parameter(place.parameter).shape[1]
    flat = (rows[:, None] * width + torch.arange(6)).flatten().sort().values
    shapes = {n: tuple(w.shape) for n, w in model.named_parameters() if "self_attn" in n and w.ndim == 2}
    mask = SparseMask({place.parameter: flat}, shapes)
    found = enrichment(count_parts(mask, architecture), spectrum)
    first = found.strongest(1)[0]
    assert (first.layer, first.part, first.head, first.pairs) == (1, "k", 1, (best,))
    population, special = 8 * width, 2 * width
    assert (first.population, first.special, first.masked, first.found) == (population, special, 12, 12)
    exact = Fraction(comb(special, 12), comb(population, 12))
    assert first.p == pytest.approx(float(2 * exact), rel=1e-9)
    assert first.fold == pytest.approx(population / special)
    tests = len(found.at("head"))
    same = sum(t.p <= first.p for t in found.at("head"))  # a band may hold the same entries and no others
    assert tests == 4 * 2 * (4 + 2) and first.p_corrected == pytest.approx(tests * first.p / same)
    assert all(t.p == 1 for t in found.at("head", "dominant") if t != first)
    band = next(t for t in found.at("head") if t.rows != "dominant" and best in t.pairs and t.found)
    assert (band.layer, band.part, band.head, band.found) == (1, "k", 1, 12)


def test_levels_add_up_and_bands_partition_the_pairs():
    architecture, spectrum, shapes = toy()
    found = enrichment(count_parts(some_of_each(shapes, 60).random_like(3), architecture), spectrum, 2)
    for part, rows in itertools.product(("q", "k"), ("dominant", "slow", "middle", "fast")):
        heads, layers, (whole,) = (
            [t for t in found.at(level, rows) if t.part == part] for level in ("head", "layer", "model")
        )
        for column in ("population", "special", "masked", "found"):
            sums = {sum(getattr(t, column) for t in tests) for tests in (heads, layers, [whole])}
            assert len(sums) == 1
    for level in ("head", "layer", "model"):
        bands = [t for t in found.at(level) if t.rows != "dominant"]
        assert sum(t.found for t in bands) == sum(t.masked for t in found.at(level, "dominant"))
    assert all(len(t.pairs) == 2 for t in found.at("head", "dominant"))


def test_dominant_pairs_with_ties():
    norms = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 6.0]])
    assert dominant(norms, 1).tolist() == [[1], [3]]
    assert dominant(norms, 2).tolist() == [[1, 2], [0, 3]]
    with pytest.raises(ValueError, match="from 1 to 4, got 0"):
        dominant(norms, 0)


def randomised(test, draws, u):
    """A p-value that is exactly uniform under the law: the tail above, and a random part of what was found."""
    at = tails(draws)
    return at.above + u * at.at


@pytest.fixture(scope="module")
def null_tests():
    """Tests of the same rows on 120 random masks of 3,000 entries per weight."""
    architecture, spectrum, shapes = toy(inputs=600)
    whole = some_of_each(shapes, 3000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ROUNDS", 1)  # this is about p, not p_pairs
        return [
            enrichment(count_parts(whole.random_like(seed), architecture), spectrum) for seed in range(120)
        ]


def distances(p_values):
    """How far the distribution of p-values lies above the uniform one (too small ones), and below it."""
    return tuple(kstest(p_values, "uniform", alternative=side).statistic for side in ("greater", "less"))


def allowed(n):
    """Kolmogorov's critical distance of n values, one-sided, at 0.1 %."""
    return (-math.log(0.001) / (2 * n)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("level", ["head", "layer", "model"])
def test_random_masks_give_uniform_p_values(null_tests, level):
    """Of the reported p: never too small; too large by no more than the probability of one count, both tails."""
    generator = torch.Generator().manual_seed(1)
    values, reported, step = [], [], 0.0
    for found in null_tests:
        tests = found.at(level, "dominant")
        for test in tests[:: max(1, len(tests) // 4)]:  # tests of one mask are independent
            draws = draws_of(found, test)
            values.append(randomised(test, draws, float(torch.rand((), generator=generator))))
            reported.append(test.p if level == "head" else tails(draws).two_sided)
            step = max(step, 2 * tails(draws).at)
    assert kstest(values, "uniform").pvalue > 0.001
    too_small, too_large = distances(reported)
    assert too_small <= allowed(len(reported)) and too_large <= allowed(len(reported)) + step
    assert step < 0.2


def draws_of(found: Enrichment, test):
    members = (
        [test] if test.level != "model" else [t for t in found.at("layer", test.rows) if t.part == test.part]
    )
    return [Draw(t.population, t.special, t.masked, t.found) for t in members]


def test_the_same_check_fails_for_masks_that_lean_to_the_dominant_rows(monkeypatch):
    monkeypatch.setattr(permutation, "ROUNDS", 1)
    architecture, spectrum, shapes = toy()
    parts = count_parts(some_of_each(shapes, 0), architecture)
    leaning = {}
    for part in parts:
        layer = spectrum.layers[part.layer]
        place = getattr(architecture.attention[part.layer], part.kind)
        best = dominant(layer.norm(part.kind), 1)[0, 0]
        leaning[part.tensor] = place.index[0][part.rotary.pairs[best]] * 24
    lean = SparseMask({n: i.sort().values for n, i in leaning.items()}, shapes)
    generator = torch.Generator().manual_seed(1)
    values = []
    for seed in range(30):
        mask = some_of_each(shapes, 40).random_like(seed) | lean
        found = enrichment(count_parts(mask, architecture), spectrum)
        for test in found.at("layer", "dominant"):
            values.append(randomised(test, draws_of(found, test), float(torch.rand((), generator=generator))))
    assert kstest(values, "uniform").pvalue < 1e-4


def counted(counts, kind, layer, width=16, inputs=400):
    """A weight of which each pair of each head has so many masked entries, half of them in either row."""
    heads, pairs = counts.shape
    units = torch.cat([counts - counts // 2, counts // 2], dim=1)
    name = f"layers.{layer}.attn.{kind}.weight"
    total = heads * width * inputs
    return PartCount(layer, kind, "qk", name, int(counts.sum()), total, units, inputs, rotary(pairs))


def uneven(generator, heads, pairs=8):
    """Masked entries per pair: from none to 300, few pairs holding most."""
    return (300 * torch.rand(heads, pairs, generator=generator) ** 4).long()


@pytest.mark.slow
def test_pairs_dealt_at_random_give_uniform_p_pairs(monkeypatch):
    """300 masks whose pairs hold very different numbers of entries and lie anywhere.

    p_pairs comes in steps of 2 / (1 + rounds), and counts that tie add up on both sides: too large by two steps at most
    (sums of hundreds of entries hardly ever tie).
    """
    monkeypatch.setattr(permutation, "ROUNDS", 399)
    _, spectrum, _ = toy()
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        parts = [
            counted(uneven(generator, heads), kind, layer)
            for layer in range(3)
            for kind, heads in (("q", 4), ("k", 2))
        ]
        found.append(enrichment(parts, spectrum))
    limit, step = allowed(len(found)), 2 / 400
    for rows, part in itertools.product(("dominant", "middle"), "qk"):
        tests = [next(t for t in f.at("model", rows) if t.part == part) for f in found]
        too_small, too_large = distances([test.p_pairs for test in tests])
        assert too_small <= limit and too_large <= limit + 2 * step, (rows, part)
    layers = [f.at("layer", "dominant")[0].p_pairs for f in found]
    assert distances(layers)[0] <= limit
    # Holm bounds the chance of one false finding among the eight, which are far from independent
    false = sum(min(t.p_pairs_corrected for t in f.at("model")) <= 0.05 for f in found)
    assert false <= 300 * 0.05 + 3 * (300 * 0.05 * 0.95) ** 0.5


def test_pairs_of_one_frequency_are_found_by_p_pairs():
    architecture, spectrum, shapes = toy(layers=4)
    chosen = {}
    for i, attention in architecture.attention.items():
        for kind in ("q", "k"):
            place, best = getattr(attention, kind), spectrum.layers[i].norm(kind).argmax(1)
            rows = torch.cat([place.index[h][attention.rotary.pairs[p]] for h, p in enumerate(best.tolist())])
            chosen[place.parameter] = (rows[:, None] * 24 + torch.arange(12)).flatten().sort().values
    found = enrichment(count_parts(SparseMask(chosen, shapes), architecture), spectrum)
    for test in found.at("model", "dominant"):
        assert test.p_pairs == pytest.approx(2 / 10_000) and test.found == test.masked
        assert test.p_pairs_corrected == pytest.approx(8 * 2 / 10_000)  # two smallest of eight, tied
    # two key heads of eight pairs each: in one layer both lie there by chance once in 64
    assert [row["layers_below_5%"] for row in found.summary() if row["rows"] == "dominant"] == [4, 0]


def test_dealing_keeps_the_entries_of_a_pair_together_and_in_their_head():
    counts = torch.tensor([[7, 0, 0, 100], [0, 0, 0, 0], [3, 3, 3, 3]])
    chosen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    null = permutation.permuted_counts(counts, {"a": chosen, "all": torch.ones_like(chosen)}, seed=3)
    assert set(null["a"].tolist()) == {6, 13, 106} and set(null["all"].tolist()) == {119}
    share = (null["a"] == 106).double().mean()
    assert len(null["a"]) == 9_999 and abs(share - 0.25) < 4 * (0.25 * 0.75 / 9_999) ** 0.5
    again = permutation.permuted_counts(counts, {"a": chosen}, seed=3)["a"]
    assert torch.equal(null["a"], again)
    other = permutation.permuted_counts(counts, {"a": chosen}, seed=4)["a"]
    assert not torch.equal(other, again)


def test_p_pairs_is_the_share_of_shuffles_for_one_head():
    """One pair of P holds everything: a shuffle puts it into the chosen one with probability 1 / P."""
    units = torch.zeros(1, 16, dtype=torch.int64)
    units[0, [3, 11]] = 5
    part = PartCount(0, "q", "qk", "w", 10, 16 * 24, units, 24, rotary(8))
    q = torch.zeros(1, 8)
    q[0, 3] = 1
    spectrum = RopeSpectrum((LayerSpectrum(0, rotary(8), q, q, q, q),), 1, 10, 10)
    (test,) = enrichment([part], spectrum).at("model", "dominant")
    assert test.found == 10 and test.p_pairs == pytest.approx(2 / 8, abs=0.08)


def step_up(p_values):
    """Benjamini and Hochberg, in order of rising p."""
    m, running, adjusted = len(p_values), 1.0, []
    for rank in range(m, 0, -1):
        running = min(running, sorted(p_values)[rank - 1] * m / rank)
        adjusted.append(running)
    return adjusted[::-1]


def step_down(p_values):
    """Holm, in order of rising p."""
    m, running, adjusted = len(p_values), 0.0, []
    for rank, p in enumerate(sorted(p_values)):
        running = max(running, min(1.0, (m - rank) * p))
        adjusted.append(running)
    return adjusted


@pytest.mark.parametrize(
    ("level", "name", "correct", "tests"),
    [("model", "p_pairs", step_down, 8), ("layer", "p_pairs", step_up, 24), ("head", "p", step_up, 72)],
)
def test_p_is_corrected_over_all_tests_of_a_level(level, name, correct, tests):
    architecture, spectrum, shapes = toy()
    found = enrichment(count_parts(some_of_each(shapes, 40), architecture), spectrum).at(level)
    assert len(found) == tests
    p, corrected = ([getattr(t, which) for t in found] for which in (name, f"{name}_corrected"))
    assert sorted(corrected) == pytest.approx(correct(p))
    by_p = sorted(found, key=lambda t: getattr(t, name))
    assert [getattr(t, f"{name}_corrected") for t in by_p] == sorted(corrected)
    other = {"p": "p_pairs", "p_pairs": "p"}[name]
    assert all(getattr(t, other) is None and other not in t.to_dict() for t in found)


def test_a_mask_without_queries_and_keys_has_no_frequencies():
    _, spectrum, _ = toy()
    with pytest.raises(NotImplementedError, match="names no weight of queries or keys that are rotated"):
        enrichment([PartCount(0, "mlp.up_proj", "mlp", "w", 1, 10)], spectrum)
