"""The texts of a study."""

from __future__ import annotations

from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs


def test_the_perplexity_text_is_the_same_for_every_seed() -> None:
    first, second = (Inputs(Config(model="m", control="testbed", seed=seed)) for seed in (0, 1))
    assert first.perplexity_text == second.perplexity_text
    assert not set(first._control[0].documents) & set(second._control[1].documents)
