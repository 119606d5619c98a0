"""What the model marks as fixed, as against what the user froze."""

from __future__ import annotations

import pytest
import transformers as tf
from torch import nn

from tomfisher.fisher.selection import left_out, select_parameters
from tomfisher.models.fixed import fixed_parameters


def _roformer() -> nn.Module:
    config = tf.RoFormerConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, is_decoder=True,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config)


def _pegasus() -> nn.Module:
    config = tf.PegasusConfig(
        vocab_size=64, d_model=16, decoder_ffn_dim=24, decoder_layers=1, decoder_attention_heads=2,
        max_position_embeddings=32, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    return tf.PegasusForCausalLM(config)


TABLES = {
    "roformer.encoder.embed_positions.weight": _roformer,
    "model.decoder.embed_positions.weight": _pegasus,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_sine_waves_is_left_out_of_all(name: str) -> None:
    model = TABLES[name]()
    assert fixed_parameters(model) == [name] == left_out(model, "all")
    chosen = select_parameters(model, "all")
    assert name not in chosen and len(chosen) == len(list(model.parameters())) - 1
    assert name in select_parameters(model, [name, "*.weight"])  # a pattern takes what it names


@pytest.mark.parametrize("frozen", ["everything", "one layer"])
def test_what_the_user_froze_stays(frozen: str) -> None:
    model = _roformer()
    (model if frozen == "everything" else model.roformer.encoder.layer).requires_grad_(False)
    assert fixed_parameters(model) == ["roformer.encoder.embed_positions.weight"]
    assert len(select_parameters(model, "all")) == len(list(model.parameters())) - 1


def test_a_model_that_cannot_be_built_anew_has_none() -> None:
    assert fixed_parameters(nn.Linear(2, 2).requires_grad_(False)) == []
