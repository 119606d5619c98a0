"""Which parts an analysis of one model has, and that a model is as before."""

from __future__ import annotations

import pytest

from bits import same_bits, state_of
from tomfisher import perturb
from tomfisher.analysis import analyze, compare
from tomfisher.models import load_model
from tomfisher.studies.model_analysis import analyze_model, chosen_parts
from training import some_mask

PROMPTS = [[1, 2, 3, 4, 5, 6], [3, 1, 4, 1, 5]]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(str(tiny_model), "fp32", "cpu")


def test_every_part_there_can_be_unless_some_are_asked_for():
    assert chosen_parts(None, False) == ["rope", "sinks"]
    assert chosen_parts(None, True) == ["rope", "sinks", "profile"]
    assert chosen_parts(["sinks"], True, [(0, 1)]) == ["sinks"]


@pytest.mark.parametrize(
    ("asked", "heads", "message"),
    [
        ([], [], "No part to analyse"),
        (["waves"], [], "Unknown part 'waves'. Parts: rope, sinks, profile"),
        (["profile"], [], "says where a mask lies"),
        (["rope"], [(0, 1)], "Maps of heads belong to the part"),
    ],
)
def test_parts_that_cannot_be_are_refused(asked, heads, message):
    with pytest.raises(ValueError, match=message):
        chosen_parts(asked, False, heads)


def test_without_a_mask_there_is_the_model_alone(loaded):
    found = analyze_model(loaded, PROMPTS, ["rope", "sinks"]).to_dict()
    assert set(found) == {"model", "scan", "mask", "baseline"} and found["mask"] is None
    assert found["baseline"] == analyze(loaded.model, PROMPTS).to_dict()


@pytest.mark.parametrize("parts", [["rope", "sinks", "profile"], ["profile"]])
def test_under_a_mask(loaded, parts):
    before, mask = state_of(loaded.model), some_mask(loaded.model).restrict("*proj.weight")
    perturbation = perturb(loaded.model, mask, fill="zero")
    found = analyze_model(loaded, PROMPTS, parts, (), perturbation, "m", fill="zero")
    assert same_bits(state_of(loaded.model), before)
    assert found.mask == "m" and found.profile is not None and found.profile.enrichment is not None
    if parts == ["profile"]:
        assert found.masked is None and not found.change
        return
    with perturb(loaded.model, mask, fill="zero"):
        after = analyze(loaded.model, PROMPTS)
    expected = {part: compare(found.baseline.results[part], after.results[part]) for part in after.results}
    assert found.masked is not None
    for part, result in after.results.items():
        assert found.masked.results[part].to_dict() == result.to_dict()
    assert found.to_dict()["change"] == {part: change.to_dict() for part, change in expected.items()}
