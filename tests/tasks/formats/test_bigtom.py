from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tomfisher.tasks.formats import read_published
from tomfisher.tasks.formats.bigtom import COLUMNS

ROW = [
    "Ida is in a kitchen. Ida wants to bake. Ida fills the jar with sugar. Ida believes that the jar holds sugar. "
    "A friend swaps the sugar for salt.",
    *("Ida sees the swap.", "Ida does not see the swap.", "Ida fetches more sugar.", "Ida takes the jar."),
    *("Does Ida believe the jar holds sugar or salt?", "What does Ida want?", "What will Ida do?"),
    *("Ida believes the jar holds salt.", "Ida wants to bake.", "Ida will fetch more sugar."),
    *("Ida believes the jar holds sugar.", "Ida wants to bake.", "Ida will take the jar."),
    *("A bird sings.", "Ida hears the bird.", "Ida does not hear the bird.", "user", "0"),
]
SALT, SUGAR = ROW[8], ROW[11]


def write(path: Path, *rows: list[str]) -> Path:
    path.write_text("".join(";".join(row) + "\n" for row in rows))
    return path


def test_ten_questions_of_a_row(tmp_path: Path) -> None:
    stories = read_published("bigtom", write(tmp_path / "bigtom.csv", ROW))
    told = {story.condition.removeprefix("bigtom/"): story for story in stories}
    assert len(stories) == len(told) == 10
    assert len({story.scene for story in stories}) == 1 and {story.order for story in stories} == {1}
    calm = ROW[0].removesuffix(" A friend swaps the sugar for salt.") + " A bird sings."
    assert {name: (story.story, story.answer_text) for name, story in told.items()} == {
        "forward-belief/true-belief": (f"{ROW[0]} {ROW[1]}", SALT),
        "forward-belief/false-belief": (f"{ROW[0]} {ROW[2]}", SUGAR),
        "forward-belief/true-control": (f"{calm} {ROW[15]}", SUGAR),
        "forward-belief/false-control": (f"{calm} {ROW[16]}", SUGAR),
        "forward-action/true-belief": (f"{ROW[0]} {ROW[1]}", ROW[10]),
        "forward-action/false-belief": (f"{ROW[0]} {ROW[2]}", ROW[13]),
        "forward-action/true-control": (f"{calm} {ROW[15]}", ROW[13]),
        "forward-action/false-control": (f"{calm} {ROW[16]}", ROW[13]),
        "backward-belief/true-belief": (f"{ROW[0]} {ROW[3]}", SALT),
        "backward-belief/false-belief": (f"{ROW[0]} {ROW[4]}", SUGAR),
    }


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("story", "One sentence.", "a story has 5 sentences, the last of which tells the event, got 1"),
        ("belief answer unaware", SALT, "two or more different texts"),
        ("aware", " ", "cell 2 is empty"),
        (None, None, "a row has 19 cells with ';' between them, got 18"),
    ],
)
def test_malformed_rows(tmp_path: Path, column: str | None, value: str, reason: str) -> None:
    bad = [value if name == column else cell for name, cell in zip(COLUMNS, ROW, strict=True)]
    path = write(tmp_path / "bigtom.csv", ROW, bad if column else bad[:-1])
    with pytest.raises(ValueError) as caught:
        read_published("bigtom", path)
    assert str(caught.value).startswith(f"{path}, line 2, record 2: ") and reason in str(caught.value)


def test_published_sample(sample: Callable[[str], Path]) -> None:
    stories = read_published("bigtom", sample("bigtom.csv"))
    four = ("true-belief", "false-belief", "true-control", "false-control")
    expected = {f"bigtom/{what}/{c}": 200 for what in ("forward-belief", "forward-action") for c in four}
    expected |= {f"bigtom/backward-belief/{c}": 200 for c in four[:2]}
    assert Counter(story.group for story in stories) == expected
    assert Counter(Counter(story.scene for story in stories).values()) == {10: 200}
    assert all(len(story.choices) == 2 for story in stories)
