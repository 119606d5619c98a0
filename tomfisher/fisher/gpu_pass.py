"""A whole Fisher pass on a named GPU, on paper: operations, bytes, launches and seconds by part, with the assumptions.

The constants come from a desk review of the kernels and from published rates; none was measured on our kernels. The
benchmark `fisher` prints what it measures on a GPU beside them, so that the first run shows which of them was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tomfisher.fisher.sizes import Sizes
from tomfisher.runtime.gpus import Gpu
from tomfisher.runtime.memory import SHARE, tokens_that_fit

GEMM = 0.65  # of the dense rate: what a library reaches on products of a few thousand rows
TILE = 0.53  # of the dense rate: the product inside our kernel, without its squares
HOPPER_TILE = (
    0.58  # of the dense rate: the same with specialised warps, for segments of any length (kernels/README.md)
)
SQUARING = 32  # tokens that a segment's squares cost: T tokens run at TILE * T / (T + 32)
BANDWIDTH = 0.9  # of the data sheet
ACTIVATION_TRIPS = 72  # readings and writings of the hidden state, per layer and token, besides the products
LOGIT_BYTES = 24  # read and written per logit: the loss, its gradient, both in pieces of float32
LAUNCHES = 80  # per layer and batch: products, elementwise functions, sums, squares
LAUNCH_S = 4e-6  # what the host needs for one
PROBE_PASSES = 9  # readings of all weights: short cuts and the two longest samples, both ways
WHOLE, LOOP, GRADIENTS = "the whole pass", "the loop of the paper", "forward and input gradients"
SQUARES = "products of gradients, squared"
ASSUMPTIONS = (
    f"library products at {GEMM:.0%} of the dense rate, our products at {TILE:.0%} and less for short samples "
    f"(those of triton-hopper at {HOPPER_TILE:.0%}), {BANDWIDTH:.0%} of the bandwidth, {LAUNCHES} launches of "
    f"{LAUNCH_S * 1e6:.0f} µs per layer and batch; F is read and written once a batch and waits for nothing"
)


@dataclass(frozen=True)
class Part:
    """A part of the pass: floating-point operations, bytes moved, and the seconds that the scarcer of them takes."""

    name: str
    flop: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Pass:
    """A whole pass.

    Attributes:
        parts: in the order of work.
        tokens_per_batch: budget of a batch.
        batches: how many.
        launches: of kernels.
        peak_bytes: model, F and the activations of a batch.
        flop: that no implementation can do without: forward, input and weight gradients.
        loop_seconds: the paper's loop, one sample at a time.
        rate: the dense rate of products in the weights' dtype, FLOP/s.
        hopper_seconds: all parts after another with `impl="triton-hopper"`; None where that is not for it.
    """

    parts: tuple[Part, ...]
    tokens_per_batch: int
    batches: int
    launches: int
    peak_bytes: int
    flop: float
    loop_seconds: float
    rate: float
    hopper_seconds: float | None

    @property
    def seconds(self) -> float:
        """All parts after another, or the launches where these take longer."""
        return max(sum(part.seconds for part in self.parts), self.launches * LAUNCH_S)


def on_paper(gpu: Gpu, sizes: Sizes, samples: int, length: int, tokens_per_batch: int | None = None) -> Pass:
    """What a pass over samples of one length costs on a GPU.

    Args:
        gpu: from its data sheet.
        sizes: of the model.
        samples: how many.
        length: tokens of each.
        tokens_per_batch: budget of a batch; None: what `token_budget` would take there.
    """
    tokens, F = samples * length, 4 * sizes.weights
    room = int(SHARE * (gpu.memory - sizes.model_bytes - F))
    budget = tokens_per_batch or tokens_that_fit(room, sizes.token_bytes)
    per_batch = max(1, budget // length)
    batches = -(-samples // per_batch)
    rate = gpu.bf16 if sizes.itemsize == 2 else gpu.fp32
    met, bandwidth = sizes.active + sizes.head, BANDWIDTH * gpu.bandwidth
    weight_bytes = sizes.itemsize * (sizes.weights + sizes.head)

    def part(name: str, flop: float, moved: float, share: float = 1.0) -> Part:
        return Part(name, flop, moved, max(flop / (share * rate), moved / bandwidth))

    squares = 2.0 * sizes.active * tokens
    parts = (
        part(GRADIENTS, 4.0 * met * tokens, 2.0 * batches * weight_bytes, GEMM),
        part(SQUARES, squares, 0.0, TILE * length / (length + SQUARING)),
        part("F, read and written", 2.0 * sizes.weights * samples, 2.0 * batches * F),
        part(
            "elementwise functions",
            0.0,
            ACTIVATION_TRIPS * float(sizes.itemsize) * len(sizes.layers) * sizes.hidden * tokens,
        ),
        part("loss over the vocabulary", 0.0, LOGIT_BYTES * float(sizes.vocabulary) * tokens),
        part("probe and the last look at F", 0.0, PROBE_PASSES * 3.0 * weight_bytes + F),
    )
    seconds = sum(part.seconds for part in parts)
    hopper = None
    if gpu.hopper and sizes.itemsize == 2:
        ours = next(part.seconds for part in parts if part.name == SQUARES)
        hopper = seconds - ours + squares / (HOPPER_TILE * rate)
    single = max(6.0 * met * length / (GEMM * rate), 3.0 * weight_bytes / bandwidth)
    single += (2.0 * sizes.itemsize + 8.0) * sizes.weights / bandwidth  # its gradient written and read, F too
    return Pass(
        parts=parts,
        tokens_per_batch=budget,
        batches=batches,
        launches=LAUNCHES * len(sizes.layers) * batches,
        peak_bytes=sizes.model_bytes + F + min(per_batch, samples) * length * sizes.token_bytes,
        flop=2.0 * tokens * (3 * sizes.active + 2 * sizes.head),
        rate=rate,
        hopper_seconds=hopper,
        loop_seconds=samples * max(single, LAUNCHES * len(sizes.layers) * LAUNCH_S),
    )


def format_pass(gpu: Gpu, estimate: Pass, measured: Mapping[str, float] | None = None) -> str:
    """The pass as aligned lines; beside its seconds those that were measured, by the same names."""
    measured = measured or {}
    lines = [f"{gpu.name}: {estimate.batches} batches of at most {estimate.tokens_per_batch:,} tokens"]
    for part in estimate.parts:
        lines.append(
            f"  {part.name:32} {part.flop / 1e12:8.1f} TFLOP {part.bytes / 1e9:8.1f} GB  {part.seconds:7.3f} s"
            f"{_beside(measured, part.name)}"
        )
    whole = f"{estimate.launches:8,} launches {'':9} {estimate.seconds:7.3f} s"
    share = f"{estimate.flop / estimate.seconds / estimate.rate:.0%} of the dense rate"
    if (seconds := estimate.hopper_seconds) is not None:
        share += f", with triton-hopper {estimate.flop / seconds / estimate.rate:.0%} and {seconds:.3f} s"
    lines += [
        f"  {WHOLE:32} {whole}{_beside(measured, WHOLE)}",
        f"  {LOOP:32} {'':27} {estimate.loop_seconds:7.3f} s{_beside(measured, LOOP)}"
        f"  ({estimate.loop_seconds / estimate.seconds:.1f} times the pass)",
        f"  {share}; memory {estimate.peak_bytes / 2**30:.1f} GiB of {gpu.memory / 2**30:.0f}"
        + ("" if estimate.peak_bytes <= gpu.memory else ": it does not fit"),
        f"  Assumed, not measured: {ASSUMPTIONS}.",
    ]
    return "\n".join(lines)


def _beside(measured: Mapping[str, float], name: str) -> str:
    return f"  measured {measured[name]:7.3f} s" if name in measured else ""
