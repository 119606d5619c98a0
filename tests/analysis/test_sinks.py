"""Attention sinks against the maps that transformers gives, and planted effects."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tomfisher.analysis import attention_sinks, compare
from tomfisher.models.families import UnsupportedModel, describe

FAMILIES = (
    "llama",
    "llama-yarn",
    "neox-half",
    "glm",
    "cohere",
    "phi3",
    "qwen3",
    "gemma3",
    "mistral-window",
    "smollm3",
    "mixtral",
    "opt",
    "gpt2",
    "mpt",
    "jamba",
    "gptj",
    "codegen",
    "bigcode",
    "bloom",
    "falcon",
    "falcon-grouped",
    "stablelm",
    "granite",
    "starcoder2",
    "gemma2",
    "cohere2",
    "gpt-oss",
    "gpt-neo",
    "llama4",
)
ONLY_EAGER = ("mpt", "bloom", "gpt-neo", "gpt-oss", "gemma2")
EXACT = 1e-5
DEGREES = EXACT * 180 / math.pi  # of an angle whose cosine is exact to that


def close(actual, expected, slack=EXACT):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= slack


def later(per_prompt):
    """Mean over the positions t >= 1 of all prompts; each `[heads, T]`."""
    return torch.cat([x[:, 1:] for x in per_prompt], dim=1).mean(1)


def sail_sg(maps, epsilon):
    """Share of prompts in which each key is a sink: `[samples, heads, T, T]` maps to `[heads, T]`."""
    counts = torch.arange(maps.shape[-1], 0, -1)
    return ((maps / counts).sum(-2) > epsilon).double().mean(0)


CASES = [
    (name, how) for name in FAMILIES for how in ("eager", "sdpa") if how == "eager" or name not in ONLY_EAGER
]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_everything_equals_the_maps_and_projections(lab, name, implementation):
    prompts = lab.prompts()
    reference = lab.build(name)
    found = attention_sinks(lab.build(name, attn_implementation=implementation), prompts, tokens_per_batch=70)
    maps = [lab.maps(reference, prompt) for prompt in prompts]
    before = [lab.projected(reference, prompt) for prompt in prompts]
    attention = describe(reference).attention
    assert [layer.layer for layer in found.layers] == list(attention)
    for layer in found.layers:
        here = [m[layer.layer] for m in maps]
        close(layer.first_mass, later([a[:, :, 0] for a in here]))
        close(layer.entropy, later([torch.special.entr(a).sum(-1) for a in here]))
        rotary = attention[layer.layer].rotary
        q, k = ([lab.rotate(p[layer.layer][i], rotary) for p in before] for i in (0, 1))
        shared = attention[layer.layer].heads // attention[layer.layer].kv_heads
        cosine = [
            torch.cosine_similarity(x, y[:, :1].repeat_interleave(shared, dim=0), dim=-1)
            for x, y in zip(q, k, strict=True)
        ]
        close(layer.cosine, later(cosine))
        close(layer.angle, later([c.acos().rad2deg() for c in cosine]), DEGREES)
        first = torch.stack([y[:, 0].norm(dim=-1) for y in k]).mean(0)
        others = later([y.norm(dim=-1) for y in k])
        close(layer.key_norm, first, EXACT * float(first.max()))
        close(layer.key_ratio, first / others, EXACT * float((first / others).max()))


@pytest.mark.parametrize("epsilon", [0.3, 0.05])
@pytest.mark.parametrize("name", ["llama", "neox-half", "gemma3", "mpt", "jamba"])
def test_sink_metric_is_that_of_the_first_64_tokens_alone(lab, name, epsilon):
    lengths = (64, 40, 64, 64, 63, 64, 64)
    if name in ("llama", "neox-half"):
        lengths = (100, 40, 64, 80, 63, 128, 64)
    model, prompts = lab.build(name), lab.prompts(lengths)
    if name == "llama":  # a head whose every query points at the first key
        plant_sink(model, prompts, layer=0, head=2)
    found = attention_sinks(model, prompts, epsilon=epsilon)
    long = [prompt[:64] for prompt in prompts if len(prompt) >= 64]
    assert (found.long_prompts, found.window, found.epsilon) == (5, 64, epsilon)
    maps = [lab.maps(model, prompt) for prompt in long]
    expected = [sail_sg(torch.stack([m[layer.layer] for m in maps]), epsilon) for layer in found.layers]
    for layer, rate in zip(found.layers, expected, strict=True):
        close(layer.sink_rate, rate)
    close(found.metric(), torch.cat(expected).mean(0))
    if epsilon == 0.05:
        assert found.metric()[:-1].max() > 0
    if name == "llama":
        assert found.layers[0].sink_rate[2, 0] == 1


def plant_sink(model, prompts, layer, head):
    """Let the slowest pair of a key say "first token", and the queries of one head ask for just that."""
    for prompt in prompts:
        prompt[0] = 1  # the same first token everywhere, as a begin-of-sequence token is
    attention = describe(model).attention[layer]
    module, seen = attention.module, []
    handle = module.k_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([prompts[0]]))
        handle.remove()
        slow = attention.rotary.pairs[-1]
        i, j = attention.k.index[head // (attention.heads // attention.kv_heads)][slow]
        module.k_proj.weight[i] = 4 * seen[0] / seen[0].square().sum()
        module.k_proj.weight[j] = 0
        with_bias = torch.nn.Linear(32, 32)
        with_bias.weight.copy_(module.q_proj.weight)
        with_bias.bias.zero_()
        with_bias.bias[attention.q.index[head][slow[0]]] = 60
        module.q_proj = with_bias
    return with_bias.bias


def test_a_head_pushed_off_its_sink_is_named_exactly(lab):
    model, prompts = lab.build("llama"), lab.prompts()
    bias = plant_sink(model, prompts, layer=1, head=3)
    before = attention_sinks(model, prompts)
    with torch.no_grad():
        bias *= -1
    change = compare(before, attention_sinks(model, prompts))
    (top,) = change.largest(1)
    assert (top.layer, top.head) == (1, 3)
    assert top.mass_after < top.mass_before / 5 and top.angle_after > 90 > top.angle_before
    moved = torch.stack(change.difference("first_mass")).nonzero().tolist()
    assert moved == [[1, 3]]
    assert change.summary()[1]["first_mass"] < 0 == change.summary()[0]["first_mass"]


@pytest.mark.parametrize("name", ["llama", "mpt", "mistral-window"])
def test_maps_only_of_the_heads_that_are_named(lab, name):
    model, prompts = lab.build(name), lab.prompts()
    assert attention_sinks(model, prompts).maps == {}
    found = attention_sinks(model, prompts, heads=[(1, 3), (0, 0)], map_prompts=2, tokens_per_batch=64).maps
    assert found.keys() == {(1, 3), (0, 0)}
    for (layer, head), kept in found.items():
        assert len(kept) == 2
        for prompt, weights in zip(prompts, kept, strict=False):
            close(weights, lab.maps(model, prompt)[layer][head])


def test_prompts_shorter_than_the_window_have_no_sink_rate(lab):
    found = attention_sinks(lab.build("llama"), lab.prompts((63, 10)))
    assert found.long_prompts == 0 and found.metric().isnan().all()
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["metric"] == [None] * 64 and again["layers"][0]["first_mass"][0] > 0


def test_json_holds_every_head(lab):
    found = attention_sinks(lab.build("llama"), lab.prompts(), heads=[(0, 1)])
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["layers"][1]["angle"] == found.layers[1].angle.tolist()
    assert again["maps"]["0.1"][0] == found.maps[0, 1][0].tolist()
    assert again["long_prompts"] == 2


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_model_without_attention_says_so(lab, name):
    with pytest.raises(UnsupportedModel, match=f"{name} has no attention layer"):
        attention_sinks(lab.build(name), lab.prompts())


@pytest.mark.parametrize("head", [(0, 0), (1, 4), (1, -1), (2, 0)])
def test_a_head_that_is_not_there_is_refused(lab, head):
    with pytest.raises(
        ValueError, match=rf"no attention head {head[0]}.{head[1]}.*attention: 1; heads of each: 4"
    ):
        attention_sinks(lab.build("jamba"), lab.prompts(), heads=[head])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_run(lab, dtype):
    model, prompts = lab.build("llama"), lab.prompts()
    expected = attention_sinks(model, prompts).layers[0]
    found = attention_sinks(model.to(dtype), prompts).layers[0]
    close(found.first_mass, expected.first_mass.double(), 0.02 if dtype == torch.bfloat16 else EXACT)
