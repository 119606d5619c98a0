"""What the wheel and the source distribution hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, out: Path, *arguments: str, extension: bool) -> Path:
    """Build what `arguments` ask for, with or without the C++ extension, which is slow and quick to compile."""
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(out), str(source)]
    environment = {**os.environ, "TOMFISHER_BUILD_EXT": str(int(extension)), "TOMFISHER_CXXFLAGS": "-O0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because setuptools leaves build/ in the folder it builds and packs what it finds there next time."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    return source


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel built from it, without the extension."""
    return build(checkout, tmp_path_factory.mktemp("dist"), extension=False)


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
        "tomfisher/tasks/stories/second-order.yaml",
        "tomfisher/ops/_backends/cpp.py",
        "tomfisher/cli/main.py",
    ):
        assert expected in names
    assert not any("test_" in Path(n).name or "/.venv/" in n for n in names)


def test_without_the_extension_the_wheel_is_pure_python(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not any(name.endswith((".so", ".cpp", ".h")) for name in archive.namelist())


@pytest.mark.slow
def test_the_sdist_builds_a_wheel_with_the_extension_for_every_later_python(
    built: Path, tmp_path: Path
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (wheel,) = build(source, tmp_path / "out", "--wheel", extension=True).glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert "tomfisher/_C.abi3.so" in archive.namelist()
        library = archive.read("tomfisher/_C.abi3.so")
        archive.extractall(tmp_path / "site")
    assert str(tmp_path).encode() not in library, "the library holds a path of the machine that built it"
    code = (
        "import sys; sys.path.insert(0, 'site'); import torch, tomfisher._C as c; assert 'site' in c.__file__; "
        "print(torch.ops.tomfisher_cpp.select([torch.tensor([1.0, 3.0, 2.0])], [2], None, 1)[0][0].tolist())"
    )
    # -S and an explicit path: the checkout that is installed in this environment must not be found first
    paths = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.strip() == "[1, 2]", done.stderr


def test_the_sdist_holds_the_sources_that_a_build_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {
        "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "csrc/README.md",
        "csrc/library.cpp", "csrc/topk/scan_avx512.cpp", "csrc/topk/scan.h", "csrc/tests/Makefile",
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
