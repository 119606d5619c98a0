"""The plain product that `squared_gradient_` is measured against is compiled the way the kernel is."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
from tomfisher.kernels import resources, tuning
from tomfisher.kernels.variant import Variant

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on, so there is nothing to compile"
)


def test_it_uses_hopper_as_the_kernel_does():
    import torch

    from tomfisher.benchmarks.plain_gemm import gemm_kernel

    config = tuning.shipped(torch.bfloat16)[0]
    pointers = {"D": "*fp32", "Y": "*bf16", "X": "*bf16"}
    sizes = dict.fromkeys(("tokens", "d_out", "d_in", "y_row", "x_row"), "i32")
    constexprs = {
        "BLOCK_OUT": config.block_out, "BLOCK_IN": config.block_in, "BLOCK_TOKENS": config.block_tokens,
        "BAND": 8, "PRECISION": "ieee",
    }  # fmt: skip
    variant = Variant(
        gemm_kernel,
        "bf16",
        {**pointers, **sizes, **dict.fromkeys(constexprs, "constexpr")},
        constexprs,
        num_warps=config.warps,
        num_stages=config.stages,
        label=str(config),
        divisible_by_16=(*pointers, "d_out", "d_in", "y_row", "x_row"),
    )
    (hopper,) = (chip for chip in resources.CHIPS if chip.name == "sm90")
    used = resources.compile_for(variant, hopper)
    assert used.spilled == 0 and used.shared <= hopper.shared_limit
    assert "wgmma.mma_async" in used.assembly and "cp.async" in used.assembly
