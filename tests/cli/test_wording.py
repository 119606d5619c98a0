"""--gap, --bos, --chat_template, --system_prompt and --normalize, from the command line to the numbers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

import tomfisher
from tokenizer_kinds import CHAT, tokenizer_of
from tomfisher.cli.main import main
from tomfisher.models import load_model
from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs
from tomfisher.tasks import formats

RECORDS = [
    {"prompt": "小明把球放进了", "choices": ["篮子", "盒子"], "answer": 0},
    {"prompt": "Where is the ball?\n<a>\n", "choices": ["basket", "box"], "answer": 1},
    {"prompt": "The cup is in the", "choices": ["cupboard", "box"], "answer": 0, "gap": "newline"},
    {"prompt": "The pen is in the", "choices": ["drawer", "box"], "answer": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny chat model, whose tokenizer adds a begin token."""
    path = tmp_path_factory.mktemp("chat")
    tokenizer = copy.deepcopy(tokenizer_of("byte-level with begin"))
    tokenizer.chat_template = CHAT
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    (path / "task.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS))
    (path / "text.txt").write_text("The cup is in the cupboard. " * 40)
    return path


def run(*words):
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ((), {}),
        (
            ("--gap", "none", "--bos", "no", "--normalize", "byte"),
            {"gap": "none", "bos": "no", "normalize": "byte"},
        ),
        (
            ("--chat_template", "--system_prompt", "Be short.", "--normalize", "character"),
            {"chat_template": True, "system": "Be short.", "normalize": "character"},
        ),
        (("--method", "generate", "--chat_template"), {"method": "generate", "chat_template": True}),
    ],
)
def test_evaluate_is_the_call_with_the_same_settings(folder, tmp_path, flags, settings):
    output = tmp_path / "e.json"
    run(
        "evaluate",
        "--model",
        folder,
        "--task",
        folder / "task.jsonl",
        "--dtype",
        "fp32",
        *flags,
        "--output_path",
        output,
    )
    found = json.loads(output.read_text())["baseline"]["scores"]
    loaded = load_model(str(folder))
    stories = tomfisher.tasks.load(folder / "task.jsonl", split="all", n=len(RECORDS))
    expected = tomfisher.evaluate.score(loaded.model, loaded.tokenizer, stories, progress=False, **settings)
    records = {record.id: record for record in expected.records}
    for entry in found["records"]:
        record = records[entry["id"]]
        assert (entry["correct"], entry["predicted"]) == (record.correct, record.predicted)
        if record.logprobs is not None:
            assert entry["logprobs"] == pytest.approx(record.logprobs, abs=1e-5)
    assert found["wording"] == expected.wording and found["normalize"] == expected.normalize
    assert found["max_new_tokens"] == expected.max_new_tokens


def test_the_perplexity_and_the_control_samples_take_the_same_begin_token(folder, tmp_path):
    perplexities = []
    for bos in ("auto", "yes", "no"):
        output = tmp_path / f"{bos}.json"
        run(
            *(
                "evaluate",
                "--model",
                folder,
                "--task",
                folder / "task.jsonl",
                "--control",
                folder / "text.txt",
            ),
            *("--bos", bos, "--perplexity_tokens", 64, "--perplexity_window", 16, "--output_path", output),
        )
        perplexities.append(json.loads(output.read_text())["baseline"]["perplexity"])
    assert perplexities[0] == perplexities[1] != perplexities[2]
    loaded = load_model(str(folder))
    begin = loaded.tokenizer.bos_token_id
    for bos, count in (("auto", 4), ("no", 0)):
        config = Config(
            model=str(folder), control=str(folder / "text.txt"), n_control=4, control_length=16, bos=bos
        )
        samples = Inputs(config).samples("control", loaded)
        assert sum(int(sample.input_ids[0]) == begin for sample in samples) == count


def test_fisher_samples_are_put_as_the_questions_are(folder):
    loaded = load_model(str(folder))
    (folder / "all.jsonl").write_text((folder / "task.jsonl").read_text())
    config = Config(
        model=str(folder),
        task=str(folder / "all.jsonl"),
        n_task=2,
        chat_template=True,
        system_prompt="Be short.",
    )
    stories = Inputs(config).task_stories
    samples = Inputs(config).samples("task", loaded)
    evaluator = tomfisher.evaluate.ChoiceEvaluator(
        loaded.tokenizer, stories, chat_template=True, system="Be short."
    )
    rows = {row.ids for row in evaluator.rows}
    for sample in samples:
        ids = tuple(sample.input_ids.tolist())
        assert (
            any(row[: len(ids) - 1] == ids[:-1] for row in rows)
            and ids.count(loaded.tokenizer.bos_token_id) == 1
        )


def test_commands_that_read_texts_take_the_template_too(folder, tmp_path):
    texts = tmp_path / "t.jsonl"
    texts.write_text('"Where is the ball?"\n"Where is the cup?"\n')
    tokens = []
    for flags in ((), ("--chat_template",), ("--bos", "no")):
        store = tmp_path / f"store{len(tokens)}"
        run("fisher", "--model", folder, "--texts", texts, *flags, "--output_path", store)
        tokens.append(json.loads((store / "fisher.json").read_text())["num_tokens"])
    turns = [
        len(tokenizer_of("byte-level with begin")(f"<user>\n{text}\n<assistant>\n")["input_ids"])
        for text in formats.read_texts(texts)
    ]
    assert tokens[1] == sum(turns) and tokens[2] == tokens[0] - 2
    output = tmp_path / "inside.json"
    run(
        *("analyze", "--model", folder, "--texts", texts, "--parts", "rope", "--chat_template"),
        *("--dtype", "fp32", "--output_path", output),
    )
    assert json.loads(output.read_text())["baseline"]["rope"]["tokens"] == sum(turns)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--chat_template",), "has no chat template"),
        (("--system_prompt", "Be short."), "needs the chat template"),
        (("--gap", "so"), "a text without letters and digits"),
        (("--bos", "maybe"), "bos must be one of auto, yes, no"),
        (("--normalize", "words"), "normalize must be one of"),
    ],
)
def test_settings_that_cannot_be_followed_are_one_paragraph_and_exit_2(flags, message, capsys):
    assert main(["evaluate", "--model", "testbed-llama", "--task", "testbed", "--limit", "8", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
