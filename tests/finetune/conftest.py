"""The samples that trainings are tried on."""

from __future__ import annotations

import pytest

from tomfisher import Sample
from training import training_samples


@pytest.fixture
def samples() -> list[Sample]:
    return training_samples()
