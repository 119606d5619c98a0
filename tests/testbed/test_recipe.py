from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tomfisher import testbed
from tomfisher.models.families import describe
from tomfisher.runtime.scan import MODULE_OF
from tomfisher.testbed.batches import batches
from tomfisher.testbed.recipe import ARCHITECTURES, Recipe
from tomfisher.testbed.tokenizer import MAX_LENGTH, word_ids
from tomfisher.testbed.train import _loss, _optimiser

SMALL = {"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "stories": 2, "general_tokens": 32}


def build(name, **sizes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Recipe.of(name, **sizes).config(), dtype=torch.float32)


def test_what_is_shipped_can_be_trained():
    assert set(testbed.ARCHITECTURES) <= set(ARCHITECTURES)
    assert testbed.available() == ("testbed-llama", *(f"testbed2-{name}" for name in testbed.ARCHITECTURES))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configuration_builds_a_model_of_at_most_four_megabytes(name, tmp_path):
    model = build(name)
    config = model.config
    assert config.model_type == name and config.vocab_size == len(word_ids())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 4_000_000
    assert AutoConfig.from_pretrained(tmp_path).model_type == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_positions_enter_as_the_table_says(name):
    """Only RoPE has rotary pairs."""
    found = describe(build(name, **SMALL))
    position = {"rope": "RoPE", "alibi": "ALiBi", "none": "none"}[found.position]
    assert position == ARCHITECTURES[name].positions
    assert any(layer.rotary for layer in found.attention.values()) == (position == "RoPE")


def with_gap(model, ids, at, gap=5):
    """Logits of a text with masked padding before token `at`, read where its tokens stand."""
    lengths = (at, gap, ids.shape[1] - at)
    padded = torch.cat([ids[:, :at], torch.zeros(1, gap, dtype=torch.int64), ids[:, at:]], dim=1)
    mask = torch.cat([torch.full((1, n), float(i != 1)) for i, n in enumerate(lengths)], dim=1).long()
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, use_cache=False).logits
    return logits[:, mask[0].bool()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shifted_text_is_computed_alike_and_a_stretched_one_is_not(name):
    """Positions enter as distances, or not at all: only what lies between two tokens can matter."""
    model = build(name, **SMALL).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # attention far from uniform, so that a difference is seen
    ids = torch.randint(5, len(word_ids()), (1, 12), generator=torch.Generator().manual_seed(1))
    plain = with_gap(model, ids, 0, gap=0)
    slack = 1e-4 * float(plain.abs().max())
    assert float((with_gap(model, ids, 0) - plain).abs().max()) <= slack
    stretched = with_gap(model, ids, 6)
    assert float((stretched[:, :6] - plain[:, :6]).abs().max()) <= slack
    if name not in MODULE_OF:  # the state of a scan also forgets during a gap
        assert float((stretched[:, 6:] - plain[:, 6:]).abs().max()) > 30 * slack


def test_the_attention_of_jamba_knows_no_order():
    attention = describe(build("jamba", **{**SMALL, "layers": 4})).attention[1].module.eval()
    hidden = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4, 7])
    with torch.no_grad():
        last, other = (attention(x, attention_mask=None)[0][:, -1] for x in (hidden, hidden[:, order]))
    torch.testing.assert_close(last, other, rtol=1e-4, atol=1e-6)


def test_jamba_has_attention_and_mamba_layers():
    found = describe(build("jamba"))
    assert len(found.layers) == 4 and sorted(found.attention) == [1, 3]


def test_qwen2_groups_its_queries_and_takes_biases():
    found = describe(build("qwen2")).attention[0]
    assert (found.heads, found.kv_heads) == (4, 2)
    assert found.module.q_proj.bias is not None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_longest_text_fits(name):
    logits = build(name, **SMALL)(torch.ones(1, MAX_LENGTH, dtype=torch.int64)).logits
    assert logits.shape == (1, MAX_LENGTH, len(word_ids())) and bool(logits.isfinite().all())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_its_gradient_reach_every_weight(name):
    model = build(name, **SMALL)
    story, _ = next(batches(Recipe.of(name, True, **SMALL)))
    logits = model(story.input_ids).logits[:, :-1]
    labels = story.labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
    )
    expected = losses.sum() / (labels != -100).sum() + 2.0 * losses[story.answers[:, 1:]].mean()
    loss = _loss(model, story, answer_weight=2.0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(bool(weight.grad.any()) for weight in model.parameters())


def test_state_matrices_and_vectors_do_not_decay():
    model = build("jamba", **SMALL)
    matrices, others = (group["params"] for group in _optimiser(model, Recipe()).param_groups)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)].rsplit(".", 1)[-1] for weight in others} == {"weight", "bias", "A_log", "D"}
    assert all(weight.ndim > 1 and not names[id(weight)].endswith("A_log") for weight in matrices)
    assert len(matrices) + len(others) == len(names)


def test_a_recipe_is_the_default_the_table_and_then_what_is_given():
    assert Recipe.of("llama") == Recipe()
    assert Recipe.of("mpt").learning_rate == ARCHITECTURES["mpt"].settings["learning_rate"]
    assert Recipe.of("mpt", learning_rate=0.5).learning_rate == 0.5
    assert Recipe.of("llama", second_order=True).steps > Recipe().steps


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match=r"llama, qwen2, mpt, mamba, jamba, got 'gpt2'"):
        Recipe(architecture="gpt2")


def test_rate_warms_up_and_decays_to_a_tenth():
    recipe = Recipe(steps=1000, warmup=50, learning_rate=1.0)
    assert recipe.rate(0) == pytest.approx(0.02)
    assert recipe.rate(50) == pytest.approx(1.0)
    assert recipe.rate(1000) == pytest.approx(0.1)
    assert all(recipe.rate(step) > recipe.rate(step + 1) for step in range(50, 1000, 50))


@pytest.mark.parametrize(
    "setting", [{"steps": 0}, {"stories": 0}, {"general_tokens": 1}, {"log_every": 0}, {"slips": 0.5}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Recipe(**setting)
