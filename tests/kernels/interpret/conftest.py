"""Kernels on CPU tensors, in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpret`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    # Triton reads the variable when a kernel is defined, so setting it here would be too late
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a process of its own: TRITON_INTERPRET=1 pytest tests/kernels/interpret")
    interpreter = pytest.importorskip("interpreter")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", interpreter.wide_dot)
