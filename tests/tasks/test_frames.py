"""The frames as they stand: pools that share nothing, texts that keep their logic, no way round it by position."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter

import pytest

from tomfisher.tasks.frames import POOLS, Frame, Telling
from tomfisher.tasks.frames import family as told
from tomfisher.tasks.generator import FAMILIES, FIRST_ORDER
from tomfisher.tasks.names import CASTS_PER_FILLING, EVALUATION_NAMES, FISHER_NAMES, roles

NAMES = {"name", "friend", "he", "He", "him", "his"}


def frames(family: str, split: str) -> list[Frame]:
    return list(told(family).frames[split])


def nouns(split: str) -> set[str]:
    found: set[str] = set()
    for family in FAMILIES:
        for frame in frames(family, split):
            found |= set(frame.things) | {word for pair in frame.pairs for word in pair}
    return found


def slots(text: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(text) if field}


def tellings(family: str, pool: str, condition: str) -> Iterator[tuple[Telling, tuple[str, str]]]:
    """The telling and the pair of every frame and direction, first filling."""
    for frame in frames(family, pool):
        for pair in (frame.pairs[0], frame.pairs[0][::-1]):
            yield told(family).tell(frame, condition, pair, 0, roles(EVALUATION_NAMES, 0, 0, 0)), pair


@pytest.mark.parametrize("family", FAMILIES)
def test_pools_are_large_and_share_no_frame(family: str) -> None:
    evaluation, fisher = ({f.name for f in frames(family, split)} for split in ("evaluation", "fisher"))
    assert len(evaluation) == len(frames(family, "evaluation")) >= 8
    assert len(fisher) == len(frames(family, "fisher")) >= 8
    assert not evaluation & fisher


def test_pools_share_no_name_and_no_noun() -> None:
    assert not EVALUATION_NAMES.all & FISHER_NAMES.all
    assert len(EVALUATION_NAMES.all) == len(FISHER_NAMES.all) == 16
    assert not nouns("evaluation") & nouns("fisher")
    names = [frame.name for family in FAMILIES for pool in POOLS for frame in frames(family, pool)]
    assert len(set(names)) == len(names)


def test_no_name_of_one_pool_is_written_into_a_frame() -> None:
    for family in FAMILIES:
        for split in ("evaluation", "fisher"):
            for frame in frames(family, split):
                text = " ".join((frame.name, frame.verb, *frame.pieces.values()))
                assert not set(re.findall(r"\b\w+\b", text)) & (EVALUATION_NAMES.all | FISHER_NAMES.all)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["evaluation", "fisher"])
def test_pairs_are_single_words_and_no_pair_comes_twice(family: str, split: str) -> None:
    for frame in frames(family, split):
        assert all(re.fullmatch(r"[a-z]+", word) for pair in frame.pairs for word in pair)
        assert len({frozenset(pair) for pair in frame.pairs}) == len(frame.pairs) >= 4


def test_contents_pieces_tell_what_their_condition_needs() -> None:
    for frame in frames("contents", "evaluation") + frames("contents", "fisher"):
        pieces = frame.pieces
        assert slots(pieces["opening"]) <= NAMES and slots(pieces["unseen"]) <= NAMES
        assert {"inside", "label"} == slots(pieces["filled"]) - NAMES
        assert {"inside", "label"} == slots(pieces["agreed"]) - NAMES
        assert "inside" in slots(pieces["told"]) and "friend" in slots(pieces["told"])
        assert "believe" in pieces["told"] or "takes {friend}'s word" in pieces["told"]
        assert "inside" in slots(pieces["seen"]) and "friend" not in slots(pieces["seen"])


def test_transfer_pieces_tell_what_their_condition_needs() -> None:
    for frame in frames("transfer", "evaluation") + frames("transfer", "fisher"):
        pieces = frame.pieces
        assert "start" in slots(pieces["opening"]) and "thing" in slots(pieces["opening"])
        assert {"start", "end", "friend"} <= slots(pieces["moved"]) | slots(pieces["opening"])
        assert "friend" in slots(pieces["moved"]) and "end" in slots(pieces["moved"])
        assert not {"start", "end"} & slots(pieces["back"])
        assert {"end", "friend"} <= slots(pieces["told"]) and "believe" in pieces["told"]
        assert {"start", "end", "friend"} <= slots(pieces["watched"])
        assert "end" in slots(pieces["stays"])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_telling_is_complete_and_short(family: str, pool: str) -> None:
    for condition in told(family).conditions:
        for telling, _ in tellings(family, pool, condition):
            text = telling.text
            assert "{" not in text and "  " not in text and text == text.strip()
            assert 3 <= len(re.findall(r"[.!?](?=\s|$)", text)) <= 6, text


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("family", "condition"), [(f, c) for f in FAMILIES for c in told(f).conditions])
def test_both_words_are_told_and_neither_end_gives_the_answer_away(
    family: str, condition: str, pool: str
) -> None:
    for kind in told(family).stems:
        first = last = total = 0
        for telling, pair in tellings(family, pool, condition):
            words = [word for word in re.findall(r"[a-z]+", telling.text) if word in pair]
            if condition != "open":
                assert set(words) == set(pair), telling.text
            answer = telling.questions[kind][1]
            first, last, total = first + (words[0] == answer), last + (words[-1] == answer), total + 1
        assert 0.3 <= first / total <= 0.7, f"first mention answers {kind} in {first} of {total}"
        assert 0.3 <= last / total <= 0.7, f"last mention answers {kind} in {last} of {total}"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_frame_names_a_word_that_is_exchanged(family: str) -> None:
    for pool in POOLS:
        for frame in frames(family, pool):
            text = re.sub(r"\{\w+\}", "", " ".join(frame.pieces.values()))
            literal = set(re.findall(r"[a-z]+", text))
            assert not literal & {word for pair in frame.pairs for word in pair}, frame.name
            assert family == "contents" or not literal & set(frame.things), frame.name


@pytest.mark.parametrize("family", FIRST_ORDER)
def test_belief_and_reality_part_only_in_false_belief(family: str) -> None:
    for condition in told(family).conditions:
        for telling, _ in tellings(family, "evaluation", condition):
            answers = {answer for _, answer in telling.questions.values()}
            assert (len(answers) == 2) == (condition == "false-belief")


def test_friend_has_the_other_pronoun_and_casts_differ() -> None:
    for pool in (EVALUATION_NAMES, FISHER_NAMES):
        for frame in range(10):
            for filling in range(4):
                casts = [roles(pool, frame, filling, cast) for cast in range(CASTS_PER_FILLING)]
                assert len({cast["name"] for cast in casts}) == CASTS_PER_FILLING
                for cast in casts:
                    assert (
                        (cast["name"] in pool.women) == (cast["he"] == "she") == (cast["friend"] in pool.men)
                    )
