"""A small study on the testbed model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A small finished study on the testbed model: its folder and its results."""
    from tomfisher.studies import Experiment

    folder = tmp_path_factory.mktemp("study") / "run"
    settings = {
        "model": "testbed-llama",
        "task": "testbed",
        "control": "testbed",
        "output_path": str(folder),
        "n_task": 30,
        "n_control": 20,
        "kappas": [0.03],
        "random_seeds": 2,
        "limit": 64,
        "perplexity_tokens": 600,
        "perplexity_window": 128,
        "eval_dtype": "fp32",
        "device": "cpu",
    }
    return SimpleNamespace(folder=folder, results=Experiment(settings).run(progress=False))
