from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tomfisher.files import sha256_of_text
from tomfisher.tasks import corpus
from tomfisher.tasks.corpus import Corpus


def make(documents: list[str], name: str = "mine") -> Corpus:
    return Corpus(name, documents, sha256_of_text(*documents))


def numbered(count: int) -> list[str]:
    """Documents in which every word is unique."""
    return [" ".join(f"w{d}x{i}" for i in range(40 + d % 7)) for d in range(count)]


def test_python_reference_is_long_english_prose() -> None:
    loaded = corpus.load("python-reference")
    assert loaded.name == "python-reference" and len(loaded.text) > 300_000
    assert loaded.sha256 == sha256_of_text(*loaded.documents)
    assert "function" in loaded.text and all(document.strip() for document in loaded.documents)
    assert corpus.load("python-reference") == loaded


def test_testbed_corpus() -> None:
    loaded = corpus.load("testbed")
    assert loaded.name == "testbed" and len(loaded.documents) > 10


def test_files(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("one\n\ntwo\n")
    assert corpus.load(text).documents == ["one\n\ntwo\n"]
    records = tmp_path / "notes.jsonl"
    records.write_text('{"body": "one"}\n{"text": "two"}\n{"txt": "three"}\n')
    assert corpus.load(str(records), text_column="body").documents == ["one", "two", "three"]
    with pytest.raises(ValueError, match=r"notes\.jsonl, line 1: there is no field 'text' or 'txt'"):
        corpus.load(records)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown text 'wikitxt'.*python-reference"):
        corpus.load("wikitxt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        corpus.load(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="name and split must not be empty"):
        corpus.load("wikitext::")


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: Any) -> list[tuple[Any, ...]]:
    """Put a module named `datasets` in the place of the package; gives the calls that it gets."""
    calls: list[tuple[Any, ...]] = []
    module = ModuleType("datasets")
    module.__spec__ = sys.modules["json"].__spec__

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
        calls.append((name, config, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return rows

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_rows_of_wikitext_become_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "",
        " = Robert = \n",
        "",
        " A man . \n",
        " = = Life = = \n",
        " Long . \n",
        " = Paris = \n",
        " A city . \n",
    ]
    calls = fake_datasets(monkeypatch, [{"text": row} for row in rows])
    loaded = corpus.load("wikitext:wikitext-2-raw-v1:test")
    assert calls == [("wikitext", "wikitext-2-raw-v1", "test", True)]
    assert loaded.documents == ["= Robert = \n A man . \n = = Life = = \n Long .", "= Paris = \n A city ."]


def test_other_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch, [{"content": "one"}, {"content": " "}, {"content": "two"}])
    assert corpus.load("c4::validation", text_column="content").documents == ["one", "two"]
    assert calls == [("c4", None, "validation", True)]
    with pytest.raises(ValueError, match=r"no column 'text' \(it has: content\)"):
        corpus.load("c4::validation")


def test_a_large_data_set_is_cut_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ({"text": f"row {i}"} for i in range(10**9)))
    with pytest.warns(UserWarning, match="first 20,000 rows"):
        assert len(corpus.load("c4:en:train").documents) == 20_000


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    seen = []

    class Rows:
        def __iter__(self) -> Any:
            seen.append(constants.HF_HUB_OFFLINE)
            return iter([{"text": "one"}])

    fake_datasets(monkeypatch, Rows())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for why in (None, "no answer"):
        monkeypatch.setattr("tomfisher.models.hub.why_unreachable", lambda why=why: why)
        assert corpus.load("c4:en:train").documents == ["one"]
    assert seen == [False, True]
    assert not constants.HF_HUB_OFFLINE
    fake_datasets(monkeypatch, ConnectionError("offline"))
    with pytest.raises(OSError, match="the Hugging Face hub cannot be reached: no answer"):
        corpus.load("c4:en:train")


def test_no_network_and_no_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ConnectionError("offline"))
    with pytest.raises(OSError, match=r"could not be loaded: ConnectionError: offline.*network"):
        corpus.load("c4:en:train")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        corpus.load("c4:en:train")


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_deals_documents(fraction: float, seed: int) -> None:
    whole = make(numbered(60))
    first, second = corpus.split(whole, fraction, seed)
    assert not set(first.documents) & set(second.documents)
    assert sorted(first.documents + second.documents) == sorted(whole.documents)
    assert len(first.text) / len(whole.text) == pytest.approx(fraction, abs=0.03)
    assert first.documents == [text for text in whole.documents if text in set(first.documents)]
    assert first.sha256 == sha256_of_text(*first.documents)
    assert corpus.split(whole, fraction, seed) == (first, second)


def test_split_seed_matters_and_equal_documents_stay_together() -> None:
    whole = make(numbered(30) + numbered(30))
    first, second = corpus.split(whole)
    assert not set(first.documents) & set(second.documents) and len(first.documents) % 2 == 0
    assert corpus.split(whole, seed=1)[0] != first


def test_copies_of_one_document_are_one_document() -> None:
    first, second = corpus.split(make(["one two three four"] * 4))
    assert (first.documents, second.documents) == (["one two"], ["three four"])


def test_split_of_two_documents_gives_one_each() -> None:
    first, second = corpus.split(make(["short", "a very much longer document"]), fraction=0.9)
    assert len(first.documents) == len(second.documents) == 1


@pytest.mark.parametrize("joint", ["\n\n", "\n", " "])
def test_one_document_is_cut_at_a_boundary(joint: str) -> None:
    words = [f"word{i}" for i in range(200)]
    first, second = corpus.split(make([joint.join(words)]), fraction=0.3)
    assert joint.join((first.text, second.text)) == joint.join(words)
    assert len(first.text) / len(joint.join(words)) == pytest.approx(0.3, abs=0.02)


def test_a_paragraph_end_nearby_is_preferred() -> None:
    text = "word " * 90 + "end\n\n" + "more " * 110
    first, second = corpus.split(make([text]))
    assert first.text.endswith("end") and second.text.startswith("more")


def test_a_document_without_spaces_is_cut_behind_a_sentence() -> None:
    text = "".join(f"第{i}句话说小明把球放进了篮子。" for i in range(50))
    first, second = corpus.split(make([text]), fraction=0.3)
    assert first.text + second.text == text and first.text.endswith("。")
    assert len(first.text) / len(text) == pytest.approx(0.3, abs=0.02)


def test_split_refusals() -> None:
    with pytest.raises(ValueError, match="cannot be cut in two"):
        corpus.split(make(["x" * 1000]))
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            corpus.split(make(numbered(4)), fraction)


def test_windows_are_pieces_of_the_text_and_do_not_overlap(bpe: Any) -> None:
    whole = make(numbered(20))
    stream = bpe(whole.text)["input_ids"]
    drawn = corpus.windows(bpe, whole, length=64, n=50)
    taken: set[int] = set()
    for sample in drawn:
        begin = int(sample.name.split("tokens ")[1].split()[0])
        assert sample.input_ids.tolist() == stream[begin : begin + 64]
        assert torch.equal(sample.input_ids, sample.labels)
        positions = set(range(begin, begin + 64))
        assert not taken & positions
        taken |= positions
    assert len(taken) == 50 * 64


def test_windows_are_seeded(bpe: Any) -> None:
    whole = make(numbered(20))
    names = [[s.name for s in corpus.windows(bpe, whole, 32, 10, seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_every_window_begins_as_a_text_does_and_does_not_warn_about_length(words: Any) -> None:
    corpus_of_letters = make(["a b c d e " * 10])
    for bos, begin in (("auto", [1]), ("yes", [1]), ("no", [])):
        first, second = corpus.windows(words, corpus_of_letters, length=20, n=2, bos=bos)
        for sample in (first, second):
            assert len(sample) == 20 and sample.input_ids.tolist()[: len(begin)] == begin
            assert not set(sample.input_ids.tolist()[len(begin) :]) & {0, 1, 2}
    with pytest.raises(ValueError, match="bos must be one of auto, yes, no, got 'maybe'"):
        corpus.windows(words, corpus_of_letters, bos="maybe")


def test_a_corpus_that_brings_its_own_begin_tokens_gets_no_second_ones(words: Any) -> None:
    for sample in corpus.windows(words, make(["<s> a b c d e"] * 20), length=7, n=15):
        ids = sample.input_ids.tolist()
        assert ids[0] == 1 and ids[1] != 1


def test_begin_tokens_that_a_tokenizer_lacks_or_does_not_add(bpe: Any) -> None:
    whole = make(numbered(20))
    with pytest.raises(ValueError, match="has no begin-of-sequence token"):
        corpus.windows(bpe, whole, length=16, n=2, bos="yes")
    plain, none = (corpus.windows(bpe, whole, length=16, n=4, bos=bos) for bos in ("auto", "no"))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(plain, none, strict=True))


def test_too_little_text_says_how_many_windows_it_holds(bpe: Any) -> None:
    whole = make(numbered(2))
    tokens = len(bpe(whole.text)["input_ids"])
    count = tokens // 32
    assert len(corpus.windows(bpe, whole, length=32, n=count)) == count
    with pytest.raises(ValueError, match=f"mine has {tokens} tokens, which hold {count} windows of 32"):
        corpus.windows(bpe, whole, length=32, n=count + 1)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        corpus.windows(bpe, whole, length=1)


def test_of_a_huge_text_only_a_stretch_is_encoded(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_CHARACTERS", 1000)
    seen: list[str] = []

    def spy(text: str, **kwargs: Any) -> Any:
        seen.append(text)
        return bpe(text, **kwargs)

    corpus.windows(spy, make(numbered(40)), length=16, n=2)
    assert 1000 <= len(seen[0]) < 1500


def test_the_two_parts_of_a_file_share_no_window(bpe: Any, tmp_path: Path) -> None:
    path = tmp_path / "docs.json"
    path.write_text(json.dumps(numbered(20)))
    fisher, held_out = corpus.split(corpus.load(path))
    words = [set(" ".join(part.documents).split()) for part in (fisher, held_out)]
    assert words[0] and words[1] and not words[0] & words[1]
    texts = [bpe.decode(sample.input_ids) for sample in corpus.windows(bpe, fisher, 16, 10)]
    assert not any(word in held_out.text for text in texts for word in text.split()[1:-1])
