"""Every kernel on small shapes under compute-sanitizer, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def products(device: str, dtype: torch.dtype) -> None:
    from tomfisher.kernels import tuning
    from tomfisher.kernels.squared_gradient import squared_gradient

    bounds, targets = [(0, 1), (1, 1), (1, 64), (64, 129), (129, 150)], [2, 0, 1, 2, 2]
    for config in tuning.shipped(dtype):
        for d_out, d_in in ((37, 21), (144, 144), (130, 144)):
            Y = torch.randn(150, d_out, device=device).to(dtype)
            X = torch.randn(150, d_in, device=device).to(dtype)
            F = torch.zeros(3, d_out, d_in, device=device)
            if tuning.fits_rows(config, d_in):
                squared_gradient(F, Y, X, bounds, targets, config=config)
                squared_gradient(F[0], Y, X, bounds, config=config, splits=2)


def lists(device: str, dtype: torch.dtype) -> None:
    from tomfisher import ops

    weights = [torch.randn(n, device=device).to(dtype) for n in (1001, 2, 9000)]
    weights.append(torch.randn(30, 50, device=device).to(dtype).t())
    indices = [torch.tensor([0, 1], device=device)[: w.numel() - 1] for w in weights]
    sums = ops.weight_sums(weights)
    undo = ops.masked_fill_mean_(weights, indices, sums=sums)
    ops.scatter_(weights, indices, undo)
    F = [torch.zeros(w.shape, device=device) for w in weights]
    ops.square_accumulate_(F, weights)
    ops.topk([w.reshape(-1) for w in weights], [5, 1, 100, 7])
    ops.topk_across(weights, 200)


def activations(device: str, dtype: torch.dtype) -> None:
    from tomfisher import ops

    x = torch.randn(2, 33, 3, 20, device=device).to(dtype)
    ops.rope_energy(x, "half", 16, [33, 5])
    ops.rope_energy(x, "interleaved", 20, [33, 5])
    q, k = (torch.randn(2, heads, 70, 24, device=device).to(dtype) for heads in (4, 2))
    ops.sink_mass(q, k, 0.2, lengths=[70, 9], slopes=torch.rand(4, device=device), window=40)
    ops.sink_mass(q, k, 0.2, causal=False)


def small_calls(device: str, dtypes: list[torch.dtype] = DTYPES) -> None:
    for dtype in dtypes:
        for part in (products, lists, activations):
            part(device, dtype)


def sanitizer() -> str | None:
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{toolkit}/bin")


def refused(report: str) -> bool:
    """Whether the sanitizer says that it does not work here, which says nothing about the kernels."""
    return "small calls done" not in report and any(
        words in report
        for words in ("not supported", "Unable to find injection library", "No CUDA-capable device")
    )


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    executable = sanitizer()
    if executable is None:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    command = [executable, "--tool", tool, "--error-exitcode", "99", sys.executable, __file__]
    # with an allocation per tensor, a step beyond one is a step outside memory
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=570
    )
    report = done.stdout[-4000:] + done.stderr[-2000:]
    if refused(report):
        pytest.skip(f"compute-sanitizer does not take this device: {report.strip().splitlines()[-1]}")
    assert done.returncode == 0, report
    assert "small calls done" in done.stdout and "ERROR SUMMARY: 0 errors" in done.stdout, report


if __name__ == "__main__":
    small_calls("cuda")
    torch.cuda.synchronize()
    print("small calls done")
