"""The kernels in the layout of the Hugging Face kernels hub: whole, and loadable by the package `kernels`."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HUB = ROOT / "hub"
SOURCES = HUB / "torch-ext" / "tomfisher_kernels"
LOADER = (
    Path(sys.prefix) / "hub"
)  # where `make` puts the package kernels: beside transformers it would change its ways

LOADED = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel
from kernels._rust import Build

Build.open(Path(sys.argv[2]))
kernels = get_local_kernel(Path(sys.argv[1]), backend="cpu")
torch.manual_seed(0)
Y, X = torch.randn(20, 8), torch.randn(20, 12)
F = torch.zeros(8, 12)
kernels.squared_gradient(F, Y, X, [(0, 7), (7, 20)])
torch.testing.assert_close(F, sum((Y[a:b].T @ X[a:b]) ** 2 for a, b in ((0, 7), (7, 20))))
values = torch.rand(5000)
(indices,), _ = kernels.topk([values], [9])
assert torch.equal(indices, values.topk(9).indices)
weights = [values.clone()]
sums = kernels.weight_sums(weights)
torch.testing.assert_close(sums[0, 0], values.double().sum(), rtol=1e-12, atol=0)
print("loaded", kernels.__file__)
"""


def built(folder, backend):
    spec = importlib.util.spec_from_file_location("hub_build", HUB / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(folder, backend)


def test_the_sources_are_those_of_the_package_and_import_each_other_alone():
    names = {file.stem for file in SOURCES.glob("*.py")}
    for file in SOURCES.glob("*.py"):
        assert file.name == "__init__.py" or file.resolve() == ROOT / "kernels" / file.name
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                wanted = [node.module] if node.module else [alias.name for alias in node.names]
                assert names.issuperset(wanted), (file.name, wanted)
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("tomfisher"), file.name


def test_a_variant_holds_the_modules_and_what_it_is(tmp_path):
    variant = built(tmp_path, "cuda")
    (variant / "left.py").write_text("from an earlier version")
    assert built(tmp_path, "cuda") == variant == tmp_path / "torch-cuda"
    assert {file.name for file in variant.iterdir()} == {f.name for f in SOURCES.glob("*.py")} | {
        "metadata.json"
    }
    assert not any(file.is_symlink() for file in variant.iterdir())
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["name"] == "tomfisher-kernels" and metadata["backend"] == {"type": "cuda"}


@pytest.mark.slow
@pytest.mark.skipif(
    not LOADER.is_dir(), reason="the package kernels is not in the virtual environment's folder hub"
)
def test_the_package_kernels_loads_them_from_a_folder(tmp_path):
    """In a process of its own: Triton's interpreter has to be chosen before Triton is imported."""
    built(tmp_path, "cpu")
    path = os.pathsep.join(filter(None, (str(LOADER), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path), str(HUB)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"loaded {tmp_path}")
