"""Enrichment of frequency rows: planted masks are named, random ones give uniform p-values."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import pytest
import torch
from scipy.stats import kstest

from tomfisher import SparseMask
from tomfisher.analysis import hypergeometric, permutation, rope_spectrum
from tomfisher.analysis.counts import PartCount, count_parts
from tomfisher.analysis.enrichment import Enrichment, dominant, enrichment
from tomfisher.analysis.hypergeometric import Draw, tails
from tomfisher.analysis.rope import LayerSpectrum, RopeSpectrum
from tomfisher.models.families import Architecture, Attention, Family, Layer, Projection, Rotary, describe


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
    variance = float(sum((x - mean) ** 2 * p for x, p in total.items()))
    assert sum(d.variance for d in draws) == pytest.approx(variance)


def test_far_tails_keep_their_relative_precision():
    draws = [Draw(4096, 256, 20, 20), Draw(4096, 256, 20, 20)]
    (one,) = {float(law(draw)[20]) for draw in draws}
    assert tails(draws).at == pytest.approx(one**2, rel=1e-6) and one**2 < 1e-45


def test_the_normal_law_of_many_possible_sums_is_near_the_exact_one(monkeypatch):
    draws = [Draw(4096, 512, 300, 30 + i) for i in range(14)]
    exact = tails(draws)
    monkeypatch.setattr(hypergeometric, "EXACT_SUPPORT", 0)
    assert list(tails(draws)) == pytest.approx(list(exact), abs=2e-3)
    assert 0.05 < exact.below < 0.95


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
    return Architecture("toy", Family(), tuple(found)), spectrum, shapes


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
    tests = len(found.at("head", "dominant"))
    assert tests == 2 * (4 + 2) and first.p_corrected == pytest.approx(tests * first.p)
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
    """Tests of the same rows on 80 random masks."""
    architecture, spectrum, shapes = toy()
    whole = some_of_each(shapes, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "ROUNDS", 1)  # this is about p, not p_pairs
        return [
            enrichment(count_parts(whole.random_like(seed), architecture), spectrum) for seed in range(80)
        ]


@pytest.mark.parametrize("level", ["head", "layer", "model"])
def test_random_masks_give_uniform_p_values(null_tests, level):
    generator = torch.Generator().manual_seed(1)
    values, two_sided = [], []
    for found in null_tests:
        tests = found.at(level, "dominant")
        for test in tests[:: max(1, len(tests) // 4)]:  # tests of one mask are independent
            draws = draws_of(found, test)
            values.append(randomised(test, draws, float(torch.rand((), generator=generator))))
            two_sided.append(test.p)
    assert kstest(values, "uniform").pvalue > 0.01
    share = sum(p <= 0.05 for p in two_sided) / len(two_sided)
    assert share <= 0.05 + 3 * (0.05 * 0.95 / len(two_sided)) ** 0.5


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


def clustered(shapes, architecture, spectrum, choose):
    """A mask that fills the rows of one pair in every head: `choose(norms)` says which, `[heads]`."""
    chosen = {}
    for i, attention in architecture.attention.items():
        for kind in ("q", "k"):
            place = getattr(attention, kind)
            pairs = choose(spectrum.layers[i].norm(kind))
            rows = torch.cat(
                [place.index[h][attention.rotary.pairs[p]] for h, p in enumerate(pairs.tolist())]
            )
            chosen[place.parameter] = (rows[:, None] * 24 + torch.arange(12)).flatten().sort().values
    return SparseMask(chosen, shapes)


def test_clusters_of_rows_deceive_p_but_not_p_pairs():
    architecture, spectrum, shapes = toy(layers=4)
    generator = torch.Generator().manual_seed(2)
    small, values = 0, []
    for _ in range(40):
        mask = clustered(
            shapes,
            architecture,
            spectrum,
            lambda norms: torch.randint(norms.shape[1], norms.shape[:1], generator=generator),
        )
        (test,) = (
            t
            for t in enrichment(count_parts(mask, architecture), spectrum).at("model", "dominant")
            if t.part == "q"
        )
        small += test.p < 0.01
        values.append(test.p_pairs)
    assert small > 20
    assert sum(p <= 0.05 for p in values) <= 6 and max(values) > 0.5
    mask = clustered(shapes, architecture, spectrum, lambda norms: norms.argmax(1))
    for test in enrichment(count_parts(mask, architecture), spectrum).at("model", "dominant"):
        assert test.p_pairs == 0.002 and test.found == test.masked


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


def test_correction_is_benjamini_hochberg_within_level_and_rows():
    architecture, spectrum, shapes = toy()
    found = enrichment(count_parts(some_of_each(shapes, 40), architecture), spectrum)
    tests = sorted(found.at("head", "slow"), key=lambda t: t.p)
    m, running = len(tests), 1.0
    for rank in range(m, 0, -1):
        running = min(running, tests[rank - 1].p * m / rank)
        assert tests[rank - 1].p_corrected == pytest.approx(running)


def test_a_mask_without_queries_and_keys_has_no_frequencies():
    _, spectrum, _ = toy()
    with pytest.raises(NotImplementedError, match="names no weight of queries or keys that are rotated"):
        enrichment([PartCount(0, "mlp.up_proj", "mlp", "w", 1, 10)], spectrum)
