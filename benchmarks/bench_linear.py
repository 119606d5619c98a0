"""Float32 linear layers on the CPU: oneDNN, which the Fisher runs on where it is faster, against what PyTorch takes.

Each product goes through many weight matrices, as in a model, so that none is in the cache when its turn comes.
Floor: its FLOP at the best rate that a large matrix product was measured to run at.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tomfisher.benchmarks import models, plots
from tomfisher.benchmarks.harness import Contender, interleave, matmul_rate, record, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.runtime.onednn import has_onednn, product

BASELINE = "PyTorch"
COLUMNS = (*TIME, SPEED, FLOOR, Column("GFLOP/s", "gflop_per_s", ".0f"), Column("rel. error", "error", ".1e"))
_WEIGHTS_BYTES, _MOST_WEIGHTS = 128 << 20, 512  # that a product goes through: more than a cache holds


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every layer, forward and input gradient, and return the record.

    Raises:
        NotImplementedError: PyTorch was built without oneDNN.
        ValueError: `--tokens` is no list of positive numbers.
    """
    if not has_onednn():
        raise NotImplementedError("PyTorch was built without oneDNN here; there is nothing to compare.")
    if not all(number.isdecimal() and int(number) > 0 for number in args.tokens.split(",")):
        raise ValueError(f"--tokens must be numbers above 0, such as 64,512; got {args.tokens!r}.")
    rate = matmul_rate(torch.float32)
    cases = [
        measure(layer, int(tokens), backward, args.rounds, rate)
        for layer in [*models.distinct_layers(args.model), models.head(args.model)]
        for tokens in args.tokens.split(",")
        for backward in (False, True)
    ]
    settings = {"model": args.model, "tokens": args.tokens, "rounds": args.rounds}
    return record("linear", settings, {"cases": cases})


def report(result: dict[str, Any]) -> str:
    """The record as tables."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Rate of both, layer by layer."""
    plots.bars(result["results"]["cases"], path, "gflop_per_s", "GFLOP/s", "float32 linear layers")


def measure(layer: models.Layer, tokens: int, backward: bool, rounds: int, rate: float) -> dict[str, Any]:
    """One product: `x @ W.T`, or `g @ W` for the gradient of x."""
    generator = torch.Generator().manual_seed(0)
    copies = min(_MOST_WEIGHTS, math.ceil(_WEIGHTS_BYTES / (4 * layer.d_out * layer.d_in)))
    weights = [torch.randn(layer.d_out, layer.d_in, generator=generator) for _ in range(copies)]
    x = torch.randn(tokens, layer.d_out if backward else layer.d_in, generator=generator)
    operands = [weight.t() if backward else weight for weight in weights]
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {BASELINE: linear, "oneDNN": product}
    timed = {name: Contender(partial(_through, way, x, operands)) for name, way in ways.items()}
    what = "input gradient" if backward else "forward"
    name = f"{layer.name} {layer.d_out}x{layer.d_in}, {tokens} tokens, {what}"
    flop = 2.0 * tokens * layer.d_out * layer.d_in * copies
    rows = summary(interleave(timed, rounds, desc=name), BASELINE, flop / rate)
    exact = x.double() @ operands[0].double().t()
    for label, row in rows.items():
        row["gflop_per_s"] = flop / row["seconds"]["median"] / 1e9
        row["error"] = float((ways[label](x, operands[0]) - exact).norm() / exact.norm())
    return {"name": name, "baseline": BASELINE, "floor_s": flop / rate, "contenders": rows, "absent": {}}


def _through(way: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Sequence[Tensor]) -> None:
    for weight in weights:
        way(x, weight)
