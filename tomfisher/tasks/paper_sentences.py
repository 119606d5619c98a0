"""What is said beside the texts of the paper's items: sentences and stems, in our own words.

They hold the placeholders of the items (S1, S2, CX, XNAM), so that they are filled as the texts are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CALL = (
    "Then a friend calls XNAM with the news that the CX {are} full of S1, and that the label, which says S2, must be "
    "ignored. XNAM believes the friend."
)
BELIEF = "On the phone, XNAM tells a friend that the CX, which XNAM has only just found, {are} full of"
ANSWER = "The correct answer, Yes or No, is"
LITERALLY = "Does the speaker literally think so?"

_GROUP = re.compile(r"(?:pile|set|stack|pair|collection|series) of (?=.)", re.IGNORECASE)
_DRIVE = re.compile(r"(?:drives?|(?:usb|memory) sticks?|memory cards?|servers?)$", re.IGNORECASE)
_RECORDING = re.compile(r"\b(?:cds?|lps?|cassettes?|vinyls?|audio ?books?|mp3 players?)$", re.IGNORECASE)
_CLOSING = "\"'”’»)] "


@dataclass(frozen=True)
class Sentences:
    """The sentences around the text of a contents item.

    Args:
        unseen: the container stays closed and the label is read.
        opened: the container is opened, looked into, and the label read.
        call: a friend says what is inside and is believed.
        reality: stem of the question what is inside.
        belief: stem of the question what the protagonist takes to be inside.
    """

    unseen: str
    opened: str
    call: str
    reality: str
    belief: str

    def told(self, condition: str) -> str:
        """What stands after the text in a condition."""
        if condition == "open":
            return self.opened
        return f"{self.unseen} {self.call}" if condition == "informed" else self.unseen


def around(container: str) -> Sentences:
    """The sentences for a container: a box is opened, a hard drive connected to, a CD listened to."""
    are = "are" if re.search(r"[^su]s$", container.strip().split(" of ")[0]) else "is"
    head = _GROUP.sub("", container.strip(), count=1).split(" of ")[0]
    opening, looking = "opening the CX", "looking inside"
    opens, looks, finds = "opens the CX", "looks inside", "sees"
    if _DRIVE.search(head):
        opening, looking = "connecting to the CX", "looking at what is stored there"
        opens, looks = "connects to the CX", "looks at what is stored there"
    elif _RECORDING.search(head):
        looking, looks, finds = "listening to what is on the CX", "listens to what is on the CX", "hears"
        opening, opens = "playing the CX", "plays the CX"
    return Sentences(
        unseen=f"Without {opening} or {looking}, XNAM reads the label.",
        opened=f"Before reading the label, XNAM {opens} and {looks}.",
        call=CALL.format(are=are),
        reality=f"When XNAM {opens} and {looks}, XNAM {finds} that the CX {are} full of",
        belief=BELIEF.format(are=are),
    )


def after_irony(text: str) -> str:
    """The stem after an irony text: it asks for the correct answer, after a question of ours if the text has none."""
    return ANSWER if text.rstrip(_CLOSING).endswith(("?", "？")) else f"{LITERALLY} {ANSWER}"
