"""Restricted masks cut the whole mask into parts that share nothing and miss nothing."""

from __future__ import annotations

import pytest
import torch

from tomfisher import SparseMask
from tomfisher.fisher.selection import select_parameters
from tomfisher.interventions import PARTS, measure_internals, restrict
from tomfisher.models.families import UnsupportedModel, describe

ROTATING = ("llama", "neox-half", "cohere", "glm", "phi3", "gemma3", "qwen2", "mixtral", "qwen2-moe")
FAMILIES = (*ROTATING, "gpt2", "opt", "mpt", "jamba", "mamba", "mamba2")


def a_mask(model, density=0.3):
    """Random entries of every decoder matrix."""
    weights = {
        name: value for name, value in model.named_parameters() if value.ndim > 1 and "embed" not in name
    }
    generator = torch.Generator().manual_seed(3)
    chosen = {
        name: (torch.rand(value.numel(), generator=generator) < density).nonzero().flatten()
        for name, value in weights.items()
        if "wte" not in name and "wpe" not in name and "lm_head" not in name
    }
    return SparseMask(chosen, {name: tuple(weights[name].shape) for name in chosen}, kappa=density)


def is_partition(whole, *parts):
    assert sum(part.nnz for part in parts) == whole.nnz
    union = parts[0]
    for part in parts[1:]:
        assert (union & part).nnz == 0
        union = union | part
    assert union == whole


def internals_of(lab, model):
    return measure_internals(model, [lab.prompt(n, seed=n) for n in (9, 20)])


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_are_disjoint_and_complete(lab, name):
    model = lab.build(name)
    mask, found = a_mask(model), describe(model)
    regions = [] if not found.attention else ["qk", "vo"]
    regions += ["mlp"] if any(layer.mlp for layer in found.layers) else []
    regions += ["mixer"] if len(found.attention) < len(found.layers) else []
    is_partition(mask, *(restrict(mask, found, region) for region in regions))
    assert restrict(mask, found, "full") == mask
    for region in regions:
        is_partition(mask, restrict(mask, found, region), restrict(mask, found, f"not-{region}"))
        assert restrict(mask, found, region).nnz > 0


@pytest.mark.parametrize("name", ROTATING)
def test_rows_of_dominant_frequencies_and_the_others_make_up_queries_and_keys(lab, name):
    model = lab.build(name)
    mask, found, spectrum = a_mask(model), describe(model), internals_of(lab, model).spectrum
    dominant, other = (restrict(mask, found, f"{kind}-rows", spectrum) for kind in ("dominant", "other"))
    is_partition(restrict(mask, found, "qk"), dominant, other)
    is_partition(mask, dominant, restrict(mask, found, "not-dominant-rows", spectrum))
    assert 0 < dominant.nnz < other.nnz


@pytest.mark.parametrize("name", ROTATING)
def test_dominant_rows_are_exactly_those_of_the_pairs_that_the_spectrum_names(lab, name):
    model = lab.build(name)
    mask, found, spectrum = a_mask(model, 1.1), describe(model), internals_of(lab, model).spectrum
    rows = restrict(mask, found, "dominant-rows", spectrum)
    expected = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in mask.shapes.items()}
    for layer in spectrum.layers:
        attention = found.attention[layer.layer]
        for part, projection in (("q", attention.q), ("k", attention.k)):
            for head, pair in enumerate(layer.dominant(part).tolist()):
                half = len(layer.rotary.frequencies)
                interleaved = layer.rotary.layout == "interleaved"
                both = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
                for dim in both:
                    expected[projection.parameter][projection.index[head, dim]] = True
    assert all(torch.equal(rows.dense(name), expected[name]) for name in mask)


def test_planted_rows_are_found(lab):
    model = lab.build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.view(4, 8, 32)[2, [1, 5]] *= 40
    mask, found = a_mask(model, 1.1), describe(model)
    rows = restrict(mask, found, "dominant-rows", internals_of(lab, model).spectrum)
    for name in mask:
        if "q_proj" in name:
            assert rows.dense(name).view(4, 8, 32)[2].all(-1).nonzero().flatten().tolist() == [1, 5]


def test_parts_are_the_weights_of_those_names(lab):
    model = lab.build("llama")
    mask, found = a_mask(model), describe(model)
    names = {"qk": ("q_proj", "k_proj"), "vo": ("v_proj", "o_proj"), "mlp": ("mlp",)}
    for part, patterns in names.items():
        assert restrict(mask, found, part) == mask.restrict(
            lambda name, patterns=patterns: any(word in name for word in patterns)
        ) | SparseMask({}, mask.shapes)
    jamba = lab.build("jamba")
    mixer = restrict(a_mask(jamba), describe(jamba), "mixer")
    assert {name for name, count in mixer.counts().items() if count} == {
        name for name in a_mask(jamba) if ".layers.0.mamba." in name
    }


@pytest.mark.parametrize(("name", "inner"), [("neox-half", 3), ("mpt", 3), ("gpt2", 3)])
def test_fused_projections_are_cut_between_keys_and_values(lab, name, inner):
    model = lab.build(name)
    mask, found = a_mask(model, 1.1), describe(model)
    fused = found.attention[0].q.parameter
    values = restrict(mask, found, "vo").dense(fused)
    axis = found.attention[0].v.axis
    lines = values.all(1 - axis).nonzero().flatten()
    assert values.sum() == values.shape[1 - axis] * len(lines)
    if name == "neox-half":  # q, k, v of each head of 8 in turn
        assert lines.tolist() == [24 * head + 16 + i for head in range(4) for i in range(8)]
    else:
        assert lines.tolist() == list(range(64, 96))


def test_random_masks_have_the_counts_of_the_part(lab):
    model = lab.build("llama")
    mask, found = a_mask(model), describe(model)
    part = restrict(mask, found, "qk")
    assert part.random_like(0).counts() == part.counts()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("mamba", "qk", "mamba has no attention layer, so there is no 'qk'"),
        ("mamba", "mlp", "No weight of mamba belongs to its 'mlp'"),
        ("llama", "mixer", "Every layer of llama has attention"),
        ("llama", "not-mixer", "Every layer of llama has attention"),
        ("mpt", "dominant-rows", "mpt has no rotary embedding"),
    ],
)
def test_what_a_model_does_not_have_is_refused(lab, name, part, message):
    model = lab.build(name)
    with pytest.raises(UnsupportedModel, match=message):
        restrict(a_mask(model), describe(model), part)


def test_bad_arguments(lab):
    model = lab.build("llama")
    mask = a_mask(model)
    with pytest.raises(ValueError, match=r"Unknown part 'ov'. Parts: full, qk, vo"):
        restrict(mask, describe(model), "ov")
    with pytest.raises(ValueError, match="give the model's RopeSpectrum"):
        restrict(mask, describe(model), "other-rows")
    with pytest.raises(UnsupportedModel, match="Only 'full' is"):
        restrict(mask, None, "qk")
    assert restrict(mask, None, "full") == mask
    assert len(PARTS) == len(set(PARTS)) == 13


def test_a_mask_over_everything_is_what_the_fisher_selects(lab):
    """The parts cover what `decoder-linear` chooses, so nothing of a study's mask is lost."""
    model = lab.build("llama")
    selected = {name for name in select_parameters(model, "decoder-linear")}
    found = describe(model)
    mask = SparseMask({}, {name: tuple(model.get_parameter(name).shape) for name in selected})
    whole = SparseMask(
        {name: torch.arange(model.get_parameter(name).numel()) for name in selected}, mask.shapes
    )
    is_partition(whole, *(restrict(whole, found, part) for part in ("qk", "vo", "mlp")))
