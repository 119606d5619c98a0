"""Every kernel, dtype and shipped configuration compiles, keeps to registers and fits each chip."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import ptx

pytest.importorskip("triton")
from tomfisher.kernels import resources

pytestmark = pytest.mark.slow

# in the interpreter a kernel has no machine code; conftest.py skips what is collected then
VARIANTS = [] if os.environ.get("TRITON_INTERPRET") == "1" else resources.all_variants()
CUDA = [chip for chip in resources.CHIPS if chip.target.backend == "cuda"]
HIP = [chip for chip in resources.CHIPS if chip.target.backend == "hip"]
TENSOR_CORE_TILE = 64  # rows that one warpgroup instruction of Hopper computes


def names(variant: object) -> str:
    return f"{resources.kernel_name(variant)}-{variant.dtype}-{variant.label}".replace(" ", "-")


def on(chips: list) -> Any:
    """Every variant on every one of some chips that it is for."""
    pairs = [(v, chip) for v in VARIANTS for chip in chips if resources.made_for(v, chip)]
    return pytest.mark.parametrize(
        ("variant", "chip"), pairs, ids=[f"{names(variant)}-{chip.name}" for variant, chip in pairs]
    )


@on(CUDA)
def test_no_spills_and_shared_memory_within_the_chip(variant, chip) -> None:
    used = resources.compile_for(variant, chip)
    assert used.registers > 0
    assert used.spilled == 0
    assert used.shared <= chip.shared_limit


@on(HIP)
def test_it_compiles_for_amd(variant, chip) -> None:
    used = resources.compile_for(variant, chip)
    assert used.registers > 0
    assert used.shared <= chip.shared_limit


def products() -> list:
    return [v for v in VARIANTS if v.constexprs.get("BLOCK_OUT", 0) >= TENSOR_CORE_TILE and v.dtype != "fp32"]


@pytest.mark.parametrize("variant", products(), ids=names)
def test_hopper_multiplies_by_warpgroups_from_buffers_filled_asynchronously(variant) -> None:
    (hopper,) = (chip for chip in CUDA if chip.name == "sm90")
    used = resources.compile_for(variant, hopper)
    assert "wgmma.mma_async" in used.assembly
    assert "cp.async" in used.assembly
    step = (
        2
        * variant.constexprs["BLOCK_TOKENS"]
        * (variant.constexprs["BLOCK_OUT"] + variant.constexprs["BLOCK_IN"])
    )
    assert used.shared >= variant.num_stages * step, "operands of a step are not buffered num_stages deep"


def squares() -> list:
    return [v for v in VARIANTS if resources.kernel_name(v) == "squared_gradient_kernel"]


@pytest.mark.parametrize("chip", CUDA, ids=lambda chip: chip.name)
@pytest.mark.parametrize("variant", squares(), ids=names)
def test_copies_stay_under_way_while_a_step_is_multiplied(variant, chip) -> None:
    """Only the copies that a step reads are waited for: those of the next `num_stages - 2`, two each, are not."""
    used = resources.compile_for(variant, chip)
    step = ptx.loop_with(used.assembly, ptx.WAIT)
    assert set(ptx.found(step, ptx.WAIT)) == {str(2 * (variant.num_stages - 2))}
    assert len(ptx.found(step, ptx.COMMIT)) == 2
    if chip.name == "sm90":
        assert len(ptx.found(step, ptx.WAIT)) == 1
        assert len(ptx.found(step, ptx.BARRIER)) <= 2
    assert "prefetch.global.L2" in used.assembly, "the tile of F is not asked for at the start"


def test_there_is_a_variant_of_every_dtype_the_products_take() -> None:
    kernel = [v for v in VARIANTS if resources.kernel_name(v) == "squared_gradient_kernel"]
    assert {v.dtype for v in kernel} == {"bf16", "fp16", "fp32"}
    assert {v.on_cuda["PRECISION"] for v in kernel if v.dtype == "fp32"} == {"ieee", "tf32x3", "tf32"}
    assert {v.on_cuda["PRECISION"] for v in kernel if v.dtype != "fp32"} == {"ieee"}


def test_there_is_a_variant_of_every_alignment_that_a_tile_meets() -> None:
    """An F that starts anywhere, rows of any length, and an odd d_out, each where `pick` lets it happen."""
    from tomfisher.kernels import tuning

    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for config in tuning.shipped(dtype):
            mine = [v for v in VARIANTS if v.dtype == name and v.label.startswith(str(config))]
            known = [set(v.divisible_by_16) for v in mine if v.on_cuda["PRECISION"] == "ieee"]
            assert any({"F", "d_out", "d_in"} <= names for names in known)
            assert any("d_out" not in names for names in known)
            assert any("d_in" not in names for names in known) == tuning.fits_rows(config, 1)
            assert any("F" not in names for names in known) == tuning.fits_rows(config, 16, aligned=False)


HOPPER = [v for v in VARIANTS if resources.kernel_name(v) == "hopper_kernel"]


@pytest.mark.parametrize("variant", HOPPER, ids=names)
def test_the_hopper_kernel_copies_by_tma_and_multiplies_by_warpgroups_in_warps_of_their_own(variant) -> None:
    (hopper,) = (chip for chip in CUDA if chip.name == "sm90")
    lines = resources.compile_for(variant, hopper).assembly.splitlines()
    widths = ptx.found(lines, r"wgmma\.mma_async\S*\.m64(n\d+)k16\.f32\.(?:bf16|f16)")
    steps = variant.constexprs["BLOCK_TOKENS"] // 16
    assert widths == (["n128"] * steps + ["n64"] * steps) * 2, (
        "both groups multiply both parts of the columns"
    )
    # two parts of the rows and three of the columns: a copy is at most 128 bytes wide
    assert len(ptx.found(lines, r"cp\.async\.bulk\.tensor\.4d\.shared")) == 5
    assert ptx.found(lines, r"setmaxnreg\.inc\S*\s+240"), "registers of the copying warp are not handed over"
    assert not ptx.found(lines, r"cp\.async\.c[ag]")
