"""Tiny models, a word-level tokenizer and stories for the evaluation tests: nothing is downloaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tokenizer_kinds import word_level

LANGUAGE = (
    "anna ben clara bag box basket tin full of popcorn chocolate red green apple apples thinks that is in the a "
    "looks sees label says opens closed kitchen garden puts leaves moves back search will for it ball there . ,"
)
WORDS = LANGUAGE.split()


@pytest.fixture(scope="session")
def tokenizer():
    return word_level(["<unk>", *WORDS, "<eos>"], unk_token="<unk>", eos_token="<eos>")


@pytest.fixture(scope="session")
def bos_tokenizer():
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return word_level(["<unk>", "<s>", "</s>", *WORDS], "<s> $A </s>", **names)


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


NAMES = {
    "llama": "llama-tied",
    "mistral-window": "mistral",
}  # what the tests call families of the common table


@pytest.fixture(scope="session")
def fresh_model(tiny_config):
    """`fresh_model(name, vocabulary=48, **changes)`: a random model with weights so large that mistakes show."""

    def build(name, vocabulary=48, **changes):
        import transformers

        config = tiny_config(NAMES.get(name, name), vocabulary)
        if name == "mistral-window":
            changes = {"sliding_window": 7, **changes}
        for key, value in {"bos_token_id": None, "eos_token_id": None, **changes}.items():
            setattr(config, key, value)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.2)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def models(fresh_model):
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = fresh_model(name)
        return cache[name]

    return get


@pytest.fixture
def new_story():
    return make_story
