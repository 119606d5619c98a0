"""A study by several processes: one folder, the results of one process, and resumed by any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_ranks, torchrun

from tomfisher import FisherDiagonal, SparseMask
from tomfisher.studies import Config, Experiment

pytestmark = pytest.mark.slow


def _config(settings: dict[str, Any], folder: Path) -> Config:
    return Config.from_dict({**settings, "output_path": str(folder), "analysis_prompts": 4})


def _points(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "results.json").read_text())
    return {"baseline": data["baseline"], "points": data["points"]}


def _assert_same_study(a: Path, b: Path) -> None:
    assert _points(a) == _points(b)
    masks = sorted(file.name for file in (a / "masks").iterdir())
    assert masks == sorted(file.name for file in (b / "masks").iterdir())
    for name in masks:
        assert SparseMask.load(a / "masks" / name) == SparseMask.load(b / "masks" / name), name
    assert (a / "verdict.txt").read_text() == (b / "verdict.txt").read_text()
    assert (a / "analysis.json").is_file() == (b / "analysis.json").is_file()


AGAIN = """
from tomfisher.cli.main import main

assert main(["run", "--config", "study.yaml"]) == 0
"""


def test_two_processes_run_the_study_of_one(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    Experiment(_config(tiny_settings, one)).run(progress=False)
    file = tmp_path / "study.yaml"
    file.write_text(_config(tiny_settings, two).to_yaml())
    ended = torchrun(tmp_path, 2, "-m", "tomfisher", "run", "--config", "study.yaml")
    assert ended.code == 0, ended.err
    assert ended.out.count("Results: ") == 1
    assert ended.err.count("Fisher diagonal of 15 task samples") == 1
    _assert_same_study(one, two)
    assert (two / "report.html").is_file()
    ranks = FisherDiagonal.load(two / "fisher" / "task").metadata["ranks"]
    assert ranks["world_size"] == 2
    assert sum(ranks["samples"]) == 15
    for again in run_ranks(tmp_path, AGAIN, 3):  # finished: nothing is left
        assert again.code == 0, again.err
        assert "Fisher diagonal" not in again.err
    _assert_same_study(one, two)


def test_two_processes_stream_the_study_of_one(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny_settings | {"analysis_prompts": 0, "share_prefix": "no"}
    one, two = (settings | {"output_path": str(tmp_path / name)} for name in ("one", "two"))
    Experiment(one).run(progress=False)
    (tmp_path / "study.yaml").write_text(Config.from_dict(two | {"stream": "yes"}).to_yaml())
    ended = torchrun(tmp_path, 2, "-m", "tomfisher", "run", "--config", "study.yaml")
    assert ended.code == 0, ended.err
    assert ended.out.count("Results: ") == 1
    _assert_same_study(tmp_path / "one", tmp_path / "two")
    metadata = FisherDiagonal.load(tmp_path / "two" / "fisher" / "task").metadata
    assert metadata["ranks"]["world_size"] == 2 and metadata["streamed"]["passes"] == 1
    assert sorted(path.name for path in (tmp_path / "two" / "fisher").iterdir()) == ["control", "task"]


KILLED = """
from tomfisher.studies import Config, Experiment
from tomfisher.studies.measure import Measure

measure, calls = Measure.__call__, 0
def counted(self):
    global calls
    calls += 1
    if calls == 5 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self)
Measure.__call__ = counted
try:
    Experiment(Config.resolve({}, config="study.yaml")).run(progress=False)
except ranks.RankError as error:
    sys.exit(f"said: {error}")
"""


def test_a_study_that_loses_a_rank_is_finished_by_one_process(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    one, two = _config(tiny_settings, tmp_path / "one"), _config(tiny_settings, tmp_path / "two")
    (tmp_path / "study.yaml").write_text(two.to_yaml())
    first, second, third = run_ranks(tmp_path, KILLED, 3, {"TOMFISHER_RANK_TIMEOUT": "4"})
    assert second.code == -9
    for ended in (first, third):
        assert ended.code == 1
        assert "said: Rank 1 has ended, and the others with it: no sign of life for 4 s" in ended.err
    assert len(list((tmp_path / "two" / "points").glob("[!.]*.json"))) == 4
    Experiment(two).run(progress=False)
    Experiment(one).run(progress=False)
    _assert_same_study(tmp_path / "one", tmp_path / "two")


ELSEWHERE = """
from tomfisher.studies import Config, Experiment

if rank == 1:
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
config = Config.resolve({}, config="study.yaml" if rank == 0 else "../study.yaml")
told(elsewhere=refusal(Experiment(config).run, progress=False))
if rank == 1:
    os.chdir("..")
config = Config.resolve({"seed": rank}, config="study.yaml")
told(config=refusal(Experiment(config).run, progress=False))
"""


def test_ranks_with_other_settings_or_folders_are_refused(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(_config(tiny_settings, Path("two")).to_yaml())
    first, second = (process.facts for process in run_ranks(tmp_path, ELSEWHERE, 2))
    assert "Rank 1 does not see what rank 0 writes to two" in second["elsewhere"]
    assert "Rank 1 has ended" in first["elsewhere"]
    for facts in (first, second):
        assert "Rank 1 differs from rank 0 in the study" in facts["config"]
        assert "seed: 0 on rank 0, 1 on rank 1" in facts["config"]
