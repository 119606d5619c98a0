from __future__ import annotations

import pytest

from tomfisher.tasks.placeholders import Pair, fill

WORDS = {
    "S1": "figs",
    "S2": "nuts",
    "CX": "jar",
    "XNAM": "Ola",
    "XPRO": "She",
    "OBJ_PRO": "her",
    "POS_PRO": "her",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("XNAM has S1 in a CX.", "Ola has figs in a jar."),
        ("XPRO sees it; XPRO does.", "She sees it; she does."),
        ("“XPRO sees.” POS_PRO dog barks.", "“She sees.” Her dog barks."),
        ("XNAM's CX, (S1!), OBJ_PROself, CXs.", "Ola's jar, (figs!), herself, jars."),
        ("S10, AS1, S2X and CXX stay.", "S10, AS1, S2X and CXX stay."),
    ],
)
def test_fill(text: str, filled: str) -> None:
    assert fill(text, WORDS) == filled


def test_filled_words_are_not_filled_again() -> None:
    assert fill("S1 S2", {"S1": "S2", "S2": "S1"}) == "S2 S1"


@pytest.mark.parametrize(
    ("words", "text", "swapped"),
    [
        (("urn", "vase"), "In the urn, not the vase: turns, urns.", "In the vase, not the urn: turns, urns."),
        (("urn", "vase"), "Urn or VASE? The vase's lid.", "Vase or URN? The urn's lid."),
        (("urn", "vase"), "S1 or S2. In S1 it is.", "Vase or urn. In vase it is."),
        (("box", "toolbox"), "Toolbox, box, boxer.", "Box, toolbox, boxer."),
        (("box", "red box"), "The red box and the box.", "The box and the red box."),
        (
            ("red box", "green box"),
            "A red\nbox, a red  box, a green box.",
            "A green box, a green box, a red box.",
        ),
        (("cup", "cups"), "Cups and a cup.", "Cup and a cups."),
        (("Paris", "attic"), "Paris, the attic. Attic of Paris.", "Attic, the Paris. Paris of attic."),
        (("TV", "tv stand"), "On the tv stand by the TV.", "On the TV by the tv stand."),
        (("IT", "lab"), "It is in IT, it says. The lab.", "It is in lab, it says. The IT."),
        (("盒子", "篮子"), "球在盒子里。不在篮子里。", "球在篮子里。不在盒子里。"),
        (("ящик", "шкаф"), "Мяч: ящик, ящики. Шкаф.", "Мяч: шкаф, ящики. Ящик."),
        (("bin (blue)", "a.b"), "bin (blue), a.b, acb", "a.b, bin (blue), acb"),
    ],
)
def test_two_words_change_places(words: tuple[str, str], text: str, swapped: str) -> None:
    pair = Pair(*words)
    assert pair.swapped(text) == swapped
    assert pair.named(text) == set(words)
    if "S1" not in text and "\n" not in text:
        assert pair.swapped(swapped).casefold() == text.casefold()
        assert pair.as_written(text) == text


def test_a_longer_word_does_not_name_the_one_within_it() -> None:
    pair = Pair("box", "red box")
    assert pair.named("The red box.") == {"red box"}
    assert pair.named("The Box.") == {"box"}
    assert pair.named("Boxes and a toolbox.") == set()
    assert pair.named("In S2.") == {"red box"}
