from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tomfisher.kernels import tuning
from tomfisher.kernels.tuning import Config, Problem

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._tuned.cache_clear()
    yield tmp_path
    tuning._tuned.cache_clear()


def tile(d_out: int, d_in: int, lengths: tuple[int, ...] = (128,) * 100, **rest: int) -> tuple[int, int, int]:
    config = tuning.pick(Problem(d_out, d_in, BF16, lengths, **rest))
    return config.block_out, config.block_in, config.block_tokens


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((14336, 4096), (128, 128, 64)),
        ((1024, 4096), (128, 128, 64)),
        ((1024, 1024), (64, 128, 64)),
        ((576, 576), (64, 64, 64)),
        ((4096, 50_257), (64, 128, 64)),
        ((50_257, 4096), (128, 128, 64)),
        ((8, 4096), (16, 128, 64)),
        ((4096, 1), (128, 16, 64)),
        ((1, 1), (16, 128, 64)),
    ],
)
def test_the_tile_follows_the_shape(shape: tuple[int, int], expected: tuple[int, int, int]) -> None:
    assert tile(*shape) == expected


def test_short_segments_take_short_token_blocks() -> None:
    assert tile(4096, 4096, (20,) * 100) == (128, 128, 32)
    assert tile(4096, 4096, (65,) * 100) == (128, 128, 32)
    assert tile(4096, 4096, (60,) * 100) == (128, 128, 64)


def test_many_experts_fill_the_machine_with_large_tiles() -> None:
    assert tile(768, 2048, slices=64) == (128, 128, 64)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32])
@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 16), (17, 16), (16, 17), (17, 17), (152_064, 8192), (3, 99999)]
)
def test_there_is_a_configuration_for_every_shape(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for lengths in ((1,), (7, 4000), (33,) * 500):
        assert tuning.pick(Problem(*shape, dtype, lengths)) in tuning.shipped(dtype)


def test_small_layers_divide_the_samples_and_large_ones_do_not() -> None:
    small, large = Config(64, 64, 64, 4, 3), Config(128, 128, 64, 8, 4)
    assert tuning.splits(Problem(256, 256, BF16, (128,) * 100), small) == 8
    assert tuning.splits(Problem(4096, 4096, BF16, (128,) * 100), large) == 1
    assert tuning.splits(Problem(256, 256, BF16, (128,) * 3), small) == 1, "too little work to divide"
    assert tuning.splits(Problem(256, 256, BF16, (10_000,)), small) == 1, "one sample cannot be divided"


def test_the_tuner_returns_the_fastest_that_fits_and_remembers_it_when_asked(cache: Path) -> None:
    problem = Problem(1024, 1024, BF16, (128,) * 8)
    fastest = Config(64, 64, 64, 4, 3)
    seen: list[Config] = []

    def measure(config: Config) -> float:
        seen.append(config)
        return 0.1 if config == fastest else 0.2

    assert tuning.pick(problem) != fastest
    assert tuning.tune(problem, measure) == fastest
    assert len(seen) == len(set(seen)) == 4, "thin tiles do not fit and are not timed"
    assert tuning.pick(problem) != fastest and not list(cache.rglob("*.json"))

    assert tuning.tune(problem, measure, save=True) == fastest
    assert tuning.pick(problem) == fastest
    assert tuning.pick(Problem(1024, 1024, torch.float16, (128,) * 8)) != fastest
    (path,) = cache.rglob("*.json")
    assert list(json.loads(path.read_text())) == ["bfloat16 1024x1024"]
