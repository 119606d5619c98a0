from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tomfisher import testbed
from tomfisher.models.families import describe
from tomfisher.testbed.architectures import ARCHITECTURES
from tomfisher.testbed.recipe import Recipe
from tomfisher.testbed.tokenizer import MAX_LENGTH, word_ids
from tomfisher.testbed.train import _loss, _optimiser, batches

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
    """Only RoPE has rotary pairs; shifting a text changes what an ALiBi or rotary model computes nowhere else."""
    found = describe(build(name, **SMALL))
    position = {"rope": "RoPE", "alibi": "ALiBi", "none": "none"}[found.family.position]
    assert position == ARCHITECTURES[name].positions
    assert any(layer.rotary for layer in found.attention.values()) == (position == "RoPE")


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
