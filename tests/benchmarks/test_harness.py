"""Timing, statistics and records."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from tomfisher.benchmarks import harness, memory, plots, tables
from tomfisher.benchmarks.harness import Contender, Timings, interleave, quantiles, record, summary
from tomfisher.benchmarks.verification import kernel_sources_sha256


def fail() -> None:
    raise MemoryError("needs 99 GiB\nand more")


def test_contenders_take_turns_after_a_warm_up():
    calls: list[str] = []
    contenders = {
        "a": Contender(lambda: calls.append("a"), prepare=lambda: calls.append("prepare a")),
        "b": Contender(lambda: calls.append("b")),
    }
    timings = interleave(contenders, 2)
    assert calls == ["prepare a", "a", "b"] * 3
    assert {name: len(s) for name, s in timings.seconds.items()} == {"a": 2, "b": 2}
    assert not timings.absent


def test_preparation_is_not_timed(monkeypatch):
    clock = [0.0]

    def advance(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    timings = interleave({"a": Contender(lambda: advance(1.0), prepare=lambda: advance(100.0))}, 3)
    assert timings.seconds["a"] == [1.0, 1.0, 1.0]


def test_a_peer_that_fails_is_recorded_with_the_reason_and_the_others_go_on():
    timings = interleave({"a": Contender(lambda: None), "peer": Contender(fail, peer=True)}, 2)
    assert timings.absent == {"peer": "MemoryError: needs 99 GiB"}
    assert list(timings.seconds) == ["a"] and len(timings.seconds["a"]) == 2


def test_a_failure_of_ours_stops_the_benchmark():
    with pytest.raises(MemoryError):
        interleave({"ours": Contender(fail)}, 1)


def test_a_contender_that_needs_too_long_runs_once():
    calls: list[str] = []
    contenders = {"slow": Contender(lambda: calls.append("slow")), "other": Contender(lambda: None)}
    timings = interleave(contenders, 3, patience_s=-1.0)
    assert calls == ["slow"] and len(timings.seconds["slow"]) == 1


def test_ratios_are_taken_within_a_round():
    timings = Timings({"base": [1.0, 10.0], "ours": [0.5, 2.0], "floor": [0.25, 2.0]})
    rows = summary(timings, "base", "floor")
    assert rows["ours"]["speed"]["min"] == 2.0 and rows["ours"]["speed"]["max"] == 5.0
    assert rows["ours"]["times_floor"]["max"] == 2.0 and rows["ours"]["times_floor"]["min"] == 1.0
    assert summary(timings, "absent", 0.5)["ours"] == {
        "seconds": quantiles([0.5, 2.0]),
        "times_floor": quantiles([1.0, 4.0]),
    }


def test_quantiles():
    found = quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 0.0])
    assert found == {"median": 2.5, "q20": 1.0, "q80": 4.0, "min": 0.0, "max": 5.0, "rounds": 6}


def test_a_record_says_where_when_how_and_on_which_sources():
    found = record("x", {"rounds": 1}, {"cases": []})
    assert found["kernel_sources"] == kernel_sources_sha256()
    assert {"kernels/squared_gradient.py", "kernels/launch.py"} <= set(found["kernel_sources"])
    assert found["machine"]["device"] == "cpu" and found["versions"]["torch"] == torch.__version__
    assert found["command"].startswith("tomfisher") and re.match(r"\d{4}-\d\d-\d\dT", found["date"])


def test_a_table_names_what_did_not_run_and_leaves_empty_columns_out():
    case = {
        "name": "case",
        "baseline": "loop",
        "contenders": {"loop": {"seconds": {"median": 0.0125, "q20": 0.0125, "q80": 2.0}}},
        "absent": {"peer": "ImportError: no peer"},
    }
    text = tables.render([case], (*tables.TIME, tables.SPEED))
    assert "12.500 ms" in text and "2.00 s" in text
    assert "peer  not run: ImportError: no peer" in text and "x baseline" not in text


def test_plots_are_pictures(tmp_path):
    rows = summary(Timings({"a": [1.0, 2.0], "b": [0.5, 0.6]}), "a", 0.1)
    cases = [{"name": f"case {i}", "contenders": rows} for i in range(9)]
    plots.bars(cases, tmp_path / "bars.png", "times_floor.median", "y", "title", line=1.0)
    panel = {"title": "t", "x": "n", "y": "s", "series": {"a": [(1, 1.0), (10, 9.0)]}}
    plots.curves([panel, panel], tmp_path / "curves.png", "title")
    for name in ("bars", "curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_what_the_call_took():
    size = 256 << 20
    taken = memory.peak_extra_bytes(lambda: torch.ones(size // 4).sum())
    assert 0.9 * size < taken < 1.5 * size
    assert memory.peak_extra_bytes(lambda: None) < 0.1 * size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_that_the_allocator_kept_is_not_overlooked():
    def many_small_blocks() -> None:
        kept = [torch.ones(1 << 20) for _ in range(40)]
        del kept

    first, second = (memory.peak_extra_bytes(many_small_blocks) for _ in range(2))
    assert min(first, second) > 140 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_mapped_files_are_not_anonymous_memory(tmp_path):
    size = 64 << 20
    torch.ones(size // 4).numpy().tofile(tmp_path / "x")

    def read() -> torch.Tensor:
        return torch.from_file(str(tmp_path / "x"), size=size // 4).sum()

    assert memory.peak_anonymous_bytes(read) < size // 2
    assert memory.peak_anonymous_bytes(lambda: torch.ones(size // 4)) > 0.9 * size


def test_matmul_rate_counts_two_operations_per_product(monkeypatch):
    monkeypatch.setattr(harness, "interleave", lambda *_, **__: Timings({"mm": [0.5, 0.25]}))
    assert harness.matmul_rate(torch.float32, size=8) == 2 * 8**3 / 0.25


def test_matmul_rate_has_a_size_for_devices_that_nobody_chose_one_for(monkeypatch):
    monkeypatch.setattr(harness, "interleave", lambda *_, **__: Timings({"mm": [0.5]}))
    assert harness.matmul_rate(torch.float32, "meta") == 2 * 1024**3 / 0.5
