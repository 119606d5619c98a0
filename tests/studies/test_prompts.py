from __future__ import annotations

import json

import pytest

from tomfisher.models import load_model
from tomfisher.studies.prompts import prompt_ids, prompt_texts


def test_texts_are_lines_or_documents(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n  \nthree\n")
    assert prompt_texts(str(tmp_path / "p.txt"), 2) == ["one", "two"]
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a\nb", "c", "d"))
    )
    assert prompt_texts(str(tmp_path / "p.jsonl"), 2) == ["a\nb", "c"]


def test_ids_end_where_the_model_has_no_more_positions(tiny_model):
    loaded = load_model(str(tiny_model), "fp32", "cpu")
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=256"):
        short, long = prompt_ids(loaded, ["a box", "tea " * 300])
    assert len(short) == 2 and len(long) == 256
    with pytest.warns(UserWarning, match="longer than max_length=3"):
        (cut,) = prompt_ids(loaded, ["a box of tea"], 3)
    assert len(cut) == 3
