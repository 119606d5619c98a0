"""What the wheel and the source distribution hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "checkout"
    # a copy, because setuptools leaves build/ in the folder it builds and packs what it finds there next time
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_the_wheel_installs_one_top_level_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        top_level = next(n for n in names if n.endswith("top_level.txt"))
        assert archive.read(top_level).decode().split() == ["tomfisher"]
    roots = {name.split("/")[0] for name in names}
    assert roots == {"tomfisher", next(r for r in roots if r.endswith(".dist-info"))}
    for expected in (
        "tomfisher/py.typed",
        "tomfisher/kernels/__init__.py",
        "tomfisher/benchmarks/bench_fisher.py",
        "tomfisher/testbed/data/llama/model.safetensors",
        "tomfisher/testbed/data/llama/training.json",
        "tomfisher/ops/reference/topk.py",
        "tomfisher/cli/main.py",
    ):
        assert expected in names
    assert not any("test_" in Path(n).name or "/.venv/" in n for n in names)


def test_the_sdist_holds_the_sources_that_a_build_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {
        "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "csrc/README.md",
        "kernels/__init__.py", "benchmarks/harness.py", "tests/conftest.py", "Makefile",
    }  # fmt: skip
    assert expected <= names, expected - names


def test_the_console_script_works_outside_the_checkout(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "tomfisher"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("tomfisher ")


def test_kernels_is_no_top_level_module(tmp_path: Path) -> None:
    code = "import importlib.util as u, tomfisher.kernels; assert u.find_spec('kernels') is None"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
