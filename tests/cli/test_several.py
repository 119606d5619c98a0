"""Commands under torchrun: one result, written and printed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Ended, torchrun

import tomfisher
from tomfisher.cli.main import main

pytestmark = pytest.mark.slow

FISHER = (
    *("fisher", "--model", "testbed-llama", "--task", "testbed", "--n_task", "6", "--device", "cpu"),
    *("--fisher_dtype", "fp32", "--output_path"),
)


def _tomfisher(folder: Path, size: int, *words: str) -> Ended:
    return torchrun(folder, size, "-m", "tomfisher", *words)


def test_fisher_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    ended = _tomfisher(tmp_path, 2, *FISHER, "two")
    assert ended.code == 0, ended.err
    assert ended.out.count("two: ") == 1
    assert main([*FISHER, str(tmp_path / "one")]) == 0
    one, two = (tomfisher.FisherDiagonal.load(tmp_path / name) for name in ("one", "two"))
    assert one.num_samples == two.num_samples == 6
    assert two.metadata["ranks"]["world_size"] == 2
    assert two.metadata["ranks"]["samples"] == [3, 3]
    for name in one:
        assert float((one[name] - two[name]).norm()) <= 1e-6 * float(one[name].norm())


def test_what_two_processes_cannot_do_is_said(tmp_path: Path) -> None:
    ended = _tomfisher(tmp_path, 2, "ls", "tasks")
    assert ended.code != 0
    assert "`tomfisher ls` works in one process, but is started as one of 2" in ended.err
    (tmp_path / "here").write_text("a file")
    ended = _tomfisher(tmp_path, 2, *FISHER, "here")
    assert ended.code != 0
    assert "rank 0: here is a file, not a folder" in ended.err
