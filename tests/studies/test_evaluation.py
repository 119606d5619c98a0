"""A model and the same model under a mask: the states are those measured one by one, and the model is as before."""

from __future__ import annotations

import json

import pytest

from bits import same_bits, state_of
from tomfisher import perturb
from tomfisher.models import load_model
from tomfisher.results.conditions import conditions_of
from tomfisher.studies import Config
from tomfisher.studies.evaluation import evaluation
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.measure import Measure
from training import some_mask


@pytest.fixture
def measure(tiny_settings):
    config = Config.from_dict({**tiny_settings, "fill": "zero"})
    loaded = load_model(config.model, "fp32", "cpu")
    return Measure(config, Inputs(config), loaded)


def test_without_a_mask_there_is_the_model_alone(measure):
    found = evaluation(measure)
    assert list(found) == ["model", "scan", "baseline"] and list(found["baseline"]) == [
        "conditions",
        "scores",
    ]
    assert found["baseline"]["conditions"] == conditions_of(measure.score())


def test_under_a_mask(measure):
    model, mask = measure.loaded.model, some_mask(measure.loaded.model)
    before = state_of(model)
    found = evaluation(measure, perturb(model, mask, fill="zero"), "m", with_perplexity=True)
    assert same_bits(state_of(model), before)
    scores, perplexity = measure()
    with perturb(model, mask, fill="zero"):
        masked_scores, masked_perplexity = measure()
    masked = found["masked"]
    assert (masked["mask"], masked["nnz"], masked["fill"]) == ("m", mask.nnz, "zero")
    assert masked["conditions"] == conditions_of(masked_scores, scores)
    assert found["baseline"]["perplexity"] == perplexity.token != masked["perplexity"]
    assert masked["perplexity"] == masked_perplexity.token
    assert json.dumps(found)
