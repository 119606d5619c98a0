from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from tiny_models import SMALLEST, smallest_llama
from tomfisher.models import load_model
from tomfisher.models.loading_report import check_complete

IDS = torch.arange(8)[None]
DOWN = "model.layers.1.mlp.down_proj.weight"


def llama(**more):
    return smallest_llama(**{"tie_word_embeddings": False, **more})


def mixtral():
    config = tf.MixtralConfig(**SMALLEST, num_key_value_heads=1, num_local_experts=4)
    return tf.MixtralForCausalLM(config).eval()


def gpt2(**more):
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, **more)).eval()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def loads_as(folder, model, **identity):
    loaded = load_model(folder.name, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=0)
    return loaded


WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "each layer compiled": lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
    "compiled twice": lambda key: "_orig_mod." + key.replace(".mlp.", ".mlp._orig_mod."),
    "data parallel": lambda key: f"module.{key}",
    "compiled, data parallel": lambda key: f"_orig_mod.module.{key}",
    "data parallel, compiled": lambda key: f"module._orig_mod.{key}",
    "fsdp": lambda key: f"_fsdp_wrapped_module.{key}",
    "checkpointed": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=list(WRAPPED))
@pytest.mark.parametrize("build", [llama, mixtral], ids=["llama", "mixtral"])
def test_names_of_wrappers_are_taken_out_of_the_keys(saved, tmp_path, wrapped, build):
    model = build()
    folder = saved(model)
    folder.edit_weights(lambda weights: {wrapped(key): value for key, value in weights.items()})
    loaded = loads_as(folder, model)
    assert set(loaded.identity["loading"]["stripped"]) <= {
        *("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    }
    loaded.model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "plain")
    assert (
        load_file(tmp_path / "again/model.safetensors").keys()
        == load_file(tmp_path / "plain/model.safetensors").keys()
    )


def test_a_whole_model_says_nothing_special(saved):
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "loading" not in loads_as(saved(model), model).identity


LACKING = {
    "one matrix": (llama, lambda key: key == DOWN, "1 of its 21 weights"),
    "a norm": (llama, lambda key: key == "model.norm.weight", "model.norm.weight"),
    "the embedding": (llama, lambda key: "embed_tokens" in key, "model.embed_tokens.weight"),
    "the untied head": (llama, lambda key: "lm_head" in key, "head is missing. Complete the files"),
    "the untied head of a type that ties": (
        lambda: gpt2(tie_word_embeddings=False),
        lambda key: "lm_head" in key,
        '"tie_word_embeddings": true',
    ),
    "a whole layer": (llama, lambda key: ".layers.0." in key, "9 of its 21 weights"),
    "one expert": (mixtral, lambda key: "layers.1" in key and "experts.2" in key, "another shape"),
    "half of an expert": (mixtral, lambda key: "layers.1" in key and "experts.2.w1" in key, "experts"),
    "a bias": (gpt2, lambda key: key == "transformer.h.1.mlp.c_fc.bias", "transformer.h.1.mlp.c_fc.bias"),
    "everything": (llama, lambda key: True, "21 of its 21 weights"),
}


@pytest.mark.parametrize(("build", "absent", "message"), LACKING.values(), ids=list(LACKING))
def test_a_checkpoint_that_lacks_weights_is_refused(saved, build, absent, message):
    folder = saved(build())
    folder.edit_weights(lambda weights: {k: v for k, v in weights.items() if not absent(k)})
    with pytest.raises(ValueError, match=r"random|missing or have another shape") as caught:
        load_model(folder.name, device="cpu")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


CONFIGS = {
    "a layer more": ({"num_hidden_layers": 3}, "9 of its 30 weights are not in its files"),
    "a larger vocabulary": (
        {"vocab_size": 20},
        r"model.embed_tokens.weight \(16, 16\) where config.json asks \(20, 16\)",
    ),
    "wider layers": ({"intermediate_size": 48}, "6 of its 21 weights have another shape"),
    "more key heads": ({"num_key_value_heads": 2}, "4 of its 21 weights have another shape"),
    "biases": ({"mlp_bias": True}, "6 of its 27 weights are not in its files"),
    "a layer less": ({"num_hidden_layers": 1}, "hold 9 weights that the model has no place for"),
}


@pytest.mark.parametrize(("values", "message"), CONFIGS.values(), ids=list(CONFIGS))
def test_a_config_of_another_model_is_refused(saved, values, message):
    folder = saved(llama())
    folder.edit_config(**values)
    with pytest.raises(ValueError, match=message):
        load_model(folder.name, device="cpu")


@pytest.mark.parametrize("build", [llama, gpt2], ids=["llama", "gpt2"])
def test_layers_of_a_checkpoint_without_head_are_not_dropped_either(saved, build):
    model = build()
    body = model.base_model_prefix
    layers = {"llama": "layers", "gpt2": "h"}[model.config.model_type]
    folder = saved(model)

    def bare(weights):
        return {key.removeprefix(f"{body}."): value for key, value in weights.items()}

    def longer(weights):
        last = {key: value for key, value in weights.items() if f"{layers}.1." in key}
        return {**weights, **{k.replace(f"{layers}.1.", f"{layers}.2."): v.clone() for k, v in last.items()}}

    folder.edit_weights(bare)
    loads_as(folder, model)
    folder.edit_weights(longer)
    with pytest.raises(ValueError, match="no place for"):
        load_model(folder.name, device="cpu")


DROPPED = {
    "a bias of a layer": "model.layers.0.self_attn.q_proj.bias",
    "a norm within a layer": "model.layers.1.self_attn.q_norm.weight",
    "a bias of the last norm": "model.norm.bias",
    "a bias of the head": "lm_head.bias",
    "an adapter in a layer": "model.layers.0.mlp.up_proj.lora_A.weight",
}


@pytest.mark.parametrize("key", DROPPED.values(), ids=list(DROPPED))
def test_weights_of_the_decoder_that_the_model_does_not_take_are_refused(saved, key):
    folder = saved(llama())
    folder.edit_weights(lambda weights: {**weights, key: torch.ones(16)})
    with pytest.raises(ValueError, match="no place for") as caught:
        load_model(folder.name, device="cpu")
    assert key in str(caught.value)


OUTSIDE = ["visual.blocks.0.attn.qkv.weight", "model.image_newline", "v_head.summary.weight", "mtp.fc.weight"]


@pytest.mark.parametrize("key", OUTSIDE)
def test_weights_beside_the_decoder_are_said_and_recorded(saved, key):
    model = llama()
    folder = saved(model)
    folder.edit_weights(lambda weights: {**weights, key: torch.ones(16)})
    with pytest.warns(UserWarning, match="no part of its text model"):
        loaded = loads_as(folder, model)
    assert loaded.identity["loading"]["left_out"] == {"number": 1, "first": [key]}


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (llama, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (llama, "model.layers.0.self_attn.rotary_emb.cos_cached"),
        (gpt2, "transformer.h.0.attn.masked_bias"),
        (gpt2, "transformer.h.0.attn.bias"),
    ],
)
def test_fixed_tables_of_old_checkpoints_pass(saved, build, key):
    model = build()
    folder = saved(model)
    folder.edit_weights(lambda weights: {**weights, key: torch.ones(1, 1, 4, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loads_as(folder, model)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_head_needs_one_of_its_two_names(saved, kept):
    model = llama(tie_word_embeddings=True)
    folder = saved(model)
    other = {"model.embed_tokens.weight", "lm_head.weight"} - {kept}
    matrix = model.lm_head.weight.detach().clone()
    folder.edit_weights(lambda w: {k: v for k, v in w.items() if k not in other} | {kept: matrix})
    loads_as(folder, model)


def test_a_tied_pair_of_which_both_are_missing_is_refused(saved):
    folder = saved(llama(tie_word_embeddings=True))
    folder.edit_weights(
        lambda weights: {k: v for k, v in weights.items() if "embed" not in k and "head" not in k}
    )
    with pytest.raises(ValueError, match="not in its files"):
        load_model(folder.name, device="cpu")


def test_shards_are_read_whole_or_refused(saved):
    model = llama()
    folder = saved(model, max_shard_size=4096)
    shards = sorted(folder.path.glob("model-*.safetensors"))
    assert len(shards) > 2
    loads_as(folder, model)
    index = folder.path / "model.safetensors.index.json"
    whole = index.read_text()
    listed = json.loads(whole)
    listed["weight_map"] = {k: v for k, v in listed["weight_map"].items() if v != shards[1].name}
    index.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="is not whole"):
        load_model(folder.name, device="cpu")
    index.write_text(whole)
    shards[1].unlink()
    with pytest.raises(ValueError, match=shards[1].name):
        load_model(folder.name, device="cpu")


def test_a_pickled_checkpoint_is_held_to_the_same(saved):
    model = llama()
    folder = saved(model)
    (folder.path / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder.path / "pytorch_model.bin")
    loads_as(folder, model)
    torch.save({k: v for k, v in model.state_dict().items() if k != DOWN}, folder.path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=DOWN):
        load_model(folder.name, device="cpu")


def test_layers_that_predict_further_tokens_are_left_out(saved):
    model = llama()
    folder = saved(model)
    folder.edit_config(num_nextn_predict_layers=1)
    folder.edit_weights(
        lambda w: {
            **w,
            **{k.replace("layers.1", "layers.2"): v.clone() for k, v in w.items() if "layers.1" in k},
        }
    )
    with pytest.warns(UserWarning, match="left out"):
        loads_as(folder, model)


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model = llama()
    info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    with pytest.raises(ValueError, match="weights have no values"):
        check_complete(model, info, "m")


@pytest.mark.parametrize("kind", [tf.LlamaForSequenceClassification, tf.LlamaModel, tf.GPT2Model])
def test_a_model_without_a_head_is_not_said_to_be_tied(saved, kind):
    config = gpt2().config if kind is tf.GPT2Model else llama().config
    config.tie_word_embeddings, config.pad_token_id = False, 0
    folder = saved(kind(config))
    with pytest.raises(
        ValueError, match=f"those of a {kind.__name__}, which has no language-model head"
    ) as caught:
        load_model(folder.name, device="cpu")
    assert "tie_word_embeddings" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_matrices_in_integers_that_nothing_explains_are_refused(saved, kind):
    folder = saved(llama())
    folder.edit_weights(
        lambda weights: {k: (v * 100).to(kind) if v.ndim == 2 else v for k, v in weights.items()}
    )
    with pytest.raises(ValueError, match=r"^Model .* stores 16 matrices in integers.*no quantization_config"):
        load_model(folder.name, device="cpu")


def test_a_folder_that_holds_two_models_is_refused(saved, tmp_path):
    folder, other = saved(llama()), saved(llama(), "other", max_shard_size=4096)
    for file in other.path.glob("model*"):
        (folder.path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="is there twice"):
        load_model(folder.name, device="cpu")


def test_matrices_that_are_zero_throughout_are_said_and_recorded(saved):
    model = llama()
    folder = saved(model)
    with torch.no_grad():
        model.get_parameter(DOWN).zero_()
    folder.edit_weights(lambda weights: {**weights, DOWN: torch.zeros_like(weights[DOWN])})
    with pytest.warns(UserWarning, match=f"1 weight matrices .* are all zero, {DOWN}"):
        loaded = loads_as(folder, model)
    assert loaded.identity["loading"]["zero"] == {"number": 1, "first": [DOWN]}
