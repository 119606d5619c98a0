"""A whole study gives the same numbers whatever of PyTorch's global state the caller has switched on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tomfisher
from tomfisher.results import Results
from tomfisher.studies import Config


def numbers(results: Results) -> list[object]:
    return list(results.rows)


@pytest.fixture
def small(tiny_settings: dict[str, object]) -> dict[str, object]:
    return tiny_settings | {"kappas": [0.05], "random_seeds": 1, "limit": 8, "perplexity_tokens": 100}


def test_a_study_runs_as_in_a_fresh_process(small: dict[str, object], tmp_path: Path) -> None:
    plain = tomfisher.Experiment(Config.from_dict(small)).run(progress=False)
    torch.set_default_dtype(torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
            again = tomfisher.Experiment(Config.from_dict(small | {"output_path": str(tmp_path / "again")}))
            found = again.run(progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert numbers(found) == numbers(plain)
