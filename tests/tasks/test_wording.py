"""How prompts are put: begin tokens, the seam before an answer, chat templates, in every kind of tokenizer."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import tomfisher
from tokenizer_kinds import CHAT, KINDS, tokenizer_of
from tomfisher.sample import IGNORED
from tomfisher.tasks import formats
from tomfisher.tasks.story import Story
from tomfisher.tasks.wording import Wording
from tomfisher.tokens import encode_text, split_continuation

WITH_BEGIN = [kind for kind in KINDS if kind != "byte-level"]
SEAMS = [
    ("The cup is in the", " cupboard"),
    ("小明把球放进了", "篮子"),
    ("ボールは", "箱"),
    ("ลูกบอลอยู่ใน", "ตะกร้า"),
    ("Where is the ball?\n<a>\n", "basket"),
    ("Where is the ball? ", "basket"),
    ("the cup", "board"),
]


def story(prompt: str, choices: tuple[str, str] = ("basket", "box"), **more: Any) -> Story:
    return Story(prompt, "", choices, 0, "task", 1, "a/0/belief", "{story}", **more)


def chat(kind: str = "byte-level with begin", template: str = CHAT) -> Any:
    tokenizer = copy.deepcopy(tokenizer_of(kind, end=True))
    tokenizer.chat_template = template
    return tokenizer


def supervised(sample: Any) -> list[int]:
    return sample.labels[sample.labels != IGNORED].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "continuation"), SEAMS)
def test_both_sides_of_a_seam_are_the_encoding_of_the_whole(
    kind: str, prompt: str, continuation: str
) -> None:
    plain, ending = tokenizer_of(kind), tokenizer_of(kind, end=True)
    before, after = split_continuation(ending, prompt, continuation)
    assert before + after == plain(prompt + continuation)["input_ids"]
    offsets = plain(prompt + continuation, return_offsets_mapping=True)["offset_mapping"]
    assert all(end <= len(prompt) for _, end in offsets[: len(before)])
    assert offsets[len(before)][1] > len(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tokenizer_puts_behind_a_text_is_nowhere(kind: str) -> None:
    ending = tokenizer_of(kind, end=True)
    text = "The cup is in the cupboard"
    assert encode_text(ending, text) == tokenizer_of(kind)(text)["input_ids"]
    for mode in ("answer", "last", "all"):
        (sample,) = tomfisher.encode(ending, [("The cup is in the", "cupboard")], supervise=mode)
        assert ending.eos_token_id not in sample.input_ids.tolist()


@pytest.mark.parametrize("kind", WITH_BEGIN)
def test_a_text_that_brings_its_begin_token_gets_no_second(kind: str) -> None:
    tokenizer = tokenizer_of(kind, end=True)
    begin = tokenizer.bos_token_id
    brought = f"{tokenizer.bos_token}The cup is in the"
    for bos in ("auto", "yes", "no"):
        before, after = split_continuation(tokenizer, brought, " cupboard", bos)
        assert (before + after).count(begin) == 1 and before[0] == begin
        (sample,) = tomfisher.encode(tokenizer, [(brought, "cupboard")], bos=bos)
        assert sample.input_ids.tolist() == before + after
        assert encode_text(tokenizer, brought, bos).count(begin) == 1


@pytest.mark.parametrize("kind", WITH_BEGIN)
def test_begin_tokens_as_they_are_asked_for(kind: str) -> None:
    tokenizer, text = tokenizer_of(kind), "The cup is in the cupboard"
    with_it = encode_text(tokenizer, text)
    assert with_it[0] == tokenizer.bos_token_id
    assert encode_text(tokenizer, text, "yes") == with_it
    assert encode_text(tokenizer, text, "no") == with_it[1:]
    assert tokenizer.eos_token_id in encode_text(
        tokenizer, text + tokenizer.eos_token
    )  # the user's own stays


def test_yes_puts_a_begin_token_that_the_tokenizer_has_but_does_not_add() -> None:
    tokenizer = copy.deepcopy(tokenizer_of("byte-level"))
    with pytest.raises(
        ValueError, match=r"bos is 'yes', but this tokenizer .* has no begin-of-sequence token"
    ):
        encode_text(tokenizer, "The cup", "yes")
    tokenizer.bos_token = "<s>"
    bare = tokenizer("The cup")["input_ids"]
    assert encode_text(tokenizer, "The cup") == encode_text(tokenizer, "The cup", "no") == bare
    assert encode_text(tokenizer, "The cup", "yes") == [tokenizer.bos_token_id, *bare]
    assert encode_text(tokenizer, "<s>The cup", "yes") == [tokenizer.bos_token_id, *bare]


@pytest.mark.parametrize(
    ("prompt", "answer", "own", "gap", "expected"),
    [
        ("The cup is in the", "box", "auto", "auto", " "),
        ("小明把球放进了", "篮子", "auto", "auto", ""),
        ("小明把球放进了", "篮子", "space", "auto", " "),
        ("The cup is in the", "box", "", "auto", ""),
        ("The cup is in the", "box", "\n\n", "auto", "\n\n"),
        ("The cup is in the", "box", "newline", "auto", "\n"),
        ("The cup is in the", "box", "\n\n", "none", ""),
        ("The cup is in the", "box", "none", "space", " "),
        ("小明把球放进了", "篮子", "auto", "space", " "),
        ("The cup is in the", "box", "auto", ": ", ": "),
        ("The cup is in the ", "box", "auto", "space", " "),
    ],
)
def test_the_gap_is_what_is_set_what_the_story_says_or_what_the_writing_asks_for(
    prompt: str, answer: str, own: str, gap: str, expected: str
) -> None:
    assert Wording(gap=gap).join(prompt, answer, own) == expected
    tokenizer = tokenizer_of("byte-level")
    told = story(prompt, (answer, "other"), gap=own)
    (sample,) = tomfisher.encode(tokenizer, [told], gap=gap)
    assert tokenizer.decode(sample.input_ids) == prompt + expected + answer
    if gap == "auto":
        assert told.full_text == prompt + expected + answer


@pytest.mark.parametrize("edge", ["\n", " \n", "\t", "\u3000"])
def test_nothing_that_was_written_is_stripped(edge: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    path = tmp_path / "t.jsonl"
    record = {"prompt": f"{edge}Where?{edge}", "choices": [f"{edge}box{edge}", "bag"], "answer": "box"}
    path.write_text(json.dumps(record) + "\n")
    (read,) = formats.read_stories(path)
    assert read.prompt == f"{edge}Where?{edge}" and read.choices[0] == f"{edge}box{edge}"
    assert read.full_text == f"{edge}Where?{edge}{edge}box{edge}"
    for text in (read, (read.prompt, read.answer_text)):
        (sample,) = tomfisher.encode(tokenizer, [text])
        assert tokenizer.decode(sample.input_ids) == read.full_text
        assert tokenizer.decode(supervised(sample)).endswith(f"box{edge}")


def test_a_file_says_the_gap_of_each_record(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = {"prompt": "Where?", "choices": ["box", "bag"], "answer": 0}
    path.write_text("\n".join(json.dumps({**good, **more}) for more in ({}, {"gap": ""}, {"gap": "newline"})))
    assert [read.full_text for read in formats.read_stories(path)] == [
        "Where? box",
        "Where?box",
        "Where?\nbox",
    ]
    for gap, message in ((5, "field 'gap' must be a text"), ("so", "a text without letters and digits")):
        path.write_text(json.dumps({**good, "gap": gap}))
        with pytest.raises(ValueError, match=rf"t\.jsonl, line 1.*{message}"):
            formats.read_stories(path)


@pytest.mark.parametrize("kind", WITH_BEGIN)
def test_the_prompt_becomes_the_users_turn(kind: str) -> None:
    tokenizer = chat(kind)
    for system in (None, "Be short."):
        turns = [{"role": "user", "content": "Where is the ball?"}]
        turns[:0] = [] if system is None else [{"role": "system", "content": system}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        texts = [story("Where is the ball?"), ("Where is the ball?", "basket")]
        for sample in tomfisher.encode(tokenizer, texts, chat_template=True, system=system):
            ids, answer = sample.input_ids.tolist(), supervised(sample)
            assert (
                ids[: len(ids) - len(answer)] == expected
            )  # as transformers encodes the turns: one begin token
            assert tokenizer.decode(answer).strip() == "basket"
        (last,) = tomfisher.encode(tokenizer, texts[:1], supervise="last", chat_template=True, system=system)
        assert last.input_ids.tolist() == expected


def test_a_template_without_a_begin_token_gets_one_only_where_it_is_asked_for() -> None:
    tokenizer = chat(template=CHAT.replace("{{ bos_token or '' }}", ""))
    begin = tokenizer.bos_token_id
    for bos, count in (("auto", 0), ("no", 0), ("yes", 1)):
        (sample,) = tomfisher.encode(tokenizer, [("Where?", "box")], chat_template=True, bos=bos)
        assert sample.input_ids.tolist().count(begin) == count


def test_the_answer_follows_a_template_without_a_gap_unless_one_is_set() -> None:
    tokenizer = chat(template=CHAT.replace(">\n", ">"))
    told = story("Where?", gap="newline")
    for gap, expected in (("auto", ""), ("space", " ")):
        (sample,) = tomfisher.encode(tokenizer, [told], chat_template=True, gap=gap)
        assert tokenizer.decode(sample.input_ids).endswith(f"<assistant>{expected}basket")


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "has no chat template"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            + CHAT,
            "Be short.",
            "does not take a system's and a user's turn: System role not supported",
        ),
        (CHAT.replace("{% for m in messages %}", "{% for m in messages[-1:] %}"), "Be short.", "leaves out"),
        ("{{ bos_token }}hello", None, "leaves out the text of the user's turn"),
        ("{{ messages[0]['content'] + messages[0]['turns'] }}", None, "does not take a user's turn"),
        (
            "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}",
            "Where",
            "leaves out the text of the system's turn",
        ),
        ("{{ 1 // (messages|length - 1) }}", None, "does not take a user's turn"),
        ("{% for %}", None, "does not take a user's turn"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_words(
    template: str | None, system: str | None, message: str
) -> None:
    tokenizer = chat()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        tomfisher.encode(tokenizer, [("Where?", "box")], chat_template=True, system=system)


def test_a_template_that_writes_the_date_is_said() -> None:
    tokenizer = chat(template="{{ strftime_now('%Y') }}" + CHAT)
    with pytest.warns(UserWarning, match="writes today's date"):
        tomfisher.encode(tokenizer, [("Where?", "box")], chat_template=True)


def test_a_template_is_not_cut() -> None:
    with pytest.raises(ValueError, match="cutting it would cut the template"):
        tomfisher.encode(chat(), [("the cup " * 20, "box")], chat_template=True, max_length=20)


def test_the_last_token_of_a_template_is_said_to_be_its_own() -> None:
    with pytest.warns(UserWarning, match="the template's own last one"):
        tomfisher.encode(chat(), [("the cup", "box")], supervise="last", chat_template=True)


def test_a_system_text_without_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the chat template"):
        tomfisher.encode(chat(), [("Where?", "box")], system="Be short.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("小明把球放进了", ("篮子", "盒子")),
        ("ลูกบอลอยู่ใน", ("ตะกร้า", "กล่อง")),
        ("The cup is in the", ("cupboard", "box")),
        ("the cup", ("boards", "s")),
    ],
)
def test_every_choice_follows_on_the_same_beginning(kind: str, prompt: str, choices: tuple[str, str]) -> None:
    tokenizer, wording = tokenizer_of(kind), Wording(bos="yes" if kind in WITH_BEGIN else "auto")
    common, answers = wording.branch(tokenizer, prompt, choices)
    for choice, answer in zip(choices, answers, strict=True):
        before, after = wording.split(tokenizer, prompt, choice)
        assert common + answer == before + after and len(common) <= len(before)


TURN = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
ASKED = "<|user|>\nWhere?<|end|>\n"
ASK = "{% if add_generation_prompt %}<|assistant|>\n"
SPACED = "{% for m in messages %}{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [A]{% else %} {{ m['content'] }}"
LAST_TURN = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|end|>\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "prompt", "gap", "said"),
    [
        (TURN + ASK + "{% endif %}", f"{ASKED}<|assistant|>\n", "", None),
        (SPACED + "{% endif %}{% endfor %}", "[Q] Where? [A]", " ", None),
        (TURN, f"{ASKED}<|assistant|>\n", "", None),  # asked for an answer or not, it writes the same
        (TURN + ASK + "<think>\n{% endif %}", f"{ASKED}<|assistant|>\n", "", "outside of any thinking block"),
        (LAST_TURN + ASK + "{% endif %}", f"{ASKED}<|assistant|>\n<think>\n\n</think>\n\n", "", None),
        ("{% if messages[1:] %}{{ 1 // 0 }}{% endif %}" + TURN, ASKED, "", "does not take an answer"),
        (TURN.replace("in messages", "in messages[-1:]"), ASKED, "", "otherwise than after the user's turn"),
    ],
)
def test_an_answer_stands_where_the_template_itself_writes_one(
    template: str, prompt: str, gap: str, said: str | None
) -> None:
    tokenizer, wording = chat("byte-level", template), Wording(chat_template=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = wording.prompt(tokenizer, "Where?")
    assert (found, wording.join(found, "box")) == (prompt, gap)
    assert [str(w.message) for w in caught if said is None or said not in str(w.message)] == []
    assert bool(caught) == (said is not None)
