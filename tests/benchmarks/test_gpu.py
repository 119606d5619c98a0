"""The day a GPU is there: every step on its own, records as they come, nothing hidden and nothing lost."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tomfisher.benchmarks import bench_gpu, bench_gpu_tests, bench_topk_gpu, harness
from tomfisher.benchmarks.bench_gpu import PARTS, Step
from tomfisher.cli.main import build_parser, main

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}'); print('wrote')"
FAILS = "import sys; print('why it failed'); sys.exit(3)"
HANGS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('{}'); time.sleep(600)"


def step(name, code, *words, gpu=True):
    """A step that runs a few lines of Python instead of a module."""
    return Step(
        name, ("timeit", "-n1", "-r1", "-s", f"import sys; sys.argv[1:] = {list(words)!r}", code), gpu
    )


def run(tmp_path, monkeypatch, *steps, limit=60.0):
    monkeypatch.setattr(bench_gpu, "PARTS", {"tests": steps})
    words = ["bench", "gpu", "--out", str(tmp_path), "--part", "tests", "--limit", str(limit)]
    code = main(words)
    record = json.loads((tmp_path / "tests.json").read_text())
    return code, {end["step"]: end for end in record["results"]["parts"]["tests"]}


@needs_no_gpu
def test_steps_without_a_gpu_are_reported_as_absent_and_the_others_run(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.json"
    code, ends = run(
        tmp_path, monkeypatch, step("compile", WRITES, str(own), gpu=False), step("timed", "print('a plan')")
    )
    assert code == 0
    assert ends["compile"]["status"] == "passed" and ends["compile"]["records"] == ["own.json"]
    assert ends["timed"]["status"] == "no GPU" and ends["timed"]["records"] == []
    assert "a plan" in (tmp_path / "timed.log").read_text()
    assert "no GPU" in capsys.readouterr().out


def test_a_failing_step_is_not_hidden_and_ends_nothing(tmp_path, monkeypatch):
    code, ends = run(tmp_path, monkeypatch, step("first", FAILS), step("second", "print(1)"))
    assert code == 1
    assert ends["first"]["status"] == "failed" and ends["second"]["status"] != "failed"
    assert "why it failed" in (tmp_path / "first.log").read_text()


def test_a_step_that_exceeds_its_part_is_stopped_and_keeps_what_it_wrote(tmp_path, monkeypatch):
    own = tmp_path / "own.json"
    code, ends = run(
        tmp_path, monkeypatch, step("slow", HANGS, str(own)), step("after", "print(1)"), limit=8.0
    )
    assert code == 1
    assert ends["slow"]["status"] == "stopped" and ends["slow"]["records"] == ["own.json"]
    assert ends["after"]["status"] == "stopped" and ends["slow"]["seconds"] < 60


RUN = """
import sys
from tomfisher.benchmarks import bench_gpu
from tomfisher.cli.main import main
sleeps = "import os, pathlib, time; pathlib.Path(FOLDER, 'pid').write_text(str(os.getpid())); time.sleep(600)"
lines = {"quick": "1", "slow": sleeps.replace("FOLDER", repr(sys.argv[1]))}
steps = [bench_gpu.Step(name, ("timeit", "-n1", "-r1", line), False) for name, line in lines.items()]
bench_gpu.PARTS = {"tests": tuple(steps)}
sys.exit(main(["bench", "gpu", "--part", "tests", "--out", sys.argv[1]]))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waited(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_ends_its_step_and_has_said_how_every_finished_one_ended(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    pid = tmp_path / "pid"
    assert waited(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    process.wait(60)
    assert waited(lambda: not alive(int(pid.read_text())))
    ends = json.loads((tmp_path / "tests.json").read_text())["results"]["parts"]["tests"]
    assert [(end["step"], end["status"]) for end in ends] == [("quick", "passed")]
    assert not list(tmp_path.glob(".*tmp"))


def test_calls_for_one_part_each_keep_what_the_others_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench_gpu, "PARTS", {name: (step(name, "1", gpu=False),) for name in ("tests", "fills")}
    )
    for part in ("tests", "fills"):
        assert main(["bench", "gpu", "--out", str(tmp_path), "--part", part]) == 0
    assert {file.name for file in tmp_path.glob("*.json")} == {"tests.json", "fills.json"}


def test_a_sanitizer_that_refuses_the_device_is_told_from_one_that_finds_something():
    spec = importlib.util.spec_from_file_location(
        "of_gpu", Path(__file__).parents[1] / "gpu" / "test_sanitizer.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.refused("========= Error: Device not supported. Please refer to the supported devices.")
    assert not module.refused(
        "small calls done\n========= ERROR SUMMARY: 2 errors; not supported by this tool"
    )
    assert not module.refused("========= Invalid __global__ read of size 4 bytes")


def test_the_steps_are_commands_that_there_are(tmp_path):
    parser = build_parser()
    for steps in PARTS.values():
        for one in steps:
            command = bench_gpu._command(one, tmp_path)
            assert command[:2] == [sys.executable, "-m"] and not any("{" in word for word in command)
            if one.command[0] == "tomfisher":
                parser.parse_args(command[3:])
            else:
                assert Path(one.command[-1]).is_dir() or not Path("tests").exists()


def test_an_unknown_part_is_refused(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path), "--part", "training"]) == 2
    assert "among tests, fisher, fills" in capsys.readouterr().err


def test_every_case_is_written_before_the_next_is_measured(tmp_path):
    def cases():
        for name in ("a 1x2, κ", "b", "c"):
            if name == "c":
                assert sorted(file.name for file in tmp_path.iterdir()) == ["x.a-1x2.json", "x.b.json"]
                raise KeyboardInterrupt
            yield {"name": name, "contenders": {}, "absent": {}}

    with pytest.raises(KeyboardInterrupt):
        harness.gathered("x", {"rounds": 1}, cases(), "cpu", tmp_path)
    (case,) = json.loads((tmp_path / "x.b.json").read_text())["results"]["cases"]
    assert case["name"] == "b"


TESTS = """
import time
import pytest

def test_passes(): pass

def test_second(): assert {second}

@pytest.mark.skip
def test_skipped(): pass

def test_last(): time.sleep({seconds})
"""


def command_for(tmp_path, second="True", seconds=0):
    (tmp_path / "test_own.py").write_text(TESTS.format(second=second, seconds=seconds))
    return [*bench_gpu_tests._command(tmp_path / "test_own.py", ""), "-p", "no:cacheprovider"]


@pytest.mark.slow
def test_a_failing_test_gives_another_exit_code(tmp_path):
    counts = bench_gpu_tests.launches(command_for(tmp_path, second="False"))
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 1, 1)
    assert bench_gpu_tests.exit_code({"results": {"gpu_tests": counts}}) == 1
    counts = bench_gpu_tests.launches(command_for(tmp_path))
    assert bench_gpu_tests.exit_code({"results": {"gpu_tests": counts}}) == 0


@pytest.mark.slow
def test_the_counts_are_kept_while_the_tests_run(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu_tests, "POLL_S", 0.2)
    kept = []
    bench_gpu_tests.launches(command_for(tmp_path, seconds=3), kept.append)
    assert kept[0]["pytest"] is None and kept[0]["passed"] == 2


@pytest.mark.slow
def test_an_error_of_collection_leaves_no_record(tmp_path):
    (tmp_path / "test_own.py").write_text("import nothing_of_that_name")
    with pytest.raises(ValueError, match="without a test"):
        bench_gpu_tests.launches(bench_gpu_tests._command(tmp_path / "test_own.py", ""))


class _Event:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append("event")

    def elapsed_time(self, other):
        return 2.0


def test_the_gpu_sleeps_before_the_clock_starts(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: _Event(log))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: __import__("contextlib").nullcontext())
    clock = harness._CudaClock(torch.device("cpu"))
    assert clock(lambda: log.append("run")) == 0.002
    assert log == ["synchronize", "sleep", "event", "run", "event", "synchronize"]


def test_a_wrong_torch_topk_is_reported_beside_ours(monkeypatch):
    values = torch.rand(1000)
    monkeypatch.setattr(bench_topk_gpu, "check", lambda values, k: values.sort(descending=True).values[:k])
    monkeypatch.setattr(bench_topk_gpu, "topk", lambda values, k, impl: None)
    monkeypatch.setattr(bench_topk_gpu, "topk_across", lambda parts, k, impl: None)
    args = build_parser().parse_args(["bench", "topk_gpu", "--rounds", "1", "--n", "1000"])
    case = bench_topk_gpu.measure("uniform", values, 0.01, args)
    assert "torch.topk" in case["contenders"] and case["absent"] == {}
    wrong = torch.return_types.topk((torch.zeros(10), torch.zeros(10, dtype=torch.int64)))
    monkeypatch.setattr(torch, "topk", lambda *_, **__: wrong)
    case = bench_topk_gpu.measure("uniform", values, 0.01, args)
    assert "torch.topk" not in case["contenders"] and "wrong result of torch" in case["absent"]["torch.topk"]
    assert "tomfisher triton" in case["contenders"]
