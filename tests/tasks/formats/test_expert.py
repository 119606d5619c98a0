from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tomfisher.tasks.formats import read_published

BAG = "What does Pat believe the bag contains?"
CAT = "Where does Max believe the cat is?"
ULLMAN = f"""\
Here is a bag filled with nuts. The label says 'tea'. Pat reads the label.;{BAG};tea;nuts;she has no guess
Here is a bag filled with nuts. Pat looks into it.;{BAG};nuts;tea;she has no guess
Here is a bag filled with nuts. Pat cannot read the label.;{BAG};she has no guess;tea;nuts
Max takes the cat and puts it in the box. Lee puts it on the bed.;{CAT};in the box;on the bed;he has no guess
"""


def test_variations(tmp_path: Path) -> None:
    path = tmp_path / "ullman.csv"
    path.write_text(ULLMAN)
    stories = read_published("ullman", path)
    kinds = ["false-belief", "true-belief", "no-belief", "false-belief"]
    assert [story.condition for story in stories] == [f"ullman/{kind}" for kind in kinds]
    assert [story.answer_text for story in stories] == ["tea", "nuts", "she has no guess", "in the box"]
    scenes = [story.scene for story in stories]
    assert len(set(scenes[:3])) == 1 and scenes[3] != scenes[0]


@pytest.mark.parametrize("name", ["kosinski", "dodell-feder"])
def test_items(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.csv"
    path.write_text(
        "A tin of tea says 'rice'.;What does Jo think is in it?;rice;tea\nIt rains.;Is it wet?;yes;no\n"
    )
    first, second = read_published(name, path)
    kind = {"kosinski": "false-belief", "dodell-feder": "belief"}[
        name
    ]  # which it is only the published items say
    assert first.condition == second.condition == f"{name}/{kind}" and first.order == 1
    assert first.scene != second.scene and first.choices == ("rice", "tea") and second.answer_text == "yes"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("A bag.;What is in it?;tea\n", "a row has 4 or 5 cells with ';' between them, got 3"),
        ("A bag filled with tea.;What is in it?;tea;tea\n", "two or more different"),
        ("A bag is here.;What is in it?;tea;nuts\n", "the story does not say what is in the bag"),
    ],
)
def test_malformed_rows(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "ullman.csv"
    path.write_text(ULLMAN + row)
    with pytest.raises(ValueError) as caught:
        read_published("ullman", path)
    assert str(caught.value).startswith(f"{path}, line 5, record 5: ") and reason in str(caught.value)


def test_published_samples(sample: Callable[[str], Path]) -> None:
    ullman = read_published("ullman", sample("ullman.csv"))
    assert Counter(s.group for s in ullman) == {
        "ullman/false-belief": 2,
        "ullman/true-belief": 6,
        "ullman/no-belief": 1,
    }
    assert Counter(Counter(s.scene for s in ullman).values()) == {5: 1, 4: 1}
    kosinski = read_published("kosinski", sample("kosinski.csv"))
    assert Counter(s.group for s in kosinski) == {"kosinski/false-belief": 10}
    assert len({s.scene for s in kosinski}) == 10


def test_dodell_feders_items_are_sorted_by_what_they_ask(sample: Callable[[str], Path]) -> None:
    stories = read_published("dodell-feder", sample("dodell-feder.csv"))
    kinds = [story.condition.removeprefix("dodell-feder/") for story in stories]
    assert kinds == [
        *("false-belief", "reality", "false-belief", "reality", "false-belief"),
        *("false-belief", "true-belief", "false-belief", "knowledge/true-belief", "reality"),
    ]
    assert [story.kind == "reality" for story in stories] == [kind == "reality" for kind in kinds]
    assert len({story.scene for story in stories}) == 10
