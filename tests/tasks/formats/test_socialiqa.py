from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_published

SCENE = {
    "context": "Kim lent Lou a bike.",
    "question": "How would Lou feel?",
    **{"answerA": "grateful", "answerB": "hungry", "answerC": "cross"},
}
WHY = {**SCENE, "question": "Why did Kim do this?", "answerA": "to help", "answerB": "to harm"}


def write(folder: Path, *records: dict[str, Any], labels: str | None = None) -> Path:
    path = folder / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    if labels is not None:
        (folder / "dev-labels.lst").write_text(labels)
    return path


def test_labels_beside_the_file_or_in_the_records(tmp_path: Path) -> None:
    stories = read_published("socialiqa", write(tmp_path, SCENE, WHY, labels="1\n3\n"))
    assert [story.answer_text for story in stories] == ["grateful", "cross"]
    assert stories[0].scene == stories[1].scene and stories[0].choices == ("grateful", "hungry", "cross")
    assert {story.group for story in stories} == {"socialiqa/question"}
    (tmp_path / "dev-labels.lst").unlink()
    labelled = write(tmp_path, {**SCENE, "label": "1"}, {**WHY, "label": "3\n"})
    assert read_published("socialiqa", labelled) == stories


def test_what_is_missing_or_malformed(tmp_path: Path) -> None:
    path = write(tmp_path, SCENE, WHY)
    with pytest.raises(FileNotFoundError, match=r"no dev-labels\.lst beside it"):
        read_published("socialiqa", path)
    for labels, reason in (
        ("1\n", "holds 1 labels for the 2 records"),
        ("1\n4\n", "must be 1, 2 or 3, got '4'"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_published("socialiqa", write(tmp_path, SCENE, WHY, labels=labels))
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 2: field 'answerC' is missing"):
        read_published("socialiqa", write(tmp_path, SCENE, {**WHY, "answerC": None}, labels="1\n2\n"))
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 1, record 1: expected an object"):
        read_published("socialiqa", write(tmp_path, ["a"], labels="1\n"))  # type: ignore[arg-type]


def test_published_sample(sample: Callable[[str], Path]) -> None:
    stories = read_published("socialiqa", sample("social_iqa_dev.jsonl"))
    labels = sample("social_iqa_dev-labels.lst").read_text().split()
    assert len(stories) == len(labels) == 400 and len({s.scene for s in stories}) == 397
    # one record gives the same text for two answers
    assert Counter(len(s.choices) for s in stories) == {3: 399, 2: 1}
    assert [s.answer for s in stories if len(s.choices) == 3].count(0) == pytest.approx(
        labels.count("1"), abs=1
    )
