"""What a kernel is compiled for: the unit of the ahead-of-time tests and of the kernel report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel with everything its machine code depends on, except the chip.

    Attributes:
        kernel: the `@triton.jit` function.
        dtype: name of the data dtype, for tables: "bf16", "fp16", "fp32" or "fp64".
        signature: argument name to Triton type, such as {"F": "*fp32", "rows": "i32"}; constexprs as "constexpr".
        constexprs: value of every constexpr argument.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        label: tells variants of one kernel and dtype apart, such as "128x128x64".
        divisible_by_16: names of arguments known to be multiples of 16 (addresses in bytes).
        on_cuda: values of constexpr arguments that are others on NVIDIA's chips.
        only_on: name of the only chip that it is for, if it is not for all.
        amd_stages: depth of the software pipeline on AMD's chips, if it is another.
    """

    kernel: Any
    dtype: str
    signature: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    label: str = ""
    divisible_by_16: tuple[str, ...] = ()
    on_cuda: dict[str, Any] = field(default_factory=dict)
    amd_stages: int | None = None
    only_on: str = ""
