"""The gate: ids, lengths, weights and texts, asked before every public function begins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import tomfisher
from tokenizer_kinds import word_level
from tomfisher import analysis, finetune
from tomfisher.fisher.plan import plan_fisher
from tomfisher.masks import SparseMask
from tomfisher.models import describe
from tomfisher.models.opened import open_model
from tomfisher.runtime.gate import check_ids, check_model, check_targets, check_trainable, why_not_finite
from tomfisher.runtime.positions import check_length, position_limit
from tomfisher.sample import Sample
from tomfisher.tasks.story import Story
from tomfisher.text_files import check_text

VOCABULARY = 44
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, **SMALL, "max_position_embeddings": 64, **changes}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**settings)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Knows four words more (ids 44 to 47) than the models have rows for."""
    words = ["<unk>", "</s>", *(f"w{i}" for i in range(42)), "new", "newer", "newest", "last"]
    return word_level(words, unk_token="<unk>", eos_token="</s>")


def story(text: str, choices: tuple[str, str] = ("w2", "w3")) -> Story:
    return Story(text, "", choices, 0, "c", 1, "asked", "{story}")


def sample(ids: list[int]) -> Sample:
    return Sample(torch.tensor(ids), torch.tensor(ids), "told")


def mask() -> SparseMask:
    name = "model.layers.0.mlp.up_proj.weight"
    return SparseMask({name: torch.arange(5)}, {name: (48, 32)})


Call = Callable[[Any, Any, str, list[int]], Any]
CALLS: dict[str, Call] = {
    "fisher_diagonal": lambda m, t, text, ids: tomfisher.fisher_diagonal(m, [sample(ids)], progress=False),
    "plan_fisher": lambda m, t, text, ids: plan_fisher(m, [sample(ids)]),
    "choice": lambda m, t, text, ids: tomfisher.evaluate.score(m, t, [story(text)], progress=False),
    "generate": lambda m, t, text, ids: tomfisher.evaluate.score(
        m, t, [story(text)], method="generate", progress=False
    ),
    "perplexity": lambda m, t, text, ids: tomfisher.evaluate.perplexity(m, t, text, progress=False),
    "attention_sinks": lambda m, t, text, ids: analysis.attention_sinks(m, [ids], progress=False),
    "rope_spectrum": lambda m, t, text, ids: analysis.rope_spectrum(m, [ids], progress=False),
    "finetune_masked": lambda m, t, text, ids: finetune.finetune_masked(
        m, mask(), [sample(ids)], steps=1, progress=False
    ),
    "finetune_lora": lambda m, t, text, ids: finetune.finetune_lora(
        m, finetune.plan_lora(m, list(mask()), 200), [sample(ids)], steps=1, progress=False
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_id_without_a_row_is_refused_by_name(name: str, tokenizer: Any) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    said = r"(told|'asked'|Document 0|Prompt 0).* holds the token id 45, .*vocabulary has 44.*resize_token"
    with pytest.raises(ValueError, match=said):
        CALLS[name](llama(), tokenizer, "w1 newer w2", [2, 45, 3])


def test_an_answer_without_a_row_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"'asked' holds the label 47, .*output layer has 44"):
        tomfisher.evaluate.score(llama(), tokenizer, [story("w1 w4", ("last", "w3"))], progress=False)


@pytest.mark.parametrize("name", CALLS)
def test_more_tokens_than_positions_are_refused(name: str, tokenizer: Any) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    model = llama(max_position_embeddings=8)
    if name == "perplexity":  # whose window has to fit
        with pytest.raises(ValueError, match=r"A window has 9 tokens, .* positions for 8. Use window=8"):
            tomfisher.evaluate.perplexity(model, tokenizer, "w1 " * 12, window=9, progress=False)
        return
    with pytest.raises(ValueError, match=r"\d+ tokens, but the model has positions for 8"):
        CALLS[name](model, tokenizer, "w1 " * 12, [2] * 12)


@pytest.mark.parametrize("ids", [[1, -3, 2], torch.tensor([1, -3]), [1, -100]])
def test_negative_ids_are_refused(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"Text 0 holds the token id -(3|100); ids begin at 0"):
        check_ids(llama(), [ids], "Text")


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([1.0, 2.0], "float"),
        (torch.tensor([1.0]), r"torch\.float32"),
        ([True, False], "bool"),
        (torch.tensor([True]), r"torch\.bool"),
        (["a"], "str"),
        ("ab", "str"),
        ([[1]], "list"),
        ([None], "NoneType"),
        ([torch.tensor(1.0)], r"torch\.float32"),
    ],
)
def test_ids_that_are_no_integers_are_refused(ids: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"Text 0 holds ids of {kind}; token ids are integers"):
        check_ids(llama(), [ids], "Text")


def test_a_matrix_of_ids_is_no_text() -> None:
    with pytest.raises(ValueError, match=r"Text 0 has ids of shape \(2, 3\)"):
        check_ids(llama(), [torch.ones(2, 3, dtype=torch.int64)], "Text")


def test_ids_of_any_integer_kind_are_taken() -> None:
    import numpy as np

    model = llama()
    check_ids(
        model, [[0, 43], torch.tensor([43], dtype=torch.int32), np.array([43]), [np.int64(43)], []], "T"
    )


def test_an_output_layer_smaller_than_the_embedding_limits_the_labels_alone() -> None:
    model = llama()
    model.lm_head = nn.Linear(32, 40, bias=False)
    check_ids(model, [[43]], "Text")
    check_targets(model, [[39]], "Text")
    with pytest.raises(ValueError, match="Text 0 holds the label 40, but the model's output layer has 40"):
        check_targets(model, [[40]], "Text")
    with pytest.raises(ValueError, match=r"sample 0 \(told\) holds the label 41"):
        tomfisher.fisher_diagonal(model, [sample([41, 41])], progress=False)


def test_an_embedding_that_was_resized_counts_as_it_is() -> None:
    model = llama()
    model.resize_token_embeddings(48)
    check_ids(model, [[47]], "Text")


POSITIONS: dict[str, Callable[[], Any]] = {
    "roberta": lambda: tf.RobertaConfig(
        vocab_size=50, **SMALL, max_position_embeddings=18, pad_token_id=1, is_decoder=True
    ),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(
        vocab_size=50, **SMALL, max_position_embeddings=18, pad_token_id=1, is_decoder=True
    ),
    "bert": lambda: tf.BertConfig(vocab_size=50, **SMALL, max_position_embeddings=16, is_decoder=True),
    "opt": lambda: tf.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        word_embed_proj_dim=32,
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=1
    ),
    "bart": lambda: tf.BartConfig(
        vocab_size=50,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
    ),
    "biogpt": lambda: tf.BioGptConfig(vocab_size=50, **SMALL, max_position_embeddings=16),
    "gptj": lambda: tf.GPTJConfig(
        vocab_size=50,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        rotary_dim=8,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "ctrl": lambda: tf.CTRLConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, dff=48),
    "mpt": lambda: tf.MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=16),
    "whisper": lambda: tf.WhisperConfig(
        vocab_size=50,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        max_target_positions=16,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
        decoder_start_token_id=2,
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_the_limit_is_the_longest_text_that_runs(name: str) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(POSITIONS[name]()).train()
    assert position_limit(model) == 16
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad():
        assert model(input_ids=torch.full((1, 16), 3)).logits.shape[1] == 16
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 17), 3))
    check_length(model, 16, "Text")
    with pytest.raises(
        ValueError, match=r"Text has 17 tokens, but the model has positions for 16\. Shorten it"
    ):
        check_length(model, 17, "Text")


def test_a_table_that_was_enlarged_is_asked_again() -> None:
    model = tf.AutoModelForCausalLM.from_config(POSITIONS["gpt2"]()).eval()
    assert position_limit(model) == 16
    model.transformer.wpe = nn.Embedding(24, 32)
    assert position_limit(model) == 24  # whatever its config says


@pytest.mark.parametrize(
    "config",
    [
        tf.MistralConfig(
            vocab_size=50, **SMALL, num_key_value_heads=2, max_position_embeddings=64, sliding_window=8
        ),
        tf.LlamaConfig(
            vocab_size=50,
            **SMALL,
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 16,
            },
        ),
    ],
    ids=["sliding window", "yarn"],
)
def test_a_rotary_model_has_the_positions_of_its_config(config: Any) -> None:
    assert position_limit(tf.AutoModelForCausalLM.from_config(config)) == 64


def test_a_model_without_positions_has_no_limit() -> None:
    config = tf.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = tf.AutoModelForCausalLM.from_config(config)
    assert position_limit(model) is None
    check_length(model, 10**9, "Text")


# What is no model, or one without numbers.


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: "gpt2", TypeError, "must be a causal language model of transformers, got str"),
        (lambda: nn.Linear(2, 2), TypeError, "must be a causal language model of transformers, got Linear"),
        (lambda: nn.DataParallel(llama()), TypeError, r"wrapped in DataParallel.*model\.module"),
        (lambda: torch.compile(llama()), TypeError, r"Pass model\._orig_mod"),
        (
            lambda: tf.T5ForConditionalGeneration(
                tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            TypeError,
            "has an encoder and a decoder",
        ),
        (lambda: llama().model, TypeError, "LlamaModel has no output layer"),
        (lambda: llama().to("meta"), ValueError, "are on the meta device: they hold no values"),
    ],
)
def test_what_is_no_model_is_refused(make: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        check_model(make())


@pytest.mark.parametrize("name", CALLS)
def test_a_model_without_values_is_refused_everywhere(name: str, tokenizer: Any) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match="are on the meta device"):
        CALLS[name](llama().to("meta"), tokenizer, "w1 w2 w3", [2, 3, 4])


@pytest.mark.parametrize("name", [*CALLS, "describe", "perturb", "analyze"])
def test_a_model_with_weights_in_its_files_is_refused_everywhere(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    llama().save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    opened.load(opened.outer)
    others: dict[str, Call] = {
        "describe": lambda m, t, text, ids: describe(m),
        "perturb": lambda m, t, text, ids: tomfisher.perturb(m, mask()),
        "analyze": lambda m, t, text, ids: analysis.analyze(m, [ids], progress=False),
    }
    with pytest.raises(ValueError, match=r"(are|is still) in (their|its) files?: open_model reads"):
        (CALLS | others)[name](opened.model, tokenizer, "w1 w2 w3", [2, 3, 4])


def test_what_is_loaded_can_be_perturbed(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    with opened.loaded(mask()):
        weight = opened.model.get_parameter(*mask())
        before = weight.clone()
        with tomfisher.perturb(opened.model, mask(), fill="zero"):
            assert not weight.flatten()[:5].any()
        assert torch.equal(weight, before)


def offloaded(kind: str, folder: Path) -> Any:
    accelerate = pytest.importorskip("accelerate")
    cpu, model = torch.device("cpu"), llama()
    if kind == "cpu":
        return accelerate.cpu_offload(model, execution_device=cpu)
    if kind == "disk":
        return accelerate.disk_offload(model, str(folder), execution_device=cpu)
    if kind == "part":
        places: dict[str, Any] = {"model.layers.1": "disk", "model.layers.0": "cpu", "lm_head": "cpu"}
        places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
        return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))
    return accelerate.cpu_offload_with_hook(model, execution_device=cpu)[0]


OFFLOADED = ["cpu", "disk", "part", "whole"]
WRITES = ["fisher_diagonal", "plan_fisher", "finetune_masked", "finetune_lora"]


@pytest.mark.parametrize("kind", OFFLOADED)
@pytest.mark.parametrize("name", WRITES)
def test_offloaded_weights_have_no_gradient_to_square(
    name: str, kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"needs all weights in memory, but accelerate offloads .*Load it"):
        CALLS[name](offloaded(kind, tmp_path), tokenizer, "w1 w2 w3", [2, 3, 4])


@pytest.mark.parametrize("kind", OFFLOADED)
@pytest.mark.parametrize("name", [name for name in CALLS if name not in WRITES])
def test_offloaded_weights_are_measured_like_any_others(
    name: str, kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    found, plain = (
        CALLS[name](model, tokenizer, "w1 w2 w3", [2, 3, 4]) for model in (offloaded(kind, tmp_path), llama())
    )
    assert str(found.to_dict()) == str(plain.to_dict())


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloaded_weights_cannot_be_perturbed(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offload"):
        tomfisher.perturb(offloaded(kind, tmp_path), mask())


class Packed(nn.Module):
    """A linear layer as the libraries of 4-bit weights have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 48, dtype=torch.int32))


def by_codes(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)


def by_eight_bits(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def by_buffer(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = Packed()


def by_pytorch(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model.model.layers[0], {nn.Linear}, inplace=True)


@pytest.mark.parametrize("quantise", [by_codes, by_eight_bits, by_buffer, by_pytorch])
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*")
def test_quantised_weights_have_no_fisher(quantise: Callable[[Any], None]) -> None:
    model = llama()
    quantise(model)
    with pytest.raises(TypeError, match=r"A Fisher diagonal needs .*layers\.0.* are quantised\. Load"):
        tomfisher.fisher_diagonal(model, [sample([2, 3, 4])], progress=False)


def test_weights_made_in_inference_mode_are_refused_where_gradients_are_needed(tokenizer: Any) -> None:
    with torch.inference_mode():
        model = llama()
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode"):
        check_trainable(model, "This")
    plain = CALLS["choice"](llama(), tokenizer, "w1 w2", []).to_dict()
    assert CALLS["choice"](model, tokenizer, "w1 w2", []).to_dict() == plain
    with tomfisher.perturb(model, mask(), fill="zero"):
        assert CALLS["choice"](model, tokenizer, "w1 w2", []).to_dict() != plain
    assert CALLS["choice"](model, tokenizer, "w1 w2", []).to_dict() == plain


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CALLS)
def test_a_broken_weight_is_named(name: str, value: float, tokenizer: Any) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft")
    model = llama()
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = value
    said = r"model\.layers\.1\.mlp\.down_proj\.weight"
    with pytest.raises((ValueError, FloatingPointError), match=said):
        CALLS[name](model, tokenizer, "w1 w2 w3", [2, 3, 4])


def test_where_no_weight_is_broken_the_dtype_is_named() -> None:
    model = llama()
    model.register_buffer("causal_mask", torch.full((2, 2), -torch.inf))
    assert "wider" in why_not_finite(model) or "float32" in why_not_finite(model)
    broken = copy.deepcopy(model)
    broken.register_buffer("scale", torch.tensor(torch.nan))
    assert "scale holds NaN" in why_not_finite(broken)


@pytest.mark.parametrize("text", ["a \ud83d b", "\udc80", "caf\udce9"])
def test_half_a_surrogate_pair_is_no_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"This is not text: character \d+ is '.u[dD]"):
        check_text(text, "This")


@pytest.mark.parametrize("text", ["", "plain", "naïve", "日本語", "\U0001f600", "a\x00b"])
def test_any_other_text_is_one(text: str) -> None:
    check_text(text, "This")


def test_no_string_is_no_text() -> None:
    with pytest.raises(TypeError, match="This must be a string, got a value of type bytes"):
        check_text(b"abc", "This")
