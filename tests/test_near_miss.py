from __future__ import annotations

import pytest

from tomfisher import tasks
from tomfisher.interventions import ablation
from tomfisher.models import load_model
from tomfisher.near_miss import nearest, unknown
from tomfisher.studies.config import refuse_unknown
from tomfisher.studies.presets import preset_values
from tomfisher.tasks import corpus

NAMES = ("false-belief", "second-order", "irony")


@pytest.mark.parametrize("word", ["false-beleif", "false_belief", "False-Belief", "falsebelief"])
def test_a_slip_is_near(word):
    assert nearest(word, NAMES) == "false-belief"
    asked = f"Unknown task {word!r}. Did you mean 'false-belief'?"
    assert unknown("task", word, NAMES) == f"{asked} Tasks: {', '.join(NAMES)}."
    assert unknown("task", word, (*NAMES, *map(str, range(20)))) == asked  # more than a message can list


@pytest.mark.parametrize("word", ["", "gsm8k", "belief/false"])
def test_another_word_is_not(word):
    assert nearest(word, NAMES) is None
    assert unknown("task", word, NAMES) == f"Unknown task {word!r}. Tasks: {', '.join(NAMES)}."


def test_a_higher_cutoff_asks_for_more_likeness():
    assert nearest("first-order", NAMES) == "second-order" and nearest("first-order", NAMES, 0.9) is None


@pytest.mark.parametrize(
    ("call", "word", "meant"),
    [
        (tasks.load, "false-beleif", "false-belief"),
        (preset_values, "demo-smolm2", "demo-smollm2"),
        (load_model, "smollm-135m", "smollm2-135m"),
        (ablation.parse, "of-sink", "off-sink"),
        (lambda word: refuse_unknown({word: 1}), "kapas", "kappas"),
        (lambda word: corpus.load(word, 1), "python-refrence", "python-reference"),
    ],
)
def test_every_place_that_takes_a_name_asks(call, word, meant):
    with pytest.raises(ValueError, match=rf"{word}'.* Did you mean '{meant}'\?"):
        call(word)
