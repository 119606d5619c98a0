from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_published

ACCESS = "missed_info_accessibility"
SET: dict[str, Any] = {
    "set_id": "7-0-1",
    "conv_id": "7",
    "short_context": "Ute: I adopted a {spotted} dog.\nVal: Lovely.",
    "factQA": {"question": "Which dog?", "correct_answer": "A spotted one.", "wrong_answer": "A dog."},
    "beliefQAs": [
        {
            **{
                "question": "Which dog does Wim think it is?",
                "tom_type": "first-order",
                ACCESS: "inaccessible",
            },
            **{"correct_answer": "Wim does not know.", "wrong_answer": "Wim thinks it is spotted."},
        },
        {
            **{
                "question": "What does Val think Ute thinks?",
                "tom_type": "second-order:cyclic",
                ACCESS: "accessible",
            },
            **{"correct_answer": "That it is spotted.", "wrong_answer": "She does not know."},
        },
    ],
    "answerabilityQAs_binary": [
        {"question": "Does Wim know the answer?", "correct_answer": "no:long", ACCESS: "inaccessible"}
    ],
    "infoAccessibilityQAs_binary": [
        {"question": "Does Val know this information?", "correct_answer": "yes", ACCESS: "accessible"}
    ],
    "answerabilityQA_list": {
        "question": "Who knows?",
        "correct_answer": ["Ute", "Val"],
        "wrong_answer": ["Wim"],
    },
}


def write(path: Path, *sets: dict[str, Any]) -> Path:
    path.write_text(json.dumps(sets, indent=1))
    return path


def test_questions_and_conditions(tmp_path: Path) -> None:
    other = {**SET, "set_id": "7-1-0", "short_context": "Val: Hello again."}
    stories = read_published("fantom", write(tmp_path / "fantom_v1.json", SET, other))
    assert [(s.group, s.order, s.answer_text) for s in stories[:5]] == [
        ("fantom/reality", 0, "A spotted one."),
        ("fantom/false-belief", 1, "Wim does not know."),
        ("fantom/second-order/true-belief", 2, "That it is spotted."),
        ("fantom/answerability", 1, "no"),
        ("fantom/info-access", 1, "yes"),
    ]
    assert len(stories) == 10 and len({s.scene for s in stories}) == 1  # two sets on one conversation
    assert stories[3].prompt == (
        "Ute: I adopted a {spotted} dog.\nVal: Lovely.\nTarget: Which dog?\n"
        "Question: Does Wim know the answer? Answer yes or no.\nAnswer:"
    )
    assert "\nInformation: Which dog? A spotted one.\nQuestion: " in stories[4].prompt


def _without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda one: one.pop(field) and None


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (_without("short_context"), "field 'short_context' is missing"),
        (_without("factQA"), "factQA must be an object"),
        (_without("beliefQAs"), "field 'beliefQAs' must be a list of questions"),
        (
            lambda one: one["beliefQAs"][1].update({ACCESS: "maybe"}),
            f"question 2 of beliefQAs: field {ACCESS!r}",
        ),
        (
            lambda one: one["beliefQAs"][0].update(tom_type="third"),
            "question 1 of beliefQAs: field 'tom_type'",
        ),
        (
            lambda one: one["infoAccessibilityQAs_binary"][0].update(correct_answer="perhaps"),
            "the right answer 'perhaps' is none of the possible ones: 'yes', 'no'",
        ),
    ],
)
def test_malformed_sets(tmp_path: Path, break_it: Callable[[dict[str, Any]], None], reason: str) -> None:
    bad = copy.deepcopy(SET)
    break_it(bad)
    path = write(tmp_path / "fantom_v1.json", SET, bad)
    with pytest.raises(ValueError) as caught:
        read_published("fantom", path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line ") and "record 2" in message and reason in message
