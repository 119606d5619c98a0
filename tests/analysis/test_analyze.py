"""Several parts in one pass, what is missing said, and what cannot be compared refused."""

from __future__ import annotations

import json

import pytest
import torch

from tomfisher.analysis import analyze, attention_sinks, compare, rope_spectrum
from tomfisher.analysis.change import relative
from tomfisher.models.families import describe
from tomfisher.runtime.rules import remembered


def test_one_pass_gives_what_each_part_gives_alone(lab):
    model, prompts = lab.build("llama"), lab.prompts()
    calls = []
    describe(model)  # asked once, and known from then on
    model.register_forward_hook(lambda *_: calls.append(1))
    with remembered():
        both = analyze(model, prompts)
        asked = len(calls)
        assert analyze(model, prompts).results.keys() == both.results.keys()
    assert len(calls) == asked + 1 and both.unavailable == {}  # the rules are asked once
    assert both.results["rope"].to_dict() == rope_spectrum(model, prompts).to_dict()
    assert both.results["sinks"].to_dict() == attention_sinks(model, prompts).to_dict()
    json.dumps(both.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "there", "missing"),
    [
        ("llama", ["rope", "sinks"], {}),
        ("mpt", ["sinks"], {"rope": "mpt has no rotary embedding"}),
        ("jamba", ["sinks"], {"rope": "jamba has no rotary embedding"}),
        ("mamba", [], {"rope": "mamba has no rotary embedding", "sinks": "mamba has no attention layer"}),
        ("gpt-oss", ["rope", "sinks"], {}),
        ("both-ways", [], dict.fromkeys(["rope", "sinks"], "gemma3_text model is not causal")),
    ],
)
def test_a_missing_part_is_said_and_the_rest_is_done(lab, name, there, missing):
    found = analyze(lab.build(name), lab.prompts())
    assert list(found.results) == there and found.unavailable.keys() == missing.keys()
    for part, reason in missing.items():
        assert reason in found.unavailable[part]
        assert found.to_dict()["unavailable"][part] == found.unavailable[part]


def test_only_the_parts_that_are_asked_for(lab):
    assert list(analyze(lab.build("llama"), lab.prompts(), parts=["sinks"]).results) == ["sinks"]
    with pytest.raises(ValueError, match=r"Unknown part 'ropes'. Did you mean 'rope'"):
        analyze(lab.build("llama"), lab.prompts(), parts=["ropes"])


def test_measurements_that_differ_in_more_than_the_weights_are_not_compared(lab):
    model, prompts = lab.build("llama"), lab.prompts()
    rope, sinks = rope_spectrum(model, prompts), attention_sinks(model, prompts)
    with pytest.raises(ValueError, match="differ in prompts, tokens"):
        compare(rope, rope_spectrum(model, prompts[:3]))
    with pytest.raises(ValueError, match="differ in context"):
        compare(rope, rope_spectrum(model, prompts, context=4096))
    with pytest.raises(ValueError, match="differ in epsilon"):
        compare(sinks, attention_sinks(model, prompts, epsilon=0.2))
    with pytest.raises(ValueError, match="differ in layers"):
        compare(sinks, attention_sinks(lab.build("jamba"), prompts))
    with pytest.raises(TypeError, match="got RopeSpectrum and AttentionSinks"):
        compare(rope, sinks)


def test_relative_change():
    found = relative(torch.tensor([2.0, 0.0, 0.0, 4.0]), torch.tensor([1.0, 0.0, 3.0, 6.0]))
    assert found.tolist() == [-0.5, 0.0, float("inf"), 0.5]


def test_a_change_is_json_ready(lab):
    model, prompts = lab.build("llama"), lab.prompts()
    before = analyze(model, prompts)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:8] *= 2
    after = analyze(model, prompts)
    for part, measured in before.results.items():
        change = compare(measured, after.results[part])
        again = json.loads(json.dumps(change.to_dict(), allow_nan=False))
        assert len(again["largest"]) == (10 if part == "rope" else 8)
        if part == "rope":
            assert again["q"][0]["norm"][0] == pytest.approx([1, 1, 1, 1], rel=1e-5)
        else:
            assert again["layers"][0]["first_mass"] == pytest.approx(
                change.difference("first_mass")[0].tolist()
            )
