from __future__ import annotations

import json
import warnings
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


def tile(d_out: int, d_in: int, tokens: int = 128, segments: int = 100, **rest: int) -> tuple[int, int, int]:
    config = tuning.pick(Problem(d_out, d_in, BF16, tokens * segments, segments, **rest))
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
    assert tile(4096, 4096, 20) == (128, 128, 32)
    assert tile(4096, 4096, 65) == (128, 128, 32)
    assert tile(4096, 4096, 60) == (128, 128, 64)


def test_many_experts_fill_the_machine_with_large_tiles() -> None:
    assert tile(768, 2048, slices=64) == (128, 128, 64)


def test_a_few_tokens_per_expert_take_the_shortest_blocks() -> None:
    assert tile(768, 2048, 8, 12_800, slices=128) == (128, 128, 16)
    assert tile(768, 2048, 15, 800, slices=64) == (128, 128, 16)
    assert tile(768, 2048, 17, 800, slices=64) == (128, 128, 32)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32])
@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 16), (17, 16), (16, 17), (17, 17), (152_064, 8192), (3, 99999)]
)
def test_there_is_a_configuration_for_every_shape(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for rows, segments in ((1, 1), (4007, 2), (33 * 500, 500), (3, 500)):
        assert tuning.pick(Problem(*shape, dtype, rows, segments)) in tuning.shipped(dtype)


def test_small_layers_divide_the_samples_and_large_ones_do_not() -> None:
    small, large = Config(64, 64, 64, 4, 3), Config(128, 128, 64, 8, 4)
    assert tuning.splits(Problem(256, 256, BF16, 12800, 100), small) == 8
    assert tuning.splits(Problem(4096, 4096, BF16, 12800, 100), large) == 1
    assert tuning.splits(Problem(256, 256, BF16, 384, 3), small) == 1, "too little work to divide"
    assert tuning.splits(Problem(256, 256, BF16, 10_000, 1), small) == 1, "one sample cannot be divided"


def test_the_tuner_returns_the_fastest_that_fits_and_remembers_it_when_asked(cache: Path) -> None:
    problem = Problem(1024, 1024, BF16, 1024, 8)
    fastest = Config(64, 64, 64, 4, 3)
    seen: list[Config] = []

    def measure(config: Config) -> float:
        seen.append(config)
        return 0.1 if config == fastest else 0.2

    assert tuning.pick(problem) != fastest
    assert tuning.tune(problem, measure) == fastest
    assert len(seen) == len(set(seen)) == 5, "thin tiles do not fit and are not timed"
    assert tuning.pick(problem) != fastest and not list(cache.rglob("*.json"))

    assert tuning.tune(problem, measure, save=True) == fastest
    assert tuning.pick(problem) == fastest
    assert tuning.pick(Problem(1024, 1024, torch.float16, 1024, 8)) != fastest
    (path,) = cache.rglob("*.json")
    assert list(json.loads(path.read_text())) == ["bfloat16 1x1024x1024 length 128"]


def test_a_saved_choice_holds_for_its_own_triton_only(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, chosen = Problem(1024, 1024, BF16, 1024, 8), Config(64, 64, 64, 4, 3)
    tuning.tune(problem, lambda config: float(config != chosen), save=True)
    assert tuning.pick(problem) == chosen
    monkeypatch.setattr(tuning.triton, "__version__", "0.0")
    tuning._tuned.cache_clear()
    assert tuning.pick(problem) != chosen


def test_a_saved_choice_holds_for_like_problems_on_its_own_gpu_only() -> None:
    problem, chosen = Problem(1024, 1024, BF16, 1024, 8, gpu="A"), Config(64, 64, 64, 4, 3)
    tuning.tune(problem, lambda config: float(config != chosen), save=True)
    assert tuning.pick(Problem(1024, 1024, BF16, 330, 3, gpu="A")) == chosen
    for other in (
        Problem(1024, 1024, BF16, 40, 8, gpu="A"),
        Problem(1024, 1024, BF16, 8192, 64, slices=64, gpu="A"),
        Problem(1024, 1024, BF16, 1024, 8, gpu="B"),
    ):
        assert tuning.pick(other) != chosen


def test_a_saved_tile_of_8_warps_is_not_used_where_rows_of_F_may_start_anywhere() -> None:
    large = Config(128, 128, 64, 8, 4)
    tuning.tune(Problem(1024, 1024, BF16, 128, 1), lambda config: float(config != large), save=True)
    assert tuning.pick(Problem(1024, 1024, BF16, 128, 1)) == large
    assert tuning.pick(Problem(1024, 1024, BF16, 128, 1, aligned=False)).warps < 8


@pytest.mark.parametrize("shape", [(14336, 4096), (16, 16), (1024, 1024)])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_an_F_that_starts_anywhere_takes_no_tile_of_8_warps(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    assert tuning.pick(Problem(*shape, dtype, 12800, 100, aligned=False)).warps < 8


KEY = "bfloat16 1x1024x1024 length 128"
SHIPPED = {"block_out": 64, "block_in": 64, "block_tokens": 64, "warps": 4, "stages": 3}


@pytest.mark.parametrize(
    "text",
    [
        '{"bfloat16 1x10',
        "[]",
        "7",
        json.dumps({KEY: {**SHIPPED, "clusters": 2}}),
        json.dumps({KEY: {**SHIPPED, "stages": 99}}),
        json.dumps({KEY: [64, 64, 64, 4, 3]}),
        b"\xff\xfe\x00",
    ],
)
def test_a_bad_table_is_ignored_with_one_warning(text: str | bytes) -> None:
    problem = Problem(1024, 1024, BF16, 1024, 8)
    rule = tuning.pick(problem)
    tuning._tuned.cache_clear()
    path = tuning.table_path(problem.gpu)
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(UserWarning, match="tune again or delete the file") as caught:
        assert tuning.pick(problem) == rule
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.pick(problem) == rule


def test_a_bad_entry_does_not_cost_the_good_ones() -> None:
    problem = Problem(1024, 1024, BF16, 1024, 8)
    path = tuning.table_path(problem.gpu)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({KEY: SHIPPED, "other": {"warps": 3}}))
    with pytest.warns(UserWarning, match="do not ship, for other"):
        assert tuning.pick(problem) == Config(64, 64, 64, 4, 3)


def test_a_save_that_fails_leaves_the_table_as_it_was(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    problem = Problem(1024, 1024, BF16, 1024, 8)
    tuning.tune(problem, lambda config: 0.0, save=True)
    (path,) = cache.rglob("*.json")
    before = path.read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tuning.tune(problem, lambda config: float(config.warps), save=True)
    assert path.read_text() == before and list(path.parent.iterdir()) == [path]
