"""Counts name the places that were planted, in every layout; tables add up for every family."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tomfisher import SparseMask
from tomfisher.analysis import mask_profile, rope_spectrum
from tomfisher.analysis.counts import count_parts
from tomfisher.models.families import describe
from tomfisher.runtime.structure import layer_index

HEAD, WIDTH = 8, 32
# where dimension d of head h of q, k, v stands in the projection, and which dimensions make pair p
LAYOUTS = {
    "llama": ({"q": lambda h, d: 8 * h + d, "k": lambda h, d: 8 * h + d}, lambda p: (p, p + 4)),
    "phi3": ({"q": lambda h, d: 8 * h + d, "k": lambda h, d: 32 + 8 * h + d}, lambda p: (p, p + 4)),
    "neox-half": (
        {"q": lambda h, d: 24 * h + d, "k": lambda h, d: 24 * h + 8 + d},
        lambda p: (p, p + 2),
    ),
    "glm": ({"q": lambda h, d: 8 * h + d, "k": lambda h, d: 8 * h + d}, lambda p: (2 * p, 2 * p + 1)),
    "cohere": ({"q": lambda h, d: 8 * h + d, "k": lambda h, d: 8 * h + d}, lambda p: (2 * p, 2 * p + 1)),
}


def mask_of(model, entries):
    """A mask of all matrices of the layers, with {name: flat positions} chosen."""
    shapes = {
        n: tuple(w.shape) for n, w in model.named_parameters() if w.ndim > 1 and layer_index(n) is not None
    }
    empty = torch.empty(0, dtype=torch.int64)
    return SparseMask({n: torch.as_tensor(entries.get(n, empty)).unique() for n in shapes}, shapes)


def random_mask(model, fraction=0.05, seed=0):
    whole = mask_of(model, {})
    counts = {n: torch.arange(max(1, int(fraction * torch.Size(s).numel()))) for n, s in whole.shapes.items()}
    return SparseMask(counts, whole.shapes).random_like(seed)


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("kind", ["q", "k"])
def test_a_planted_pair_of_a_head_is_named_in_every_layout(lab, name, kind):
    model = lab.build(name)
    place, pair = LAYOUTS[name]
    head, wanted = 1, 1
    attention = describe(model).attention[1]
    parameter = getattr(attention, kind).parameter
    rows = torch.tensor([place[kind](head, d) for d in pair(wanted)])
    mask = mask_of(model, {parameter: (rows[:, None] * WIDTH + torch.arange(5)).flatten()})
    profile = mask_profile(mask, model, fill=None)
    (hit,) = [part for part in profile.parts if part.masked]
    assert (hit.layer, hit.kind, hit.group, hit.tensor, hit.masked) == (1, kind, "qk", parameter, 10)
    assert hit.pairs.nonzero().tolist() == [[head, wanted]] and int(hit.pairs.sum()) == 10
    assert sorted(hit.units[head].nonzero().flatten().tolist()) == sorted(pair(wanted))
    heads = attention.heads if kind == "q" else attention.kv_heads
    assert hit.heads.tolist() == [10 * (h == head) for h in range(heads)]
    assert hit.weights == heads * HEAD * WIDTH


@pytest.mark.parametrize(
    ("name", "kind", "position"), [("gpt2", "k", 32 + 8 * 2 + 3), ("mpt", "v", 64 + 8 * 2 + 3)]
)
def test_fused_projections_with_and_without_transposed_weights(lab, name, kind, position):
    model = lab.build(name)
    parameter = describe(model).attention[0].q.parameter
    other = torch.arange(7)
    flat = other * 96 + position if name == "gpt2" else position * WIDTH + other
    profile = mask_profile(mask_of(model, {parameter: flat}), model, fill=None)
    (hit,) = [part for part in profile.parts if part.masked]
    assert (hit.kind, hit.units[2, 3].item(), hit.masked, hit.pairs) == (kind, 7, 7, None)
    (matrix,) = [m for m in profile.matrices if m.spread.masked]
    assert matrix.spread.rows.top == ((position, 7),) and matrix.spread.rows.size == 96
    assert matrix.spread.columns.distinct == 7 and matrix.spread.columns.size == 32


def test_heads_of_the_output_projection_are_columns(lab):
    model = lab.build("llama")
    parameter = describe(model).attention[0].o.parameter
    mask = mask_of(model, {parameter: torch.arange(6) * 32 + 3 * 8 + 1})
    (hit,) = [part for part in count_parts(mask, describe(model)) if part.masked]
    assert hit.kind == "o" and hit.heads.tolist() == [0, 0, 0, 6]


def test_parts_hold_every_entry_once_in_every_family(family, tiny_config):
    model = AutoModelForCausalLM.from_config(tiny_config(family))
    mask = random_mask(model)
    profile = mask_profile(mask, model, fill=None)
    assert (profile.nnz, profile.numel) == (mask.nnz, mask.numel)
    per_tensor = {}
    for part in profile.parts:
        per_tensor[part.tensor] = per_tensor.get(part.tensor, 0) + part.masked
    assert per_tensor == mask.counts()
    for table in (profile.groups(), profile.kinds(), profile.layers()):
        assert sum(row["masked"] for row in table) == mask.nnz
        assert sum(row["share"] for row in table) == pytest.approx(1)
        assert sum(row["weight_share"] for row in table) == pytest.approx(1)
        for row in table:
            assert row["fold"] == pytest.approx(row["masked"] / mask.nnz / (row["weights"] / mask.numel))
    assert [row["layer"] for row in profile.layers()] == [0, 1]
    json.dumps(profile.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "groups", "missing"),
    [
        ("llama-gqa", {"qk", "vo", "mlp"}, {}),
        ("jamba", {"qk", "vo", "mlp", "mixer"}, {"enrichment": "jamba has no rotary embedding"}),
        (
            "mamba",
            {"mixer"},
            {"heads": "mamba has no attention layer", "enrichment": "mamba has no rotary embedding"},
        ),
        ("mpt", {"qk", "vo", "mlp"}, {"enrichment": "mpt has no rotary embedding"}),
        ("gpt-oss", {"qk", "vo", "mlp"}, {}),
        ("both-ways", {"other"}, dict.fromkeys(["heads", "enrichment"], "gemma3_text model is not causal")),
    ],
)
def test_what_a_family_lacks_is_said_and_modules_are_counted(lab, name, groups, missing):
    model = lab.build(name)
    spectrum = rope_spectrum(model, lab.prompts()) if name in ("llama-gqa", "gpt-oss") else None
    profile = mask_profile(random_mask(model), model, spectrum)
    assert {row["group"] for row in profile.groups()} == groups
    assert profile.unavailable.keys() == missing.keys()
    for part, reason in missing.items():
        assert reason in profile.unavailable[part]
    kinds = {row["kind"] for row in profile.kinds()}
    if name == "gpt-oss":
        assert {"q", "mlp.experts.gate_up_proj"} <= kinds
    if name == "both-ways":
        assert {"self_attn.q_proj", "mlp.gate_proj"} <= kinds
    if name == "mamba":
        assert "mixer.in_proj" in kinds and all(part.heads is None for part in profile.parts)
    assert (profile.enrichment is None) == ("enrichment" in missing)


def test_embeddings_and_vectors_lie_outside_the_groups(lab):
    model = lab.build("llama")
    shapes = {n: tuple(w.shape) for n, w in model.named_parameters()}
    mask = SparseMask({n: torch.arange(1) for n in shapes}, shapes)
    profile = mask_profile(mask, model, fill=None)
    rows = {row["kind"]: row for row in profile.kinds()}
    assert rows["model.embed_tokens"]["group"] == "other"
    assert rows["input_layernorm"]["group"] == "other" and rows["input_layernorm"]["masked"] == 2
    assert profile.layers()[-1]["layer"] is None
    assert {m.name for m in profile.matrices} == {n for n, s in shapes.items() if len(s) == 2}


def test_an_empty_mask_has_a_profile(lab):
    model = lab.build("llama")
    profile = mask_profile(mask_of(model, {}), model, rope_spectrum(model, lab.prompts()))
    assert profile.nnz == 0 and profile.sparsity() == []
    tests = profile.enrichment.tests
    assert all((t.p if t.level == "head" else t.p_pairs) == 1 and t.found == 0 for t in tests)
    again = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert again["groups"][0]["share"] is None


def test_masks_and_spectra_of_other_models_are_refused(lab):
    model, deeper = lab.build("llama"), lab.build("smollm3")
    mask, spectrum = random_mask(model), rope_spectrum(model, lab.prompts())
    with pytest.raises(ValueError, match="The mask is of another model"):
        mask_profile(random_mask(lab.build("phi3")), model)
    with pytest.raises(ValueError, match="The mask is of another model: it names no tensor"):
        mask_profile(SparseMask({}, {}), model)
    with pytest.raises(ValueError, match="The spectrum has nothing for q of layer 2"):
        mask_profile(random_mask(deeper), deeper, spectrum)
    with pytest.raises(ValueError, match=r"The spectrum has \(4, 4\) heads and pairs for q of layer 0"):
        mask_profile(random_mask(lab.build("neox-half")), lab.build("neox-half"), spectrum)
    with pytest.raises(ValueError, match=r"dominant_pairs must be from 1 to 4, got 5"):
        mask_profile(mask, model, spectrum, dominant_pairs=5)


def test_a_spectrum_that_is_not_given_is_said(lab):
    model = lab.build("llama")
    found = mask_profile(random_mask(model), model)
    assert "Pass spectrum=rope_spectrum(model, prompts)" in found.unavailable["enrichment"]
    assert "frequencies" not in found.summary()


def test_weights_are_restored_to_the_bit(lab):
    model = lab.build("llama")
    before = {n: w.clone() for n, w in model.state_dict().items()}
    mask_profile(random_mask(model), model, fill="noise")
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
