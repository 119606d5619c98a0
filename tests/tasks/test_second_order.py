"""Second-order stories: answers from a simulator of who saw what, balance, and the place beside the other tasks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from tomfisher.evaluate.records import Record, Scores
from tomfisher.files import sha256_of_text
from tomfisher.results.conditions import conditions_of
from tomfisher.tasks import available, load
from tomfisher.tasks.frames import Frame, family
from tomfisher.tasks.generator import FIRST_ORDER, generate
from tomfisher.tasks.names import CASTS_PER_FILLING, EVALUATION_NAMES, FISHER_NAMES, roles
from tomfisher.tasks.story import Story

FAMILY = "second-order"
KINDS = ("belief", "first-order", "reality")


def frames(split: str) -> list[Frame]:
    return list(family(FAMILY).frames[split])


@dataclass
class Minds:
    """Where the thing is, where each person takes it to be, and where the mover takes the friend to take it."""

    place: str = ""
    mover: str = ""
    friend: str = ""
    friend_in_movers_eyes: str = ""

    def happen(self, place: str, friend_sees: bool) -> None:
        """Something is put somewhere by the mover, or in the mover's presence."""
        self.place = self.mover = place
        if friend_sees:
            self.friend = self.friend_in_movers_eyes = place

    def friend_learns(self, mover_knows: bool) -> None:
        self.friend = self.place
        if mover_knows:
            self.friend_in_movers_eyes = self.place


def simulate(frame: Frame, text: str, words: dict[str, str]) -> Minds:
    """Run the pieces that are found in the story, in the order of the text."""
    filled = {piece: line.format(**words) for piece, line in frame.pieces.items()}
    told = sorted((text.index(line), piece) for piece, line in filled.items() if line in text)
    assert " ".join(filled[piece] for _, piece in told) == text
    minds = Minds()
    for _, piece in told:
        if piece == "opening":
            minds.happen(words["start"], friend_sees=True)
        elif piece in ("moved", "watched"):
            minds.happen(words["end"], friend_sees=piece == "watched")
        elif piece in ("seen", "noticed"):
            minds.friend_learns(mover_knows=piece == "noticed")
    return minds


def parts(story: Story) -> tuple[Frame, dict[str, str]]:
    """The frame and the words of a story, worked out from its id."""
    _, short, number, _, direction, _ = story.id.split("/")
    split, pool = ("evaluation", EVALUATION_NAMES) if short == "eval" else ("fisher", FISHER_NAMES)
    instance, cast = divmod(int(number), CASTS_PER_FILLING)
    index, filling = divmod(instance, 4)
    frame = frames(split)[index]
    start, end = frame.pairs[filling] if direction == "as-written" else frame.pairs[filling][::-1]
    thing = frame.things[(filling + cast) % len(frame.things)]
    return frame, {**roles(pool, index, filling, cast), "thing": thing, "start": start, "end": end}


@pytest.mark.parametrize(("split", "n"), [("evaluation", 3840), ("fisher", 256), ("balanced", 3840)])
def test_answers_are_those_of_a_simulation(split: str, n: int) -> None:
    stories = generate((FAMILY,), n, split=split)
    assert len({story.id for story in stories}) == len({story.prompt for story in stories}) == n
    for story in stories:
        frame, words = parts(story)
        minds = simulate(frame, story.story, words)
        expected = {2: minds.friend_in_movers_eyes, 1: minds.friend, 0: minds.place}[story.order]
        assert story.answer_text == expected, story.id
    with pytest.raises(ValueError, match=f"holds {n} stories"):
        generate((FAMILY,), n + 2, split=split)


def test_questions_are_of_three_orders_and_name_the_right_persons() -> None:
    for story in load(FAMILY):
        _, words = parts(story)
        name, friend, kind = words["name"], words["friend"], story.id.rsplit("/", 1)[1]
        assert story.kind == kind and story.order == {"belief": 2, "first-order": 1, "reality": 0}[kind]
        assert story.group == story.condition + ("" if kind == "belief" else f"/{kind}")
        start = {"belief": f"{name} thinks that {friend} ", "first-order": f"{friend} ", "reality": "The "}[
            kind
        ]
        assert story.question.startswith(start) and story.question.endswith(" in the")
        assert (name in story.question) == (kind == "belief")


def test_what_each_condition_takes_apart() -> None:
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for story in load(FAMILY):
        cells[story.cell][story.kind] = story.answer_text
    patterns = defaultdict(set)
    for cell, answers in cells.items():
        belief, friend, place = (answers[kind] for kind in KINDS)
        patterns[cell.split("/")[3]].add((belief == place, friend == place))
    assert patterns == {
        "false-belief": {(False, True)},
        "unseen": {(False, False)},
        "no-transfer": {(True, True)},
        "informed": {(True, True)},
        "present": {(True, True)},
    }


def test_counts_are_balanced_over_conditions_directions_and_answers() -> None:
    stories = load(FAMILY)
    assert len(stories) == 600 and len(load(FAMILY, split="fisher")) == 200
    assert Counter(s.condition for s in stories) == {f"{FAMILY}/{c}": 120 for c in family(FAMILY).conditions}
    for kind in KINDS:
        for condition in family(FAMILY).conditions:
            chosen = [s for s in stories if s.kind == kind and s.condition.endswith(condition)]
            assert Counter(s.answer for s in chosen) == {0: 20, 1: 20}
    assert stories[:60] == load(FAMILY, n=60)
    with pytest.warns(UserWarning, match="320 questions .* there are 324"):
        load(FAMILY, n=320)


def test_pieces_say_what_they_stand_for() -> None:
    for frame in frames("evaluation") + frames("fisher"):
        pieces = frame.pieces
        assert all(
            "{start}" in pieces["opening"] and f"{{{who}}}" in pieces["opening"] for who in ("name", "friend")
        )
        assert (
            "{friend}" in pieces["away"]
            and "{name}" not in pieces["away"]
            and "{thing}" not in pieces["away"]
        )
        assert "{name}" in pieces["moved"] and "{thing}" in pieces["moved"] and "{end}" in pieces["moved"]
        assert "{friend}" not in pieces["moved"]
        assert re.search(
            r"\{friend\}.* (sees?|watches|can see|follows|tells|shows)|(tells|shows) \{friend\}",
            pieces["seen"],
        )
        assert re.search(
            r"\{name\} .*(does not|no idea|unaware|believes that)|to \{name\} that", pieces["seen"]
        )
        assert re.search(r"\{name\} .*(notices|sees \{friend\}|believes it)", pieces["noticed"])
        assert re.search(r"\{name\} (knows|is aware)", pieces["missed"])
        assert re.search(r"nothing|can see nothing", pieces["missed"]) and "{friend}" in pieces["missed"]
        assert (
            "does not" in pieces["stays"]
            or "leaves the {thing}" in pieces["stays"]
            or "remains" in pieces["stays"]
        )
        assert (
            "{friend} stay" in pieces["watched"]
            or "{friend} waits" in pieces["watched"]
            or "sits" in pieces["watched"]
        )
        for name in ("away", "seen", "noticed", "missed"):
            assert not re.search(r"\{(start|end)\}", pieces[name])


def test_tables_keep_the_orders_apart() -> None:
    stories = load(FAMILY, n=60)
    records = tuple(
        Record(s.id, s.group, s.condition, s.cell, s.kind, float(s.order == 2), s.answer_text)
        for s in stories
    )
    found = conditions_of(Scores(records))
    for name, accuracy in (
        ("false-belief", 1.0),
        ("false-belief/first-order", 0.0),
        ("false-belief/reality", 0.0),
    ):
        for full in (name, f"{FAMILY}/{name}"):
            assert (found[full]["accuracy"], found[full]["n"]) == (accuracy, 4), full
    assert found[f"{FAMILY}/false-belief/both"]["accuracy"] == 0.0 and found["all"]["n"] == 60


def test_the_task_is_listed_and_first_order_tasks_are_what_they_were() -> None:
    assert FAMILY in available()
    stories = load("false-belief", n=320)
    parts = ((story.id, story.prompt, *story.choices, str(story.answer)) for story in stories)
    digest = sha256_of_text(*(text for part in parts for text in part))
    assert digest == "196ab0993ffe86e141612a05475e5335005888043b01b933a83c1a9026208907"
    assert {story.condition.split("/")[0] for story in load("false-belief", n=640)} == set(FIRST_ORDER)
