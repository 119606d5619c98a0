"""The queries and keys handed over are those that the attention uses, and nothing is left behind."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers.modeling_utils import AttentionInterface

from tomfisher.analysis.collect import collect, watching
from tomfisher.analysis.rope import RopeCollector
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
    "gptj",
    "codegen",
    "falcon",
    "falcon-grouped",
    "phi",
    "stablelm",
    "granite",
    "starcoder2",
    "nemotron",
    "helium",
    "ernie",
    "gemma2",
    "cohere2",
    "glm4",
    "gpt-oss",
    "llama4",
)
OTHERS = ("qwen2", "mistral-window", "gpt2", "mpt", "jamba", "bloom", "bigcode", "gpt-neo")


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
        def update(self, layer, seen, lengths, prompts):
            assert not any(module.training for module in model.modules())
            if fails and layer == 1:
                raise KeyboardInterrupt

    try:
        collect(model, describe(model), lab.prompts(), [Collector()])
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
    before = describe(model)
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = True  # has its own attention when eager
    with pytest.raises(UnsupportedModel, match="layers 0, 1 ran without being seen"):
        collect(model, before, lab.prompts(), [])
    assert not describe(model).interface
    collect(model, describe(model), lab.prompts(), [SinkCollector(describe(model))])


@pytest.mark.parametrize("name", ["llama", "mpt"])
def test_no_activation_outlives_its_layer(lab, name):
    model = lab.build(name)
    architecture, held, most = describe(model), [], []

    class Watcher:
        def update(self, layer, seen, lengths, prompts):
            most.append(sum(reference() is not None for reference in held))
            held.extend((weakref.ref(seen.q), weakref.ref(seen.k)))

    collectors = [SinkCollector(architecture, heads=[(0, 0)]), Watcher()]
    if name == "llama":
        collectors.insert(0, RopeCollector(architecture))
    collect(model, architecture, lab.prompts(), collectors, tokens_per_batch=64)
    assert len(most) == 8 and max(most) == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([[5, 6], [7]], r"Prompt 1 has 1 token\(s\)"),
        ([[5] * 129], "Prompt 0 has 129 tokens, but the model has positions for 128"),
    ],
)
def test_unusable_prompts_are_refused(lab, prompts, message):
    model = lab.build("llama")
    with pytest.raises(ValueError, match=message):
        collect(model, describe(model), prompts, [])


class Live(TorchDispatchMode):
    """Bytes of all tensors that come to life inside the block and are still alive: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known, self.views = set(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self.known:
                self.take(tensor)
        return out

    def take(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self.known.add(id(tensor))
        self.now += 0 if self.views[key] else size
        self.most = max(self.most, self.now)
        self.views[key] += 1
        weakref.finalize(tensor, self.let_go, id(tensor), key, size)

    def let_go(self, identity, key, size):
        self.known.discard(identity)
        self.views[key] -= 1
        self.now -= 0 if self.views[key] else size


class Hoarder:
    """What no collector may be: one that keeps queries."""

    def __init__(self):
        self.kept = []

    def update(self, layer, seen, lengths, prompts):
        self.kept.append(seen.q.clone())


def peak(model, architecture, prompts, kept):
    """Most bytes alive at one time in batches of four prompts, and those that are left in the collectors."""
    collectors = [RopeCollector(architecture), SinkCollector(architecture)]
    collectors += [Hoarder()] if kept == "queries" else []
    with Live() as live:
        collect(
            model, architecture, prompts, collectors, tokens_per_batch=4 * len(prompts[0]), progress=False
        )
        gc.collect()
        return live.most, live.now


@pytest.mark.parametrize("kept", ["sums", "queries"])
def test_peak_memory_does_not_grow_with_the_number_of_prompts(lab, kept):
    model = lab.build("llama", attn_implementation="sdpa")
    architecture = describe(model)
    few, many = (peak(model, architecture, lab.prompts((60,) * n), kept) for n in (4, 64))
    batch = 4 * 60 * (4 + 2) * 8 * 4  # bytes of q and k of one layer of a batch
    assert few[0] > batch
    if kept == "sums":
        assert many[0] <= few[0] + 0.01 * batch and many[1] == few[1] < 0.5 * batch
    else:  # the measurement sees it: 64 prompts of two layers' queries are 15 batches more
        assert many[0] > few[0] + 15 * batch


def square(length):
    """Tensors alive whose last two dimensions are a map of so many tokens."""
    found = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return [x for x in found if x.ndim >= 2 and tuple(x.shape[-2:]) == (length, length)]


@pytest.mark.parametrize("heads", [(), ((1, 2),), ((0, 0), (1, 3))])
def test_no_map_is_alive_unless_its_head_was_named(lab, heads):
    length = 61  # no other tensor of the model has such a shape
    model = lab.build("llama", attn_implementation="sdpa")
    architecture, seen = describe(model), []

    class Watcher:
        def update(self, layer, inputs, lengths, prompts):
            seen.append(sum(x.is_floating_point() for x in square(length)))

    sinks = SinkCollector(architecture, heads=heads)
    collectors = [RopeCollector(architecture), sinks, Watcher()]
    assert not square(length)
    collect(
        model,
        architecture,
        lab.prompts((length,) * 6),
        collectors,
        tokens_per_batch=2 * length,
        progress=False,
    )
    # the map of the first prompt comes with the first batch, longest first: layer 0, then layer 1
    named = [sum(layer == 0 for layer, _ in heads), len(heads)]
    assert seen == [named[0]] + [named[1]] * 5
    gc.collect()
    left = square(length)
    assert len(left) == len(heads) and all(x.shape == (length, length) for x in left)
