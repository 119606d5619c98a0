"""Commands as a launcher starts them on several ranks: one result, written and printed once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import Ended, launched, run_forks

import tomfisher
from tomfisher.cli.main import main

pytestmark = pytest.mark.slow

FISHER = (
    *("fisher", "--model", "testbed-llama", "--task", "testbed", "--n_task", "6", "--device", "cpu"),
    *("--fisher_dtype", "fp32", "--output_path"),
)


def _tomfisher(folder: Path, *words: str, before: str = "") -> list[Ended]:
    """Two ranks of a command, after some Python."""
    code = f"{before}\nimport sys\nfrom tomfisher.cli.main import main\nsys.exit(main({list(words)!r}))"
    return run_forks(folder, code, launched(2))


def test_fisher_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    first, second = _tomfisher(tmp_path, *FISHER, "two")
    assert first.code == second.code == 0, first.err + second.err
    assert first.out.count("two: ") == 1
    assert second.out == ""
    assert main([*FISHER, str(tmp_path / "one")]) == 0
    one, two = (tomfisher.FisherDiagonal.load(tmp_path / name) for name in ("one", "two"))
    assert one.num_samples == two.num_samples == 6
    assert two.metadata["ranks"]["world_size"] == 2
    assert two.metadata["ranks"]["samples"] == [3, 3]
    for name in one:
        assert float((one[name] - two[name]).norm()) <= 1e-6 * float(one[name].norm())


def test_a_model_that_two_processes_share(tmp_path: Path) -> None:
    parallel = ("--parallel", "tensor")
    first, second = _tomfisher(tmp_path, *FISHER, "two", *parallel)
    assert first.code == second.code == 0, first.err + second.err
    assert main([*FISHER, str(tmp_path / "one")]) == 0
    one, two = (tomfisher.FisherDiagonal.load(tmp_path / name) for name in ("one", "two"))
    assert two.metadata["ranks"]["split"] == "model"
    assert two.metadata["model"] == one.metadata["model"]
    for name in one:
        assert float((one[name] - two[name]).norm()) <= 2e-6 * float(one[name].norm())
    tomfisher.top_fraction(two, 0.02).save(tmp_path / "mask.safetensors")
    asked = ("evaluate", "--model", "testbed-llama", "--task", "testbed", "--limit", "12", "--device", "cpu")
    words = (*asked, "--mask", str(tmp_path / "mask.safetensors"), "--output_path")
    first, second = _tomfisher(tmp_path, *words, "two.json", *parallel)
    assert first.code == second.code == 0, first.err + second.err
    assert main([*words, str(tmp_path / "one.json")]) == 0
    found, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert found["model"] == expected["model"]
    assert (
        found["masked"]["conditions"]
        == expected["masked"]["conditions"]
        != expected["baseline"]["conditions"]
    )


def test_a_model_cannot_be_shared_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FISHER, str(tmp_path / "one"), "--parallel", "tensor"]) == 2
    assert (
        "parallel='tensor' splits a model over several processes, and this one is alone"
        in capsys.readouterr().err
    )


def test_a_model_spread_over_two_processes_gives_the_store_of_one(tmp_path: Path) -> None:
    little = "from tomfisher.studies import auto_stream\nauto_stream.free_memory = lambda: 2"
    words = (*FISHER, "two", "--shard", "--boundary", str(tmp_path))
    first, second = _tomfisher(tmp_path, *words, before=little)  # which --stream auto would stream
    assert first.code == second.code == 0, first.err + second.err
    assert first.out.count("two: ") == 1
    assert main([*FISHER, str(tmp_path / "one")]) == 0
    one, two = (tomfisher.FisherDiagonal.load(tmp_path / name) for name in ("one", "two"))
    assert two.metadata["sharded"]["passes"] == 1
    said = two.metadata["model"]
    assert {key: said[key] for key in one.metadata["model"]} == one.metadata["model"]
    assert said["files"] and said["headers_sha256"] and said["content_sha256"]
    assert list(one) == list(two)
    for name in one:
        assert float((one[name] - two[name]).norm()) <= 1e-6 * float(one[name].norm())


def test_shard_needs_several_processes_and_no_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FISHER, str(tmp_path / "one"), "--shard"]) == 2
    assert "--shard spreads a model over processes, and this is one alone" in capsys.readouterr().err
    assert main([*FISHER, str(tmp_path / "one"), "--shard", "--max_memory", "1GB"]) == 2
    assert "--max_memory belongs to --stream auto" in capsys.readouterr().err
    ended = _tomfisher(tmp_path, *FISHER, "two", "--shard", "--stream")
    assert all(each.code for each in ended)
    assert "--shard and --stream are two ways" in ended[0].err


def test_what_two_processes_cannot_do_is_said(tmp_path: Path) -> None:
    ended = _tomfisher(tmp_path, "ls", "tasks")
    assert all(each.code for each in ended)
    assert "`tomfisher ls` works in one process, but is started as one of 2" in ended[0].err
    (tmp_path / "here").write_text("a file")
    ended = _tomfisher(tmp_path, *FISHER, "here")
    assert all(each.code for each in ended)
    assert "rank 0: here is a file, not a folder" in ended[0].err
