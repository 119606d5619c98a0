"""The RoPE spectrum against pair norms computed one prompt at a time, and planted effects."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tomfisher.analysis import bands, compare, rope_spectrum
from tomfisher.models.families import UnsupportedModel, describe

ROTATING = ("llama", "llama-yarn", "neox-half", "glm", "cohere", "phi3", "qwen3", "gemma3", "smollm3")


def direct(lab, model, prompts):
    """Mean norm and energy `[heads, P]` of every pair before the rotation, in float64."""
    attention = describe(model).attention
    sums = {}
    for prompt in prompts:
        for layer, parts in lab.projected(model, prompt).items():
            if (rotary := attention[layer].rotary) is None:
                continue
            for part, x in zip("qk", parts, strict=True):
                energy = x[..., rotary.pairs].square().sum(-1)
                both = torch.stack([energy.sqrt().sum(1), energy.sum(1)])
                sums[layer, part] = sums.get((layer, part), 0) + both
    tokens = sum(map(len, prompts))
    return {key: value / tokens for key, value in sums.items()}


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("tokens_per_batch", [1, 140, 4096])
@pytest.mark.parametrize("name", ROTATING)
def test_it_is_the_mean_norm_of_every_pair(lab, name, tokens_per_batch):
    model, prompts = lab.build(name), lab.prompts()
    found = rope_spectrum(model, prompts, tokens_per_batch=tokens_per_batch)
    expected = direct(lab, model, prompts)
    assert {(x.layer, part) for x in found.layers for part in "qk"} == expected.keys()
    assert (found.prompts, found.tokens, found.context) == (len(prompts), sum(map(len, prompts)), 64)
    for layer in found.layers:
        factor = layer.rotary.attention_factor
        for part in "qk":
            norm, energy = expected[layer.layer, part]
            close(layer.norm(part, rotated=False), norm)
            close(layer.norm(part), norm * factor)
            close(layer.energy(part), energy * factor**2)
            assert layer.dominant(part).tolist() == norm.argmax(-1).tolist()


def test_yarn_norms_differ_before_and_after_the_rotation(lab):
    layer = rope_spectrum(lab.build("llama-yarn"), lab.prompts()).layers[0]
    close(layer.norm("q"), layer.norm("q", rotated=False).double() * (0.1 * math.log(4) + 1))


def test_sdpa_and_eager_give_the_same(lab):
    found = [
        rope_spectrum(lab.build("llama", attn_implementation=name), lab.prompts())
        for name in ("eager", "sdpa")
    ]
    for a, b in zip(*(x.layers for x in found), strict=True):
        close(a.q_norm, b.q_norm.double())


def test_bands_by_wavelength():
    wavelengths = torch.tensor([2 * math.pi, 19.0, 21.0, 63.0, 65.0, 1e4])
    assert bands(2 * math.pi / wavelengths, 64).tolist() == [2, 2, 1, 1, 0, 0]  # √(2π·64) = 20.05


def test_shares_are_energy_by_band(lab):
    found = rope_spectrum(lab.build("llama"), lab.prompts(), context=64)
    layer = found.layers[1]
    # frequencies 1, 0.1, 0.01, 0.001: wavelengths 6.3, 63, 628, 6283
    energy = layer.k_energy / layer.k_energy.sum(-1, keepdim=True)
    expected = torch.stack([energy[:, 2:].sum(-1), energy[:, 1], energy[:, 0]], dim=-1)
    close(layer.shares("k", 64), expected.double())
    row = found.summary()[3]
    assert (row["layer"], row["part"]) == (1, "k")
    assert row["middle"] == pytest.approx(float(expected[:, 1].mean()), rel=1e-5)


@pytest.mark.parametrize(("name", "part"), [("llama", "q"), ("neox-half", "k"), ("glm", "q"), ("phi3", "k")])
def test_a_pair_zeroed_in_the_weights_is_named_exactly(lab, name, part):
    model, prompts = lab.build(name), lab.prompts()
    attention = describe(model).attention[1]
    head, pair = 1, 1
    projection = getattr(attention, part)
    rows = projection.index[head][attention.rotary.pairs[pair]]
    before = rope_spectrum(model, prompts, progress=False)
    module = model.get_submodule(projection.parameter.rpartition(".")[0])
    with torch.no_grad():
        module.weight[rows] = 0
        if module.bias is not None:
            module.bias[rows] = 0
    change = compare(before, rope_spectrum(model, prompts, progress=False))
    (top,) = change.largest(1)
    assert (top.layer, top.part, top.head, top.pair) == (1, part, head, pair)
    assert top.change == -1 and top.after == 0 and top.before > 0
    assert top.wavelength == pytest.approx(float(2 * math.pi / attention.rotary.frequencies[pair]))
    whole = torch.stack(change.norms(part))
    assert int((whole != 0).sum()) == 1  # nothing else in either layer moved
    band = int(bands(attention.rotary.frequencies, before.context)[pair])
    moved = torch.stack(change.bands(part)).nonzero().tolist()
    assert moved == [[1, head, band]]
    (row,) = [row for row in change.summary() if (row["layer"], row["part"]) == (1, part)]
    assert row[("slow", "middle", "fast")[band]] < 0


def test_json_holds_every_pair_and_both_norms(lab):
    found = rope_spectrum(lab.build("llama-yarn"), lab.prompts())
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    layer = again["layers"][1]
    assert again["tokens"] == found.tokens and layer["layer"] == 1
    assert layer["q"]["norm"] == found.layers[1].q_norm.tolist()
    assert (
        layer["k"]["norm_before_rotation"][0][2]
        < layer["k"]["norm"][0][2]
        == float(found.layers[1].k_norm[0, 2])
    )


@pytest.mark.parametrize(("name", "position"), [("mpt", "alibi"), ("gpt2", "learned"), ("jamba", "none")])
def test_a_model_that_does_not_rotate_says_so(lab, name, position):
    with pytest.raises(UnsupportedModel, match=rf"no rotary embedding.*positions: {position}\)"):
        rope_spectrum(lab.build(name), lab.prompts())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_run(lab, dtype):
    model, prompts = lab.build("llama"), lab.prompts()
    expected = rope_spectrum(model, prompts).layers[0].q_norm
    error = (rope_spectrum(model.to(dtype), prompts).layers[0].q_norm - expected).abs().max()
    assert error <= (0.02 if dtype == torch.bfloat16 else 1e-5) * expected.max()
