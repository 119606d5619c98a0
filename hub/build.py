"""Puts the Triton kernels where the package `kernels` loads them from: `python hub/build.py DIR [--backend cuda]`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build(folder: Path, backend: str) -> Path:
    """Write the variant `torch-BACKEND` and its metadata.

    Args:
        folder: that holds the variants; an earlier variant of the same backend is replaced.
        backend: "cuda", "rocm", or "cpu" for Triton's interpreter.

    Returns:
        The variant's folder.
    """
    text = (HERE / "build.toml").read_text(
        encoding="utf-8"
    )  # Python 3.10 has no tomllib; these are single lines
    settings = dict(re.findall(r'^(\w+) = "?([^"\n]+)"?$', text, re.MULTILINE))
    name, version = settings["name"], int(settings["version"])
    variant = folder / f"torch-{backend}"
    shutil.rmtree(variant, ignore_errors=True)
    variant.mkdir(parents=True)
    for file in sorted((HERE / "torch-ext" / name.replace("-", "_")).glob("*.py")):
        shutil.copy(file, variant)
    metadata = {
        "id": f"{name}-{version}-{backend}",
        "name": name,
        "version": version,
        "license": settings["license"],
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
