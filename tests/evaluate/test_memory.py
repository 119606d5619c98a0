"""What a model was found to do with some texts is not taken for others."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import tomfisher
from tomfisher.evaluate import perplexity


def sparse_model(name, vocabulary):
    """A small model whose attention keeps four keys of a query, chosen by what the tokens are."""
    torch.manual_seed(0)
    config = tf.CONFIG_MAPPING[name](
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        index_topk=4,
        index_n_heads=2,
        index_head_dim=8,
        pad_token_id=0,
        max_position_embeddings=64,
    )
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_a_fisher_diagonal_does_not_change_a_later_perplexity(tokenizer, name):
    """Its texts can be padded without harm; those of the perplexity, which are of lengths between, cannot."""
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    texts = [" ".join(words[4:34]), " ".join(words[24:37])]
    alone = perplexity(sparse_model(name, 64), tokenizer, texts, window=16, batch_size=1, progress=False)
    model = sparse_model(name, 64)
    ids = [torch.arange(3, 3 + length) for length in (21, 3)]
    F = tomfisher.fisher_diagonal(model, [tomfisher.Sample(i, i.clone()) for i in ids], progress=False)
    found = perplexity(model, tokenizer, texts, window=16, progress=False)
    assert F.metadata["rules"]["batches"] == "padded batches"
    assert found.rules["batches"] == "batches of equal lengths"
    assert found.nll == pytest.approx(alone.nll, rel=1e-6)
