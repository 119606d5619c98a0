"""Tiny models, a word-level tokenizer and stories for the evaluation tests: nothing is downloaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

LANGUAGE = (
    "anna ben clara bag box basket tin full of popcorn chocolate red green apple apples thinks that is in the a "
    "looks sees label says opens closed kitchen garden puts leaves moves back search will for it ball there . ,"
)
WORDS = LANGUAGE.split()


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS, "<eos>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture(scope="session")
def bos_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_story(story, question, choices, answer, identity, condition="contents/false-belief"):
    kind = "reality" if identity.endswith("reality") else "belief"
    return SimpleNamespace(
        id=identity,
        cell=identity.rpartition("/")[0],
        condition=condition,
        group=condition if kind == "belief" else f"{condition}/reality",
        kind=kind,
        prompt=f"{story} {question}",
        choices=choices,
        answer=answer,
    )


@pytest.fixture(scope="session")
def stories():
    """Two questions per story, stories with common beginnings, and answers of one, two and three tokens."""
    found = []
    tails = (
        "anna opens the bag . anna looks in the bag and sees it .",
        "anna opens the bag . ben leaves the kitchen .",
        "the label says chocolate . anna sees the label .",
    )
    pairs = (
        ("popcorn", "chocolate"),
        ("red apples", "popcorn"),
        ("a red apple", "a red ball", "a", "chocolate"),
    )
    for a, start in enumerate(
        ("in the kitchen there is a bag full of popcorn .", "ben puts the ball in the tin .")
    ):
        for b, tail in enumerate(tails):
            choices = pairs[(a + b) % 3]
            for c, (kind, question) in enumerate(
                {"belief": "anna thinks that the bag is full of", "reality": "the bag is full of"}.items()
            ):
                found.append(
                    make_story(
                        f"{start} {tail}", question, choices, (b + c) % len(choices), f"{a}/{b}/{kind}"
                    )
                )
    return found


def build(name, vocabulary=48, **changes):
    """A tiny random model of one architecture, with weights large enough that mistakes show."""
    import transformers as t

    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    grouped = {**sizes, "num_key_value_heads": 2}
    configs = {
        "llama": lambda: t.LlamaConfig(**grouped, tie_word_embeddings=True),
        "mistral-window": lambda: t.MistralConfig(**grouped, sliding_window=7),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "opt": lambda: t.OPTConfig(**{**sizes, "pad_token_id": 1}, ffn_dim=48, word_embed_proj_dim=32),
        "mpt": lambda: t.MptConfig(vocab_size=vocabulary, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
        "gpt-neox": lambda: t.GPTNeoXConfig(**sizes),
        "mixtral": lambda: t.MixtralConfig(**grouped, num_local_experts=4, num_experts_per_tok=2),
        "mamba": lambda: t.MambaConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=2
        ),
        "jamba": lambda: t.JambaConfig(
            **grouped,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            mamba_d_state=4,
            mamba_dt_rank=2,
        ),
    }
    config = configs[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def models():
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = build(name)
        return cache[name]

    return get


@pytest.fixture
def fresh_model():
    return build


@pytest.fixture
def new_story():
    return make_story
