"""Triton's interpreter with a `tl.dot` that is right for bfloat16 too.

The interpreter keeps bfloat16 as unsigned 16-bit patterns, and multiplies these patterns in `tl.dot`. Here operands
of 16 bits are widened to float32 first, which is exact. `tests/kernels/interpret/test_interpreter.py` tells when this
is no longer needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

plain_dot = InterpreterBuilder.create_dot


def wide_dot(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
    """`InterpreterBuilder.create_dot` with 16-bit operands widened to float32."""
    return plain_dot(builder, _widened(a), _widened(b), *rest)


def _widened(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar == tl.bfloat16:
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if handle.dtype.scalar == tl.float16:
        return TensorHandle(handle.data.astype(np.float32), tl.float32)
    return handle
