"""Puts the Triton kernels where the package `kernels` loads them from: `python hub/build.py DIR [--backend cuda]`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent


def build(folder: Path, backend: str) -> Path:
    """Write the variant `torch-BACKEND` and its metadata.

    Args:
        folder: that holds the variants; an earlier variant of the same backend is replaced.
        backend: "cuda", "rocm", or "cpu" for Triton's interpreter.

    Returns:
        The variant's folder.
    """
    general = tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]
    name = general["name"]
    variant = folder / f"torch-{backend}"
    shutil.rmtree(variant, ignore_errors=True)
    variant.mkdir(parents=True)
    for file in sorted((HERE / "torch-ext" / name.replace("-", "_")).glob("*.py")):
        shutil.copy(file, variant)
    metadata = {
        "id": f"{name}-{general['version']}-{backend}",
        "name": name,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return variant


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="cuda", choices=("cuda", "rocm", "cpu"))
    arguments = parser.parse_args()
    print(build(arguments.folder, arguments.backend))
