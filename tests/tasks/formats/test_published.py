"""What holds for every published format: labels, halves, `datasets` ids, and what `ls tasks` says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tomfisher.cli.main import main
from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs
from tomfisher.tasks import load
from tomfisher.tasks.formats import FORMATS, format_of, read_published
from tomfisher.tasks.registry import from_file
from tomfisher.tasks.story import Story

SAMPLES = {
    "tomi": "tomi_fb_all_test_head.txt",
    "bigtom": "bigtom.csv",
    "opentom": "opentom",
    "hitom": "hi_tom_sample.json",
    "socialiqa": "social_iqa_dev.jsonl",
    "ullman": "ullman.csv",
    "kosinski": "kosinski.csv",
    "dodell-feder": "dodell-feder.csv",
}


def write(path: Path, items: int) -> Path:
    """Hi-ToM records of `items` stories, each with a question about reality, a false belief and a true one."""
    asked = (
        ("Where is the pear really?", "jar", 0),
        ("Where does Ada really think the pear is?", "tin", 1),
        ("Where does Ben really think the pear is?", "jar", 1),
    )
    records = [
        {
            "story": f"1 Ada{i} waits.\n2 Ada moved the pear to the tin.\n3 Ben moved the pear to the jar.",
            **{"question": question, "answer": answer, "question_order": order},
            **{"choices": "A. tin, B. jar", "deception": False, "prompting_type": "VP"},
        }
        for i in range(items)
        for question, answer, order in asked
    ]
    path.write_text(json.dumps({"data": records}))
    return path


def overlap(first: list[Story], second: list[Story]) -> set[str]:
    return {story.scene for story in first} & {story.scene for story in second} | {
        story.story for story in first
    } & {story.story for story in second}


def test_a_label_is_loaded_like_a_file(tmp_path: Path) -> None:
    label = f"hitom:{write(tmp_path / 'hitom.json', 12)}"
    assert format_of(label) == "hitom" and from_file(label) and not from_file("false-belief")
    everything = load(label, split="all")
    assert len(everything) == 36
    fisher, evaluation, balanced = (load(label, split=s) for s in ("fisher", "evaluation", "balanced"))
    assert not overlap(fisher, evaluation) and not overlap(balanced, evaluation)
    assert len(evaluation) == len(balanced) == 18 and len(fisher) == 6
    assert {story.group for story in fisher} == {"hitom/false-belief"}
    assert len(load(label, n=9, split="evaluation", seed=1)) == 9


def test_the_scene_of_a_story_does_not_depend_on_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    few = load(f"hitom:{write(tmp_path / 'h.json', 6)}", split="all")
    more = load(f"hitom:{write(tmp_path / 'more' / 'h.json', 30)}", split="all")
    assert {story.scene for story in few} < {story.scene for story in more}


def test_a_study_takes_what_the_halves_hold(tmp_path: Path) -> None:
    label = f"hitom:{write(tmp_path / 'hitom.json', 12)}"
    inputs = Inputs(Config(model="testbed-llama", task=label, n_task=90))
    with pytest.warns(UserWarning, match=r"n_task is 90, but hitom:.* has 6 stories in its Fisher half"):
        assert len(inputs.task_stories) == 6
    assert len(inputs.questions) == 18
    assert Config(model="m", task="bigtom:data/bigtom.csv").output_path == "runs/m-bigtom"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("bigtom", "bigtom is a format of published data. Give bigtom:FILE: data/bigtom/bigtom.csv."),
        ("bigtm:a.csv", "Unknown format 'bigtm'. Did you mean 'bigtom'?"),
        ("bigtom:no/such.csv", "no/such.csv: there is no such file"),
        ("bigtom:a/b::train", "bigtom is read from its file alone. Give data/bigtom/bigtom.csv"),
    ],
)
def test_labels_that_name_nothing(label: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(label)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["hitom", "fantom", "opentom", "exploretom", "socialiqa"])
def test_records_that_are_no_objects(tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.json"
    path.write_text('["a", 3]')
    if name == "exploretom":
        path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"list\.json, line \d"):
        read_published(name, path)


def test_rows_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(write(tmp_path / "hitom.json", 4).read_text())["data"]
    calls = []
    module = ModuleType("datasets")
    module.__spec__ = sys.modules["json"].__spec__

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return iter(rows)

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("tomfisher.models.hub.why_unreachable", lambda: None)
    stories = load("hitom:someone/hi-tom::train", split="all")
    assert calls == [(("someone/hi-tom", None), {"split": "train", "streaming": True})]
    assert [s.question for s in stories] == [
        s.question for s in read_published("hitom", tmp_path / "hitom.json")
    ]
    del rows[5]["question"]
    with pytest.raises(ValueError, match=r"someone/hi-tom::train, row 6: field 'question' is missing"):
        load("hitom:someone/hi-tom::train")


def test_ls_says_what_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "tasks"]) == 0
    shown = capsys.readouterr().out
    for name, kind in FORMATS.items():
        assert f"  {name}:FILE" in shown and kind.title in shown
        assert f"FILE: {kind.needs}; {kind.source}; licence: {kind.licence}" in shown


@pytest.mark.parametrize("name", SAMPLES)
def test_halves_of_a_sample_share_no_story(name: str, sample: Callable[[str], Path]) -> None:
    label = f"{name}:{sample(SAMPLES[name])}"
    everything, fisher, evaluation = (load(label, split=s) for s in ("all", "fisher", "evaluation"))
    assert fisher and evaluation and not overlap(fisher, evaluation)
    assert len({story.id for story in everything}) == len(everything)
    if any(story.group.endswith("/false-belief") for story in everything):
        assert all(story.group.endswith("/false-belief") for story in fisher)
