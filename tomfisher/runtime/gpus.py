"""Peak figures of named GPUs, from which floors are computed where no GPU is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """What a data sheet promises; a kernel gets less.

    Attributes:
        name: full name.
        bf16: dense bf16 matrix FLOP/s, without sparsity.
        fp32: FLOP/s outside the tensor cores, a fused multiply-add counted as two.
        bandwidth: bytes per second of the main memory.
        memory: bytes of it.
        hopper: whether the kernel with specialised warps is for it.
    """

    name: str
    bf16: float
    fp32: float
    bandwidth: float
    memory: float
    hopper: bool = False


# glennklockwood.com/garden/processors/{h100,a100}, after NVIDIA's data sheets; the H200 is an H100 whose memory
# gives 4.8 TB/s and holds 141 GB (NVIDIA H200 data sheet). Dense rates, SXM boards. The 4090's are from NVIDIA's
# white paper on Ada, bf16 with float32 sums.
GPUS = {
    "h100": Gpu("NVIDIA H100 SXM5 80GB", 989.4e12, 66.9e12, 3.35e12, 80e9, hopper=True),
    "h200": Gpu("NVIDIA H200 SXM5 141GB", 989.4e12, 66.9e12, 4.8e12, 141e9, hopper=True),
    "4090": Gpu("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24e9),
    "a100": Gpu("NVIDIA A100 SXM4 80GB", 312e12, 19.5e12, 2.039e12, 80e9),
}


def named(name: str) -> Gpu:
    """The GPU of that short name.

    Raises:
        ValueError: no such name.
    """
    if name not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)}, got {name!r}.")
    return GPUS[name]


def at_hand(device: torch.device) -> Gpu | None:
    """The data sheet of a CUDA device, if it is one of these."""
    if device.type != "cuda":
        return None
    model = torch.cuda.get_device_name(device).lower()
    return next((gpu for name, gpu in GPUS.items() if name in model), None)


def squared_gradient_floor(
    gpu: Gpu, d_out: int, d_in: int, tokens: int, samples: int, itemsize: int = 2
) -> dict[str, float]:
    """Seconds that `squared_gradient_` takes at least, by resource.

    Matrix products: `2·d_out·d_in·tokens` FLOP. Squares: one fused multiply-add per entry and sample, outside the
    tensor cores. Memory: both operands once, F read and written once.

    Args:
        gpu: whose peak figures.
        d_out: rows of F.
        d_in: columns of F.
        tokens: of all samples.
        samples: how many.
        itemsize: bytes per operand value; 4 multiplies outside the tensor cores.

    Returns:
        `{"products", "squares", "memory", "floor"}` in seconds; the floor is the largest.
    """
    weights = d_out * d_in
    rate = gpu.bf16 if itemsize == 2 else gpu.fp32
    parts = {
        "products": 2.0 * weights * tokens / rate,
        "squares": 2.0 * weights * samples / gpu.fp32,
        "memory": (itemsize * (d_out + d_in) * tokens + 8.0 * weights) / gpu.bandwidth,
    }
    return {**parts, "floor": max(parts.values())}
