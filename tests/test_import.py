"""Importing tomfisher: light, lazy, documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tomfisher

HEAVY = ("transformers", "datasets", "matplotlib", "triton", "pandas", "scipy", "jinja2", "tokenizers")


def test_importing_tomfisher_pulls_in_nothing_heavy_that_torch_does_not(tmp_path: Path) -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tomfisher; "
        "print(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert not set(done.stdout.split()) & set(HEAVY)
    assert "tomfisher" in done.stdout


@pytest.mark.parametrize("name", tomfisher.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(tomfisher, name)
    assert name in dir(tomfisher)
    if name == "__version__":
        assert value.count(".") == 2
        return
    doc = inspect.getdoc(value)
    assert doc and len(doc) > 40
    if inspect.isfunction(value):
        for section in ("Args:", "Returns:", "Raises:"):
            assert section in doc, f"{name} has no {section}"
        for parameter in inspect.signature(value).parameters:
            assert f"{parameter}:" in doc or f"{parameter}," in doc, f"{name} does not describe {parameter}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tomfisher.nonsense
