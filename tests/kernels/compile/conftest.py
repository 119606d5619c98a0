"""Kernels compiled for chips that need not be there, in a process where Triton's interpreter is off."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter is on, so there is nothing to compile: unset TRITON_INTERPRET")
