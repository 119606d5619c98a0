"""Text that is no text is refused with file and line, whatever reads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tomfisher
from tokenizer_kinds import word_level
from tomfisher.results import Results
from tomfisher.studies import Config
from tomfisher.studies.config import read_yaml as read_config
from tomfisher.tasks import corpus
from tomfisher.tasks.formats import read_stories, read_texts
from tomfisher.tasks.story import Story
from tomfisher.text_files import DEEPEST, StrictDecoder, read_json, read_text, read_yaml

GOOD = '{"prompt": "The bag is full of", "choices": ["a", "b"], "answer": 0}'
DEEP = 100_000


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes, str], Path]:
    def make(content: str | bytes, name: str = "f.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    return make


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "stories": ("f.jsonl", read_stories),
    "texts": ("f.jsonl", read_texts),
    "plain texts": ("f.txt", read_texts),
    "corpus": ("f.json", corpus.load),
    "plain corpus": ("f.txt", corpus.load),
    "config": ("f.yaml", read_config),
    "results": ("results.json", Results.load),
    "ablations": ("ablations.json", partial(Results.load, name="ablations")),
    "comparison": ("finetune.json", partial(Results.load, name="finetune")),
    "json": ("f.json", read_json),
    "yaml": ("f.yaml", read_yaml),
}
JSON = [name for name, (file, _) in READERS.items() if ".json" in file]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("first\nsecond".encode("utf-16"), "line 1: .* UTF-16, not UTF-8"),
        ("first\nsecond".encode("utf-16-le"), r"line 1: .* is NUL, so this is not text"),
        ("first\nnaïve".encode("latin-1"), "line 2: byte 8 is not UTF-8"),
        ("first\n日本".encode("shift-jis"), "line 2: byte .* is not UTF-8"),
        (b"first\nsecond\nthi\x00rd", "line 3: byte 16 is NUL"),
        ("first\nhalf \ud83d".encode("utf-8", "surrogatepass"), "line 2: byte .* is not UTF-8"),
    ],
)
def test_another_encoding_is_refused_with_file_and_line(file, reader: str, data: bytes, said: str) -> None:
    name, read = READERS[reader]
    with pytest.raises(ValueError, match=rf"f?\w*\.\w+, {said}"):
        read(file(data, name))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_either_end_of_line_are_understood(file, end: str) -> None:
    path = file(b"\xef\xbb\xbf" + end.join([GOOD, "", GOOD.replace("bag", "box")]).encode())
    assert [story.prompt for story in read_stories(path)] == ["The bag is full of", "The box is full of"]
    assert read_text(file(b"\xef\xbb\xbfone\r\ntwo", "f.txt")) == "one\ntwo"


FAULTS = {
    "key": ('{"prompt": "a", "choices": ["a", "b"], "answer": 0, "answer": 1}', "the key 'answer' is given twice"),
    "inner key": ('{"a": {"b": 1, "c": {}, "b": 2}}', "the key 'b' is given twice"),
    "escaped key": ('{"a": 1, "\\u0061": 2}', "the key 'a' is given twice"),
    "surrogate": ('{"text": "half \\ud83d pair"}', "holds half of a surrogate pair"),
    "low surrogate": ('{"text": "half \\uDE00 pair"}', "holds half of a surrogate pair"),
    "surrogate key": ('{"\\ud83d": "pair"}', "holds half of a surrogate pair"),
    "arrays": ('{"a": ' + "[" * DEEP + "]" * DEEP + "}", f"nested more than {DEEPEST} levels deep"),
    "objects": ('{"a": ' * DEEP + "1" + "}" * DEEP, f"nested more than {DEEPEST} levels deep"),
    "open": ('{"a": ' + "[" * DEEP, f"nested more than {DEEPEST} levels deep"),
    "deep": ('{"a": ' + "[" * 300 + "]" * 300 + "}", f"nested more than {DEEPEST} levels deep"),
    "digits": ('{"a": ' + "1" * 10_000 + "}", "a number of 10000 digits"),
}  # fmt: skip
NUMBERS = {
    "nan": ('{"a": NaN}', "NaN is not a finite number"),
    "infinity": ('{"a": [1, -Infinity]}', "-Infinity is not a finite number"),
    "overflow": ('{"a": 1e999}', "1e999 is not a finite number"),
}


@pytest.mark.parametrize("reader", JSON)
@pytest.mark.parametrize("kind", FAULTS)
def test_what_python_takes_for_json_is_refused_with_its_line(file, reader: str, kind: str) -> None:
    text, said = FAULTS[kind]
    name, read = READERS[reader]
    with pytest.raises(ValueError, match=rf"\.jsonl?, line 1.*not valid JSON \(.*{said}"):
        read(file(text, name))


@pytest.mark.parametrize("kind", [*FAULTS, *NUMBERS])
@pytest.mark.parametrize("read", [read_stories, read_texts])
def test_the_line_is_that_of_the_fault(file, read: Callable[[Path], Any], kind: str) -> None:
    text, said = (FAULTS | NUMBERS)[kind]
    good = GOOD if read is read_stories else '{"text": "good"}'
    with pytest.raises(ValueError, match=rf"f\.jsonl, line 3, column \d+: not valid JSON \(.*{said}"):
        read(file(f"{good}\n\n{text}\n"))
    if kind == "open":
        return
    with pytest.raises(
        ValueError, match=rf"f\.json, line 2, column \d+, record 2: not valid JSON \(.*{said}"
    ):
        read(file(f"[{good},\n{text}]", "f.json"))


def test_a_key_is_named_on_the_line_where_it_comes_again(file) -> None:
    text = '{\n "a": {"b": "a: {", "c": 1},\n "b": 2,\n "c": [{"b": 1}, {"b": 1}],\n "b": 3\n}'
    with pytest.raises(ValueError, match=r"line 5: not valid JSON \(the key 'b' is given twice\)"):
        read_json(file(text, "f.json"))


def test_whole_pairs_and_equal_keys_of_different_objects_are_fine() -> None:
    text = '[{"a": "\\ud83d\\ude00 \\u00e9", "b": {"a": [[1], {"a": "{}[]\\\\"}]}}, {"a": "\\\\ud83d"}]'
    assert StrictDecoder().decode(text) == json.loads(text)


def test_what_is_shallow_may_be_long() -> None:
    text = json.dumps([{"a": [1, 2.5, None]}] * 500)
    assert StrictDecoder().decode(text) == json.loads(text)


def test_results_of_our_own_may_hold_infinity(file) -> None:
    assert read_json(file('{"perplexity": Infinity}', "f.json")) == {"perplexity": float("inf")}


@pytest.mark.parametrize("read", [read_yaml, read_config])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a\nseed: 1\nmodel: b\n", "line 3: no valid YAML .the key 'model' is given twice"),
        ("model: a\n1: x\n1: y\n", "line 3: no valid YAML .the key '1' is given twice"),
        ('model: "a\\ud83d"\n', "line 1: no valid YAML .half of a surrogate pair"),
        ("model: a\nseed: [1, 2\n", r"line \d: no valid YAML"),
        ("model: " + "[" * 5000, "is nested too deep"),
        ("model: !!python/object:os.system {}", "line 1: no valid YAML"),
    ],
)
def test_a_config_with_a_fault_is_refused_with_its_line(
    file, read: Callable[[Path], Any], text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=rf"f\.yaml,? {said}"):
        read(file(text, "f.yaml"))


def test_a_config_is_read_as_before(file) -> None:
    text = "base: &b {seed: 1}\nmodel: naïve\nkappas: [0.1, 1e-3]\nother: {<<: *b, seed: 2}\n"
    found = read_yaml(file(text, "f.yaml"))
    assert found["model"] == "naïve" and found["other"] == {"seed": 2} and found["kappas"] == [0.1, "1e-3"]


def test_the_recursion_limit_is_not_what_decides() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(json.JSONDecodeError, match="levels deep"):
            StrictDecoder().decode("[" * 3000 + "]" * 3000)
    finally:
        sys.setrecursionlimit(before)


def test_settings_of_a_run_folder_are_read_strictly(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: a\nmodel: b\n")
    with pytest.raises(ValueError, match=r"config\.yaml, line 2: no valid YAML"):
        Config.resolve({}, config=config)


# Texts that come from Python, not from a file.


@pytest.mark.parametrize("field", ["story", "question", "choices", "id", "condition", "template"])
def test_a_story_with_half_a_pair_is_refused(field: str) -> None:
    fields: dict[str, Any] = {
        "story": "s", "question": "q", "choices": ("a", "b"), "answer": 0, "condition": "c", "order": 1, "id": "i",
        "template": "{story} {question}",
    }  # fmt: skip
    fields[field] = ("a\udc80", "b") if field == "choices" else f"{fields[field]}\udc80"
    with pytest.raises(ValueError, match="is not text: character"):
        Story(**fields)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_level(["<unk>", "a", "b"], unk_token="<unk>")


@pytest.mark.parametrize("text", ["a \ud83d b", ("a b", "b\udc80"), ("a\udc80 b", "b")])
def test_a_sample_with_half_a_pair_is_refused(tokenizer: Any, text: Any) -> None:
    with pytest.raises(ValueError, match="is not text: character"):
        tomfisher.encode(tokenizer, [text], supervise="all")


def test_a_perplexity_text_with_half_a_pair_is_refused(tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(ValueError, match="Document 1 is not text: character 2"):
        tomfisher.evaluate.perplexity(
            LlamaForCausalLM(config), tokenizer, ["a b", "a \ud83d b"], progress=False
        )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_line_is_one(end: str, file: Callable[..., Path]) -> None:
    text = f"One here.{end}{end}Two here.{end}{end}Three.{end}"
    assert read_texts(file(text, "t.txt")) == ["One here.", "Two here.", "Three."]
    assert len(read_stories(file(GOOD + end + GOOD + end))) == 2
    with pytest.raises(ValueError, match=r"line 3: byte .* is not UTF-8"):
        read_text(file(f"a{end}b{end}".encode() + b"\xff"))


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-be", "utf-16", "utf-16-be"])
def test_the_encoding_of_a_byte_order_mark_is_named(encoding: str, file: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=f"the file is {encoding[:6].upper()}, not UTF-8"):
        read_text(file("\ufeff".encode(encoding) * encoding.endswith("be") + GOOD.encode(encoding)))


@pytest.mark.parametrize(
    "value",
    [
        *("9" * 5000, "[1, 2001-99-99]", "2001-99-99"),
        *("!!int abc", "!!float x", "!!bool abc", "!!timestamp abc"),
    ],
)
def test_yaml_values_that_mean_something_else_or_nothing(value: str, file: Callable[..., Path]) -> None:
    path = file(f"model: m\nseed: {value}\n", "c.yaml")
    with pytest.raises(ValueError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}, line 2: no valid YAML") and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *(("100", 100), ("0", 0), ("0.5", 0.5), ("1_000", 1000), ("'0100'", "0100"), ("0x10", 16), ("-0", 0)),
        *(("0100", 100), ("-010", -10), ("[010]", [10]), ("1:30", "1:30"), ("1:30.5", "1:30.5")),
    ],
)
def test_yaml_numbers_mean_what_they_say(value: str, read: object, file: Callable[..., Path]) -> None:
    assert read_yaml(file(f"seed: {value}\n", "c.yaml")) == {"seed": read}
