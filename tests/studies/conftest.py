"""A study small enough to run in seconds: a random Llama over a few words, its task and its text."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tokenizer_kinds import word_level

TEXT = """<unk> Complete the following story : . , Anna Ben Cleo Dan opens a box bag of tea salt rice nuts
label says she he thinks it is full there and then walks home sees looks near old red"""
WORDS = TEXT.split()
NAMES = ["Anna", "Ben", "Cleo", "Dan"]
THINGS = ["tea", "salt", "rice", "nuts"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(set(WORDS)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_level(dict.fromkeys(WORDS), unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """60 items of two questions each, in two conditions."""
    choose = random.Random(3)
    records = []
    for i in range(60):
        name, (thing, other) = choose.choice(NAMES), choose.sample(THINGS, 2)
        condition = "contents/false-belief" if i % 2 else "contents/informed"
        story = (
            f"{name} opens a {choose.choice(['box', 'bag'])} of {thing} . the label says {other} . "
            + " ".join(choose.choices(WORDS[8:], k=6))
        )
        for order, question in ((1, f"{name} thinks it is full of"), (0, "it is full of")):
            records.append(
                {
                    "story": story,
                    "question": question,
                    "choices": [thing, other],
                    "answer": order if i % 2 else 0,
                    "condition": condition,
                    "order": order,
                    "id": f"item{i:03d}/{order}",
                }
            )
    file = tmp_path_factory.mktemp("task") / "task.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return file


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    choose = random.Random(4)
    paragraphs = [" ".join(choose.choices(WORDS[8:], k=60)) + " ." for _ in range(60)]
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(paragraphs))
    return file


@pytest.fixture
def tiny_settings(tiny_model, tiny_task, tiny_text, tmp_path):
    """Settings of a study of 17 points that takes a second or two."""
    return {
        "model": str(tiny_model),
        "task": str(tiny_task),
        "control": str(tiny_text),
        "output_path": str(tmp_path / "run"),
        "n_task": 15,
        "n_control": 20,
        "control_length": 24,
        "kappas": [0.01, 0.05],
        "random_seeds": 5,
        "limit": 40,
        "perplexity_tokens": 400,
        "perplexity_window": 64,
        "eval_dtype": "fp32",
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """`once(run, settings)`: the settings, with what an unbroken run leaves in their folder; it runs once a module."""
    kept = tmp_path_factory.mktemp("kept") / "run"

    def finished(run, settings):
        if kept.exists():
            shutil.copytree(kept, settings["output_path"])
        else:
            run(settings)
            shutil.copytree(settings["output_path"], kept)
        return settings

    return finished
