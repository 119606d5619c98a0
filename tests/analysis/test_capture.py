"""The queries and keys handed over are those that the attention uses, and nothing is left behind."""

from __future__ import annotations

import weakref

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from tomfisher.analysis.capture import watching
from tomfisher.analysis.rope import RopeCollector
from tomfisher.analysis.run import run
from tomfisher.analysis.sinks import SinkCollector
from tomfisher.models.families import UnsupportedModel, describe

ROTATING = (
    "llama",
    "llama-yarn",
    "neox-half",
    "glm",
    "cohere",
    "phi3",
    "smollm3",
    "qwen3",
    "gemma3",
    "mixtral",
)
OTHERS = ("qwen2", "mistral-window", "gpt2", "mpt", "jamba")


def captured(model, prompt):
    found = {}
    with watching(describe(model), lambda layer, seen: found.update({layer: seen})), torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    return found


def close(actual, expected):
    assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", (*ROTATING, *OTHERS))
def test_they_are_the_projections_rotated_by_position_times_frequency(lab, name):
    model = lab.build(name)
    (prompt,) = lab.prompts((23,))
    seen, direct = captured(model, prompt), lab.projected(model, prompt)
    attention = describe(model).attention
    assert seen.keys() == direct.keys() == attention.keys()
    for layer, (q, k) in direct.items():
        close(seen[layer].q[0], lab.rotate(q, attention[layer].rotary))
        close(seen[layer].k[0], lab.rotate(k, attention[layer].rotary))


def test_opt_scales_its_queries_beforehand(lab):
    model = lab.build("opt")
    (prompt,) = lab.prompts((11,))
    seen, direct = captured(model, prompt), lab.projected(model, prompt)
    for layer, (q, k) in direct.items():
        close(seen[layer].q[0] * seen[layer].scale, q * 8**-0.5)
        close(seen[layer].k[0], k)


def test_mpt_slopes_scale_and_clipping_are_those_of_the_module(lab, tiny_config):
    model = lab.build("mpt")
    for block in model.transformer.blocks:
        block.attn.clip_qkv = 0.25
    seen = captured(model, lab.prompts((12,))[0])
    assert seen[0].slopes.tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert seen[0].scale == pytest.approx(8**-0.5)
    assert seen[0].q.abs().max() == 0.25 and seen[0].k.abs().max() == 0.25


@pytest.mark.parametrize("name", ["llama", "mpt"])
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_transformers_come_back_as_they_were(lab, name, fails):
    model = lab.build(name).train()
    model.model.embed_tokens.eval() if name == "llama" else model.transformer.wte.eval()
    flags = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    original, implementation = AttentionInterface.get_interface, model.config._attn_implementation

    class Collector:
        def look(self, layer, seen, lengths, prompts):
            assert not any(module.training for module in model.modules())
            if fails and layer == 1:
                raise KeyboardInterrupt

    try:
        run(model, describe(model), lab.prompts(), [Collector()])
    except KeyboardInterrupt:
        assert fails
    assert AttentionInterface.get_interface is original
    assert model.config._attn_implementation == implementation
    assert [module.training for module in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_watching_changes_no_logits_and_sees_only_its_own_model(lab):
    model, other = lab.build("llama", attn_implementation="sdpa"), lab.build("llama")
    ids = torch.tensor(lab.prompts((20,)))
    seen = []
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with watching(describe(model), lambda layer, _: seen.append(layer)):
            watched = model(input_ids=ids).logits
            other(input_ids=ids)
    assert torch.equal(plain, watched) and seen == [0, 1]


def test_attention_that_is_never_seen_is_an_error_not_a_silent_zero(lab):
    model = lab.build("gpt2")
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = True  # has its own attention when eager
    with pytest.raises(UnsupportedModel, match="layers 0, 1 ran without being seen"):
        run(model, describe(model), lab.prompts(), [])


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_no_activation_outlives_its_layer(lab, name):
    model = lab.build(name)
    architecture, held, most = describe(model), [], []

    class Watcher:
        def look(self, layer, seen, lengths, prompts):
            most.append(sum(reference() is not None for reference in held))
            held.extend((weakref.ref(seen.q), weakref.ref(seen.k)))

    collectors = [SinkCollector(architecture, heads=[(0, 0)]), Watcher()]
    if name == "llama":
        collectors.insert(0, RopeCollector(architecture))
    run(model, architecture, lab.prompts(), collectors, tokens_per_batch=64)
    assert len(most) == 8 and max(most) == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([[5, 6], [7]], r"Prompt 1 has 1 token\(s\)"),
        ([[5] * 129], "Prompt 0 takes 129 tokens"),
    ],
)
def test_unusable_prompts_are_refused(lab, prompts, message):
    model = lab.build("llama")
    with pytest.raises(ValueError, match=message):
        run(model, describe(model), prompts, [])
