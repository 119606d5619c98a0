"""`std::nth_element` on a copy: what a C++ programmer writes first. Compiled here, for this very processor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = """
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>
extern "C" float kth_largest(const float* values, std::int64_t n, std::int64_t k) {
  std::vector<float> copy(values, values + n);
  std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<float>());
  return copy[k - 1];
}
"""


def kth_largest(values: Tensor, k: int) -> float:
    """The k-th largest entry, by `std::nth_element`.

    Args:
        values: float32, contiguous, on the CPU.
        k: 1 to the number of entries.

    Raises:
        NotImplementedError: no C++ compiler here.
    """
    assert values.dtype == torch.float32 and values.is_contiguous()
    return float(_function()(values.data_ptr(), values.numel(), k))


@cache
def _function() -> ctypes._NamedFuncPointer:
    compiler = shutil.which("c++")
    if compiler is None:
        raise NotImplementedError("std::nth_element needs a C++ compiler called c++, and there is none here.")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "nth.cpp", Path(folder) / "nth.so"
        source.write_text(_SOURCE, encoding="utf-8")
        subprocess.run(
            [compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True
        )
        function = ctypes.CDLL(str(library)).kth_largest
    function.restype = ctypes.c_float
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return function
