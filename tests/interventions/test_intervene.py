"""Each intervention does to queries, keys and attention what its name says, and leaves nothing behind."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from tomfisher.analysis import bands, rope_spectrum
from tomfisher.analysis.sinks import attention_map
from tomfisher.interventions import (
    INTERVENTIONS,
    AimKey,
    OffSink,
    RotateKey,
    ScaleBand,
    ScaleKey,
    ScalePairs,
    intervene,
    measure_internals,
)
from tomfisher.models.families import UnsupportedModel, describe
from tomfisher.models.queries import QueryKey

LAYOUTS = (
    "llama",
    "cohere",
    "neox-half",
    "glm",
    "phi3",
    "gemma3",
    "qwen3",
)  # half, interleaved, partial, both
KEYED = (*LAYOUTS, "mistral-window", "gpt2", "opt", "jamba")
EVERY = {
    "band": lambda: ScaleBand("slow", 0.3, context=20),
    "pairs": lambda: ScalePairs([0], -1.5, parts=("q",)),
    "rotate": lambda: RotateKey(70),
    "aim": lambda: AimKey(-0.2),
    "scale": lambda: ScaleKey(2.5),
    "sink": lambda: OffSink(0.2),
    "hide": lambda: OffSink(0),
    "second": lambda: OffSink(0.1, position=1),
}
CACHED = [(name, kind) for name in ("llama", "cohere", "neox-half", "mistral-window") for kind in EVERY]
CACHED += [(name, kind) for name in ("gpt2", "opt") for kind in EVERY if kind not in ("band", "pairs")]
NOTHING = (ScaleBand("slow", 1, context=20), ScalePairs([0], 1), RotateKey(0), ScaleKey(1), OffSink(1))


def close(actual, expected, tolerance=1e-5):
    assert (actual.double() - expected.double()).abs().max() <= tolerance * max(expected.abs().max(), 1)


def internals_of(lab, model):
    return measure_internals(model, [lab.prompt(n, seed=n) for n in (5, 17, 20)])


def effect(lab, model, intervention, ids):
    """Logits with the intervention; it must have changed them."""
    plain = lab.logits(model, ids)
    with intervene(model, intervention, internals=internals_of(lab, model)):
        changed = lab.logits(model, ids)
    assert (changed - plain).abs().max() > 1e-3
    return changed


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("band", ["slow", "fast"])
def test_a_band_is_scaled_exactly_and_nothing_else(lab, name, band):
    model, ids = lab.build(name), lab.prompt()
    before = lab.inside(model, ids)[0]
    rotary = describe(model).attention[0].rotary
    with intervene(model, ScaleBand(band, 0.5, context=20)):
        after = lab.inside(model, ids)[0]
    chosen = bands(rotary.frequencies, 20) == {"slow": 0, "fast": 2}[band]
    dims = rotary.pairs[chosen].flatten()
    others = [d for d in range(before[0].shape[-1]) if d not in dims.tolist()]
    for was, now in zip(before, after, strict=True):
        assert torch.equal(now[..., dims], was[..., dims] * 0.5)
        assert torch.equal(now[..., others], was[..., others])
        i, j = rotary.pairs.T
        energy = lambda x: x[..., i] ** 2 + x[..., j] ** 2  # noqa: B023, E731
        close(energy(now), energy(was) * torch.where(chosen, 0.25, 1))
    assert chosen.any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_is_that_of_the_scaled_queries_and_keys(lab, name):
    model, ids = lab.build(name), lab.prompt()
    q, k = lab.inside(model, ids)[0]
    module = describe(model).attention[0].module
    pair = describe(model).attention[0].rotary.pairs[0]
    for x, factor in ((q, 3), (k, 3)):
        x[..., pair] *= factor
    seen = QueryKey(q[None], k[None], module.scaling, getattr(module, "sliding_window", None))
    with intervene(model, ScalePairs([0], 3)):
        found = lab.maps(model, ids)[0]
    for head in range(4):
        close(found[head], attention_map(seen, 0, head, len(ids)))


def test_the_dominant_band_is_each_heads_own_pair(lab):
    model, ids = lab.build("llama"), lab.prompt()
    internals = internals_of(lab, model)
    own = internals.spectrum.layers[1]
    pairs = describe(model).attention[1].rotary.pairs
    before = lab.inside(model, ids)[1]
    with intervene(model, ScaleBand("dominant", 0, at=[1]), internals=internals):
        after = lab.inside(model, ids)[1]
    for part, was, now in zip("qk", before, after, strict=True):
        for head, pair in enumerate(own.dominant(part).tolist()):
            changed = (now[head] != was[head]).any(0).nonzero().flatten().tolist()
            assert changed == sorted(pairs[pair].tolist())
            assert (now[head][:, changed] == 0).all()
    assert len(set(own.dominant("q").tolist())) > 1


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("degrees", [30, 90, 180])
def test_the_first_key_turns_by_exactly_the_angle(lab, name, degrees):
    model, ids = lab.build(name), lab.prompt()
    layer = min(describe(model).attention)
    before = lab.inside(model, ids)[layer]
    with intervene(model, RotateKey(degrees)):
        after = lab.inside(model, ids)[layer]
    was, now = before[1][:, 0].double(), after[1][:, 0].double()
    close(torch.cosine_similarity(was, now, dim=-1), torch.tensor(math.cos(math.radians(degrees))))
    close(now.norm(dim=-1), was.norm(dim=-1))
    assert torch.equal(after[1][:, 1:], before[1][:, 1:]) and torch.equal(after[0], before[0])


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("cosine", [-1, -0.3, 0, 0.9])
def test_the_first_key_gets_exactly_the_cosine_with_the_mean_query_of_its_group(lab, name, cosine):
    model, ids = lab.build(name), lab.prompt()
    internals = internals_of(lab, model)
    layer, attention = next(iter(describe(model).attention.items()))
    before = lab.inside(model, ids)[layer][1]
    with intervene(model, AimKey(cosine), internals=internals):
        after = lab.inside(model, ids)[layer][1]
    mean = internals.mean_query[layer].unflatten(0, (attention.kv_heads, -1)).mean(1)
    close(torch.cosine_similarity(after[:, 0], mean, dim=-1), torch.tensor(float(cosine)))
    close(after[:, 0].norm(dim=-1), before[:, 0].norm(dim=-1))
    plane = torch.stack([before[:, 0], mean, after[:, 0]], 1)
    assert (torch.linalg.svdvals(plane)[:, 2] < 1e-4 * torch.linalg.svdvals(plane)[:, 0]).all()


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("factor", [0.1, 0.75, 0])
def test_the_mass_of_the_first_token_falls_by_exactly_the_factor(lab, name, factor):
    model, ids = lab.build(name), lab.prompt()
    layer = max(describe(model).attention)
    before = lab.maps(model, ids)[-1].double()
    with intervene(model, OffSink(factor, at=[layer])):
        after = lab.maps(model, ids)[-1].double()
    mass = before[:, 1:, 0]
    close(after[:, 1:, 0], factor * mass)
    close(after[:, 1:, 1:] * (1 - mass)[..., None], before[:, 1:, 1:] * (1 - factor * mass)[..., None])
    assert torch.equal(after[:, 0], before[:, 0])
    assert mass.max() > 0.2


def test_scores_that_are_capped(lab):
    model, ids = lab.build("gemma3"), lab.prompt()
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 2.0
    before = lab.maps(model, ids)
    with intervene(model, OffSink(0.3, at=[1])):
        after = lab.maps(model, ids)
    close(after[1][:, 1:16, 0], 0.3 * before[1][:, 1:16, 0])
    assert before[1][:, 1:16, 0].max() < 0.99 < after[1].sum(-1).min() + 1e-5


@pytest.mark.parametrize("factor", [0.0, 0.3])
def test_a_null_key_beside_the_others_grows_with_them(lab, factor):
    """GPT-OSS gives part of the attention to no key; what the first token loses goes there too, in proportion."""
    model, ids = lab.build("gpt-oss"), lab.prompt()
    before = lab.maps(model, ids)[1].double()
    with intervene(model, OffSink(factor, at=[1])):
        after = lab.maps(model, ids)[1].double()
    mass, nothing = before[:, 1:, 0], 1 - before[:, 1:].sum(-1)
    grown = (1 - factor * mass) / (1 - mass)
    close(after[:, 1:, 0], factor * mass)
    close(after[:, 1:, 1:], before[:, 1:, 1:] * grown[..., None])
    assert (
        nothing.max() > 0.05 and mass.max() > 0.1
    )  # both are there, and so the null key grows as the others do


def test_low_precision_rounds_and_no_more(lab):
    for attention in ("eager", "sdpa"):
        model, ids = lab.build("llama", attn_implementation=attention).bfloat16(), lab.prompt()
        plain = lab.logits(model, ids)
        for intervention in NOTHING:
            with intervene(model, intervention):
                close(lab.logits(model, ids), plain, 0.05)
    model = lab.build("llama").bfloat16()
    before = lab.maps(model, ids)[1]
    with intervene(model, OffSink(0.1, at=[1])):
        close(lab.maps(model, ids)[1][:, 1:, 0], 0.1 * before[:, 1:, 0], 2e-3)


def test_mass_of_a_sink_that_takes_nearly_all_still_falls_by_the_factor(lab):
    model, ids = lab.build("llama"), lab.prompt()
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight *= 30
    before = lab.maps(model, ids)[1]
    with intervene(model, OffSink(0.5, at=[1])):
        after = lab.maps(model, ids)[1]
    full = before[:, 1:, 0] > 1 - 1e-6
    assert full.any() and (before[:, 1:, 0] == 0).any()
    close(after[:, 1:, 0], before[:, 1:, 0] * 0.5)
    close(after.sum(-1), torch.ones(()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_named_layers_and_heads_only(lab, attention):
    model, ids = lab.build("llama", attn_implementation=attention), lab.prompt()
    before = lab.inside(model, ids)
    with intervene(model, RotateKey(40, at=[(1, 3)]), ScalePairs([1], 0.5, at=[(1, 2)])):
        after = lab.inside(model, ids)
    assert all(torch.equal(*pair) for pair in zip(before[0], after[0], strict=True))
    heads = [(after[1][0][h] != before[1][0][h]).any().item() for h in range(4)]
    assert heads == [False, False, True, False]
    assert torch.equal(after[1][1][0], before[1][1][0]) and not torch.equal(after[1][1][1], before[1][1][1])
    eager = lab.build("llama")
    plain = lab.maps(eager, ids)
    with intervene(eager, OffSink(0.5, at=[(0, 2)])):
        changed = lab.maps(eager, ids)
    close(changed[0][2, 1:, 0], plain[0][2, 1:, 0] / 2)
    assert torch.equal(changed[0][[0, 1, 3]], plain[0][[0, 1, 3]])


def test_no_intervention_is_forgotten():
    assert {type(make()) for make in EVERY.values()} == set(INTERVENTIONS), "EVERY has one of each"


@pytest.mark.parametrize("name", KEYED)
def test_changes_of_nothing_change_nothing(lab, name):
    rotates = name in LAYOUTS or name == "mistral-window"
    for attention in ("eager", "sdpa"):
        model, ids = lab.build(name, attn_implementation=attention), lab.prompt()
        plain = lab.logits(model, ids)
        for intervention in NOTHING[0 if rotates else 2 :]:
            with intervene(model, intervention):
                close(lab.logits(model, ids), plain, 1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox-half"])
@pytest.mark.parametrize("kind", EVERY)
def test_eager_and_sdpa_agree(lab, name, kind):
    ids = lab.prompt()
    found = [
        effect(lab, lab.build(name, attn_implementation=a), EVERY[kind](), ids) for a in ("eager", "sdpa")
    ]
    close(found[1], found[0])


def close_behind_a_cache(lab, model, kind, cache):
    """A text in pieces of 12, 1 and 10 tokens has the logits of the whole."""
    ids = lab.prompt()
    whole, pieces = effect(lab, model, EVERY[kind](), ids), []
    with intervene(model, EVERY[kind](), internals=internals_of(lab, model)), torch.no_grad():
        for a, b in ((0, 12), (12, 13), (13, 23)):
            given = {"input_ids": torch.tensor([ids[a:b]]), "past_key_values": cache, "use_cache": True}
            pieces.append(model(**given).logits)
    close(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "kind"), CACHED)
def test_behind_a_cache_a_text_gives_the_same(lab, name, kind, attention):
    """The window model (9) has forgotten the first key when the second piece begins."""
    model = lab.build(name, attn_implementation=attention)
    close_behind_a_cache(lab, model, kind, DynamicCache(config=model.config))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", EVERY)
def test_behind_a_cache_of_fixed_size_a_text_gives_the_same(lab, kind, attention):
    model = lab.build("llama", attn_implementation=attention)
    close_behind_a_cache(lab, model, kind, StaticCache(config=model.config, max_cache_len=40))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "neox-half", "mistral-window"])
@pytest.mark.parametrize("kind", EVERY)
def test_padding_on_either_side_changes_nothing(lab, name, kind, side, attention):
    model = lab.build(name, attn_implementation=attention)
    texts = [lab.prompt(n, seed=n) for n in (20, 13, 4)]
    internals = internals_of(lab, model)
    fill = [[0] * (20 - len(text)) for text in texts]
    whole = zip(texts, fill, strict=True)
    rows = [pad + text if side == "left" else text + pad for text, pad in whole]
    mask = torch.tensor([[int(token > 0) for token in row] for row in rows])
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    with intervene(model, EVERY[kind](), internals=internals):
        batch = lab.logits(model, rows, attention_mask=mask, position_ids=position)
        for row, text in enumerate(texts):
            close(batch[row][mask[row].bool()], lab.logits(model, text)[0])


def test_right_padding_without_a_mask(lab):
    model, text = lab.build("llama", attn_implementation="sdpa"), lab.prompt(9)
    for make in EVERY.values():
        with intervene(model, make(), internals=internals_of(lab, model)):
            close(lab.logits(model, [text + [0] * 6])[0, :9], lab.logits(model, text)[0])


def test_generation_goes_through_the_cache_as_a_whole_text_does(lab):
    model, ids = lab.build("mistral-window", attn_implementation="sdpa"), lab.prompt(8)
    for make in EVERY.values():
        with intervene(model, make(), internals=internals_of(lab, model)):
            options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            found = model.generate(torch.tensor([ids]), **options)[0].tolist()
            for end in range(8, 14):
                assert lab.logits(model, found[:end])[0, -1].argmax() == found[end]


def test_choice_scores_with_shared_prefixes_are_those_without():
    from tomfisher import tasks
    from tomfisher.evaluate.choice import ChoiceEvaluator
    from tomfisher.models import load_model

    loaded = load_model("testbed-llama", dtype="fp32", device="cpu")
    evaluator = ChoiceEvaluator(loaded.tokenizer, tasks.load("testbed", n=12, split="evaluation"))
    prompts = [list(row.ids) for row in evaluator.rows]
    internals = measure_internals(loaded.model, prompts)
    for make in EVERY.values():
        with intervene(loaded.model, make(), internals=internals):
            shared, whole = (
                evaluator.score(loaded.model, share_prefix=share, progress=False) for share in (True, False)
            )
        assert shared.shared_prefix and not whole.shared_prefix
        close(*(torch.tensor([r.logprobs for r in s.records]) for s in (shared, whole)))


def test_outer_blocks_and_earlier_interventions_act_first(lab):
    model, ids = lab.build("llama"), lab.prompt()
    first, second = ScaleKey(-2), OffSink(0.3)
    with intervene(model, first, second):
        expected = lab.logits(model, ids)
    with intervene(model, first), intervene(model, second):
        assert torch.equal(lab.logits(model, ids), expected)
    with intervene(model, second), intervene(model, first):
        assert (lab.logits(model, ids) - expected).abs().max() > 1e-3
    plain = lab.maps(model, ids)[0]
    with intervene(model, OffSink(0.5), OffSink(0.2)):
        close(lab.maps(model, ids)[0][:, 1:, 0], 0.1 * plain[:, 1:, 0])


def test_analyses_inside_and_outside_the_block_see_the_changed_keys(lab):
    model, ids = lab.build("llama"), lab.prompt()
    internals = measure_internals(model, [ids])
    base = rope_spectrum(model, [ids], progress=False)
    assert torch.equal(internals.spectrum.layers[0].q_norm, base.layers[0].q_norm)
    with intervene(model, ScalePairs([2], 0.5)):
        found = rope_spectrum(model, [ids], progress=False).layers[0]
    factors = torch.tensor([1, 1, 0.5, 1])
    close(found.q_norm, base.layers[0].q_norm * factors)
    close(found.k_norm, base.layers[0].k_norm * factors)
    seen = {}
    from tomfisher.analysis.collect import watching

    with (
        watching(describe(model), lambda layer, x: seen.update({layer: x.k})),
        intervene(model, ScaleKey(0)),
    ):
        lab.logits(model, ids)
    assert (seen[0][:, :, 0] == 0).all() and (seen[0][:, :, 1:] != 0).all()


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_mean_queries_are_means_over_later_tokens_of_all_prompts(lab, name):
    model = lab.build(name)
    prompts = [lab.prompt(n, seed=n) for n in (5, 17, 20)]
    found = measure_internals(model, prompts)
    for layer in describe(model).attention:
        rows = torch.cat([lab.inside(model, p)[layer][0][:, 1:] for p in prompts], 1)
        close(found.mean_query[layer], rows.mean(1))
    assert (found.shortest, found.longest) == (5, 20)
    assert (found.spectrum is None) == (name == "jamba")


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_undone_on_any_exit(lab, fails):
    model, ids = lab.build("llama", attn_implementation="sdpa"), lab.prompt()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    plain, original = lab.logits(model, ids), AttentionInterface.get_interface
    other = lab.build("qwen3")
    others = lab.logits(other, ids)
    try:
        with intervene(model, *(make() for make in EVERY.values()), internals=internals_of(lab, model)):
            assert not torch.equal(lab.logits(model, ids), plain)
            assert torch.equal(lab.logits(other, ids), others)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(lab.logits(model, ids), plain)
    assert AttentionInterface.get_interface is original and "get_interface" not in vars(
        ALL_ATTENTION_FUNCTIONS
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_controls_do_the_same_elsewhere(lab):
    model, ids = lab.build("llama"), lab.prompt()
    internals = internals_of(lab, model)
    before = lab.inside(model, ids)[0]
    for make in (RotateKey(50), ScaleKey(3)):
        positions = set()
        for seed in range(4):
            with intervene(model, make.control(seed, internals)):
                after = lab.inside(model, ids)[0][1]
            changed = (after != before[1]).any(-1).any(0).nonzero().flatten().tolist()
            assert len(changed) == 1 and 0 < changed[0] < internals.shortest
            positions.add(changed[0])
        assert len(positions) == 4
    band = ScaleBand("dominant", 0.5)
    hit = set()
    for seed in range(8):
        with intervene(model, band.control(seed, internals), internals=internals):
            after = lab.inside(model, ids)[0][0]
        changed = (after != before[0]).any(1)
        assert changed.sum(-1).tolist() == [2] * 4
        hit |= {tuple(row.nonzero().flatten().tolist()) for row in changed}
    assert hit == {(0, 4), (1, 5), (2, 6), (3, 7)}
    assert band.control(1, internals) == band.control(1, internals) != band.control(2, internals)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gpt2", lambda: ScaleBand("slow", 0.5, context=9), "gpt2 has no rotary embedding"),
        ("jamba", lambda: ScalePairs([0], 0.5), "jamba has no rotary embedding"),
        ("mamba", lambda: OffSink(0.1), "mamba has no attention layer"),
        ("mpt", lambda: OffSink(0.1), "mpt computes attention in its own code"),
        ("mpt", lambda: RotateKey(30), "mpt computes attention in its own code"),
        ("mpt", lambda: ScaleBand("slow", 0.5), "mpt has no rotary embedding"),
    ],
)
def test_what_a_model_does_not_have_is_refused(lab, name, make, message):
    model = lab.build(name)
    with pytest.raises(UnsupportedModel, match=message), intervene(model, make()):
        pass
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


def test_attention_that_goes_another_way_is_refused(lab):
    model = lab.build("gpt2-upcast")
    with (
        pytest.raises(UnsupportedModel, match="gpt2 computes attention in its own code"),
        intervene(model, ScaleKey(2)),
    ):
        pass
    model = lab.build("llama")
    with pytest.raises(UnsupportedModel, match="ran without being reached"), intervene(model, ScaleKey(2)):
        model.model.layers[0].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
        lab.logits(model, lab.prompt(5))
    model = lab.build("llama")
    AttentionInterface.register("somebodys", sdpa_attention_forward)
    model.set_attn_implementation("somebodys")
    with (
        pytest.raises(UnsupportedModel, match="'somebodys' does not take"),
        intervene(model, OffSink(0.1)),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleKey(1, at=[2]), "there is no layer or head 2. Layers with attention: 0, 1"),
        (lambda: ScaleKey(1, at=[(0, 4)]), "there is no layer or head 0.4"),
        (lambda: ScalePairs([4], 1), "layer 0 has rotary pairs 0 to 3"),
        (lambda: AimKey(0.5), "Give internals=measure_internals"),
        (lambda: ScaleBand("dominant", 0.5), "Give internals=measure_internals"),
        (lambda: ScaleBand("low", 0.5), "band must be one of slow, middle, fast, dominant"),
        (lambda: ScaleBand("slow", math.nan), "factor must be a finite number"),
        (lambda: ScalePairs([], 1), "at least one"),
        (lambda: ScalePairs([0], 1, parts=("v",)), "parts must be 'q', 'k' or both"),
        (lambda: RotateKey(math.inf), "degrees must be a finite number"),
        (lambda: AimKey(1.5), "cosine must lie from -1 to 1"),
        (lambda: OffSink(1.1), "factor must lie from 0 to 1"),
        (lambda: OffSink(0.1, position=-1), "position must be 0"),
        (lambda: OffSink(0.1, at=[]), "at names no layer or head"),
    ],
)
def test_bad_arguments(lab, make, message):
    model = lab.build("llama")
    with pytest.raises(ValueError, match=message), intervene(model, make()):
        pass
