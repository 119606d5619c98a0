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


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch says whether products are fused with additions: versions of Triton have other defaults."""
    from triton.runtime.interpreter import GridExecutor

    plain = GridExecutor.__call__

    def call(executor: GridExecutor, *arguments: object, **options: object) -> None:
        ours = executor.fn.__module__.startswith("tomfisher.kernels")
        assert not ours or options.get("enable_fp_fusion") is True, executor.fn.__name__
        plain(executor, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", call)
