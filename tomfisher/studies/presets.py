"""Complete named studies: `tomfisher run --preset NAME`."""

from __future__ import annotations

from typing import Any

from tomfisher.near_miss import unknown

ARCHITECTURES = "architectures"  # five studies in one preset: tomfisher.studies.architectures
PRESETS: dict[str, dict[str, Any]] = {
    "demo-testbed": {
        "model": "testbed-llama",
        "task": "testbed",
        "control": "testbed",
        "output_path": "runs/demo-testbed",
        "n_task": 200,
        "n_control": 200,
        "eval_dtype": "fp32",
        "kappas": [3e-3, 1e-2, 2e-2, 3e-2, 5e-2],
        "random_seeds": 5,
        "limit": 320,
    },
    "demo-smollm2": {
        "model": "smollm2-135m",
        "task": "false-belief",
        "control": "python-reference",
        "output_path": "runs/demo-smollm2",
        "n_task": 100,
        "n_control": 100,
        "control_length": 128,
        "kappas": [1e-5, 2e-5, 5e-5, 1e-4, 1e-3],
        "random_kappas": [1e-3],
        "random_seeds": 5,
        "limit": 320,
        "perplexity_tokens": 2048,
    },
    ARCHITECTURES: {
        "model": "testbed2-*",
        "task": "testbed2",
        "control": "testbed",
        "output_path": "runs/architectures",
        "n_task": 200,
        "n_control": 200,
        "control_length": 64,
        "eval_dtype": "fp32",
        "kappas": [1e-2, 3e-2, 5e-2],
        "random_seeds": 5,
        "limit": 720,
        "perplexity_tokens": 4096,
        "perplexity_window": 128,
    },
}


def preset_values(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return dict(PRESETS[name])
