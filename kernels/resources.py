"""What machine code of a kernel occupies, found by compiling it for a chip that need not be there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from .launch import FUSED
from .variant import Variant

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """A compilation target and how much shared memory one program may have there.

    Attributes:
        name: as in the report.
        target: as Triton calls it.
        shared_limit: bytes.
    """

    name: str
    target: GPUTarget
    shared_limit: int


CHIPS = (
    Chip("sm80", GPUTarget("cuda", 80, 32), 163 * KIB),
    Chip("sm90", GPUTarget("cuda", 90, 32), 227 * KIB),
    Chip("sm100", GPUTarget("cuda", 100, 32), 227 * KIB),
    Chip("gfx942", GPUTarget("hip", "gfx942", 64), 64 * KIB),
)


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled variant.

    Attributes:
        registers: per thread.
        spilled: bytes of local memory per thread; on AMD the number of spilled vector registers.
        shared: bytes per program.
        assembly: PTX or AMD assembly.
    """

    registers: int
    spilled: int
    shared: int
    assembly: str


def all_variants() -> list[Variant]:
    """Every variant of every kernel module in this package, each once, in order of module name."""
    package = __name__.rpartition(".")[0]
    found: dict[tuple[str, str, str], Variant] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        provider = getattr(importlib.import_module(f"{package}.{module.name}"), "variants", None)
        for variant in provider() if provider is not None else ():
            found.setdefault((kernel_name(variant), variant.dtype, variant.label), variant)
    return list(found.values())


def made_for(variant: Variant, chip: Chip) -> bool:
    """Whether a variant is launched on a chip."""
    return variant.only_on in ("", chip.name)


def kernel_name(variant: Variant) -> str:
    """Name of the `@triton.jit` function."""
    return str(variant.kernel.fn.__name__)


def compile_for(variant: Variant, chip: Chip) -> Resources:
    """Compile a variant and read off what it occupies.

    Args:
        variant: what to compile.
        chip: for what; no GPU is used.

    Returns:
        Its resources.
    """
    names = list(variant.kernel.arg_names)
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in variant.divisible_by_16}
    constexprs, stages = variant.constexprs, variant.num_stages
    if chip.target.backend == "cuda":
        constexprs = constexprs | variant.on_cuda
    else:
        stages = variant.amd_stages or stages
    source = (GluonASTSource if variant.kernel.is_gluon() else ASTSource)(
        variant.kernel, variant.signature, constexprs, attributes
    )
    options = {"num_warps": variant.num_warps, "num_stages": stages, **FUSED}
    compiled = triton.compile(source, target=chip.target, options=options)
    shared = int(compiled.metadata.shared)
    if chip.target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        registers, spilled = (
            _number(r"\.vgpr_count: +(\d+)", assembly),
            _number(r"\.vgpr_spill_count: +(\d+)", assembly),
        )
    else:
        assembly = compiled.asm["ptx"]
        usage = _resource_usage(compiled.asm["cubin"])
        registers = _number(r"REG:(\d+)", usage)
        spilled = _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage)
    return Resources(registers, spilled, shared, assembly)


def _resource_usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(
            f"no {pattern!r} in the compiler's output; this Triton version writes it differently."
        )
    return int(match[1])
