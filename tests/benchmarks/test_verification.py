"""What is verified on a GPU is computed from checksums, never stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tomfisher.benchmarks import curves, verification
from tomfisher.benchmarks.verification import NEVER, dependencies, kernel_sources_sha256, load_records, status
from tomfisher.cli.main import main

SOURCES = {
    "launch.py": "def on_device(): ...\n",
    "helper.py": "SIZE = 1\n",
    "alone.py": "from .launch import on_device\nimport triton\n@triton.jit\ndef alone_kernel(x):\n    pass\n",
    "device.py": (
        "import triton\nfrom tomfisher.kernels.helper import SIZE\n"
        "@triton.jit(do_not_specialize=['n'])\ndef device_kernel(n):\n    pass\n"
        "@triton.jit\ndef part(n):\n    pass\n"
    ),
    "host.py": "from . import device\nfrom .launch import on_device\n",
    "report.py": "from . import device, alone\n",
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "kernels"
    made.mkdir()
    for name, text in SOURCES.items():
        (made / name).write_text(text)
    return made


def gpu_record(folder, kernels=("alone.py:alone_kernel", "device.py:device_kernel"), **changes):
    counts = {name: {"passed": 3, "failed": 0} for name in kernels}
    return {
        "machine": {"device": "cuda", "gpu": "NVIDIA H100", "cpu": "x"},
        "benchmark": "gpu_tests",
        "results": {"gpu_tests": {"passed": 3, "failed": 0, "kernels": counts}},
        "kernel_sources": kernel_sources_sha256(folder),
        "date": "2026-01-02T00:00:00+00:00",
        **changes,
    }


def said(records, folder):
    return {row.kernel: str(row) for row in status(records, folder)}


def test_a_kernel_depends_on_what_it_imports_and_on_the_launchers_that_use_it(folder):
    assert dependencies(folder, "alone.py") == ["alone.py", "launch.py"]
    assert dependencies(folder, "device.py") == ["device.py", "helper.py", "host.py", "launch.py"]


def test_without_records_nothing_is_verified(folder):
    assert said([], folder) == {"alone_kernel": NEVER, "device_kernel": NEVER}
    assert NEVER in verification.report({}, folder)


def test_unchanged_sources_are_verified(folder):
    expected = "verified: NVIDIA H100, 2026-01-02, 3 tests"
    assert said([gpu_record(folder)], folder) == {"alone_kernel": expected, "device_kernel": expected}


@pytest.mark.parametrize("file", ["device.py", "helper.py", "host.py", "launch.py"])
def test_a_change_is_said(folder, file):
    record = gpu_record(folder)
    (folder / file).write_text(SOURCES[file] + "# changed\n")
    found = said([record], folder)
    assert found["device_kernel"].startswith(f"changed since (kernels/{file}): NVIDIA H100")
    assert found["alone_kernel"].startswith("changed" if file == "launch.py" else "verified")
    assert "1 kernel sources changed since" in verification.report({"a.json": record}, folder)


def test_a_file_that_is_no_part_of_a_kernel_changes_nothing(folder):
    record = gpu_record(folder)
    (folder / "report.py").write_text("")
    assert all(text.startswith("verified") for text in said([record], folder).values())


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("csrc/topk/scan.cpp", {"topk", "growth", "another"}),
        ("csrc/fisher_ops.cpp", {"fisher", "growth", "another"}),
        ("csrc/fill_ops.cpp", {"masked_fill", "another"}),
        ("csrc/dtype.h", {"topk", "growth", "fisher", "masked_fill", "another"}),
        ("kernels/alone.py", {"host"}),
    ],
)
def test_a_cpu_record_goes_stale_with_the_sources_that_it_times(folder, changed, stale):
    for name in ("topk/scan.cpp", "fisher_ops.cpp", "fill_ops.cpp", "dtype.h"):
        path = folder.parent / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    machine = {"device": "cpu", "cpu": "x"}
    names = ("topk", "growth", "fisher", "masked_fill", "host", "another")
    records = {name: gpu_record(folder, machine=machine, benchmark=name) for name in names}
    (folder.parent / changed).write_text("# changed")
    lines = [line for line in verification.report(records, folder).splitlines() if "2026-01-02" in line]
    assert {line.split()[0] for line in lines if "1 kernel sources changed" in line} == stale
    assert len(lines) == len(names)


def test_a_new_dependency_is_a_change(folder):
    record = gpu_record(folder)
    (folder / "new.py").write_text("")
    (folder / "alone.py").write_text(SOURCES["alone.py"] + "from .new import x\n")
    assert "kernels/alone.py, kernels/new.py" in said([record], folder)["alone_kernel"]


def test_what_does_not_count(folder):
    on_cpu = gpu_record(folder, machine={"device": "cpu", "cpu": "x"})
    failed = gpu_record(folder)
    failed["results"]["gpu_tests"]["kernels"]["alone.py:alone_kernel"]["failed"] = 1
    timing_only = gpu_record(folder, results={"cases": []})
    other_kernel = gpu_record(folder, kernels=("device.py:device_kernel",))
    killed, crashed = gpu_record(folder), gpu_record(folder)
    killed["results"]["gpu_tests"]["pytest"] = None
    crashed["results"]["gpu_tests"]["pytest"] = -11
    for record in (on_cpu, failed, timing_only, other_kernel, killed, crashed):
        assert said([record], folder)["alone_kernel"] == NEVER


def test_the_record_on_the_sources_as_they_are_wins_over_a_later_one_on_others(folder):
    fits = gpu_record(folder)
    later = gpu_record(folder, date="2026-02-02T00:00:00+00:00", kernel_sources={})
    assert said([fits, later], folder)["alone_kernel"].startswith("verified: NVIDIA H100, 2026-01-02")


def test_no_committed_record_claims_sources_that_have_changed():
    """The rule for this repository: `verified` is said only where every checksum is that of the file now."""
    records = load_records()
    assert records, "benchmarks/results holds the records of the README"
    now = kernel_sources_sha256()
    folder = verification.kernels_folder()
    for row in status(records.values()):
        if str(row).startswith("verified"):
            needed = [f"kernels/{name}" for name in dependencies(folder, row.file)]
            matching = [
                r
                for r in records.values()
                if r["machine"].get("gpu") == row.gpu
                and all(r.get("kernel_sources", {}).get(f) == now[f] for f in needed)
            ]
            assert matching, f"{row.kernel} is called verified on sources that no record was taken on"
    for name, record in records.items():
        assert "verified" not in json.dumps(record), f"{name} stores a verdict instead of checksums"


LAUNCHES = """
import pytest, torch, triton
import triton.language as tl
from tomfisher.benchmarks.plain_gemm import plain_gemm
from tomfisher.kernels.tuning import Config

@triton.jit
def copy_kernel(x, y):
    tl.store(y, tl.load(x))

@pytest.mark.parametrize("shape", [(32, 16, 16), (50, 33, 17), (1, 5, 40)])
def test_gemm(shape):
    tokens, out, width = shape
    Y, X, D = torch.randn(tokens, out), torch.randn(tokens, width), torch.full((out, width), float("nan"))
    plain_gemm(D, Y, X, Config(16, 16, 16, 4, 2))
    torch.testing.assert_close(D, Y.T @ X, atol=1e-5, rtol=1e-5)

def test_that_fails():
    copy_kernel[(1,)](torch.ones(1), torch.ones(1))
    assert False

def test_without_kernels():
    pass
"""


@pytest.mark.slow
def test_the_launch_log_says_which_kernels_ran_in_which_tests(tmp_path):
    """In a process of its own: Triton's interpreter has to be chosen before Triton is imported."""
    (tmp_path / "test_launches.py").write_text(LAUNCHES)
    log = tmp_path / "log.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tomfisher.benchmarks.launch_log",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TOMFISHER_LAUNCH_LOG": str(log)}
    done = subprocess.run(
        [*command, "test_launches.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert log.exists(), done.stdout + done.stderr
    assert json.loads(log.read_text()) == {
        "passed": 4,
        "failed": 1,
        "skipped": 0,
        "kernels": {
            "plain_gemm.py:gemm_kernel": {"passed": 3, "failed": 0},
            "test_launches.py:copy_kernel": {"passed": 0, "failed": 1},
        },
    }, done.stdout


def squared_gradient_record(**machine):
    cases = [
        {
            "d_out": 64,
            "d_in": 32,
            "lengths": [length] * 4,
            "contenders": {"tomfisher triton": {"percent_of_triton": percent, "percent_of_mm": percent / 2}},
        }
        for length, percent in ((512, 92.0), (128, 85.0))
    ]
    return {"benchmark": "squared_gradient", "machine": machine, "results": {"cases": cases}}


def test_curves_are_drawn_from_gpu_records_alone(tmp_path, capsys):
    on_cpu = squared_gradient_record(device="cpu", cpu="x")
    on_gpu = squared_gradient_record(device="cuda", gpu="NVIDIA H100")
    (of_triton, _) = sorted(curves.panels([on_cpu, on_gpu]), key=lambda panel: panel["y"], reverse=True)
    assert of_triton["title"] == "NVIDIA H100" and of_triton["series"] == {
        "64x32": [(128.0, 85.0), (512.0, 92.0)]
    }
    for name, record in (("a", on_cpu), ("b", on_gpu)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "squared_gradient.json").write_text(json.dumps(record))
    picture = tmp_path / "curves.png"
    assert main(["bench", "--curves", str(picture), "--results", str(tmp_path / "a")]) == 2
    assert "no record of squared_gradient on a GPU" in capsys.readouterr().err and not picture.exists()
    assert main(["bench", "--curves", str(picture), "--results", str(tmp_path)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
