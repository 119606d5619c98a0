"""What a result has to equal: the definitions in float64 or exact arithmetic, written without the package's code."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

IGNORED = -100  # as Hugging Face labels what is not supervised
EPS = torch.finfo(torch.float32).eps
Bounds = list[tuple[int, int]]


def fisher(model: nn.Module, samples: Iterable, reduction: str = "mean") -> dict[str, Tensor]:
    """F_i = Σ_n (∂ℓ_n/∂θ_i)², every parameter, float64, one sample at a time, PyTorch's own loss."""
    reference = copy.deepcopy(model).double().eval()
    if hasattr(reference, "set_experts_implementation"):
        reference.set_experts_implementation("eager")  # the fused kernels have no float64
    F = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for sample in samples:
        reference.zero_grad()
        # Mamba casts its logits to float32 whatever the model's dtype; all before them is float64
        logits = reference(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1].double()
        loss = nn.functional.cross_entropy(
            logits, sample.labels[1:], ignore_index=IGNORED, reduction=reduction
        )
        loss.backward()
        for name, p in reference.named_parameters():
            if p.grad is not None:
                F[name] += p.grad.square()
    return F


def logprob(model: nn.Module, ids: list[int], start: int) -> float:
    """Log p of `ids[start:]` after `ids[:start]` in nats: float64, the whole sequence at once, nothing shared."""
    exact = copy.deepcopy(model).double()
    if hasattr(exact, "set_experts_implementation"):
        exact.set_experts_implementation("eager")
    with torch.no_grad():
        logprobs = exact(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(logprobs[t - 1, ids[t]].item() for t in range(start, len(ids)))


def squared_gradient(Y: Tensor, X: Tensor, bounds: Bounds) -> Tensor:
    """`Σ_n (Y_nᵀ X_n)²` of the rows `[start, stop)` of each segment; Y `[N, d_out]`, X `[N, d_in]`."""
    F = torch.zeros(Y.shape[1], X.shape[1], dtype=torch.float64, device=Y.device)
    for start, stop in bounds:
        F += (Y[start:stop].double().T @ X[start:stop].double()).square()
    return F


def squared_gradient_rounding(Y: Tensor, X: Tensor, bounds: Bounds) -> Tensor:
    """Worst-case float32 rounding, per entry: T terms in a sum g, then a square, then S sums of squares.

    |error of g| <= T·eps·A with A = sum of |terms|; the square adds 2·|g|·that; the outer sum S·eps·g².
    """
    total = torch.zeros(Y.shape[1], X.shape[1], dtype=torch.float64, device=Y.device)
    for start, stop in bounds:
        size = Y[start:stop].double().abs().T @ X[start:stop].double().abs()
        total += (2 * (stop - start) + len(bounds) + 2) * EPS * size.square()
    return total


def assert_squared_gradient(F: Tensor, Y: Tensor, X: Tensor, bounds: Bounds, slack: float = 1) -> None:
    """F is finite and as near to float64 as `slack` times the worst-case float32 rounding allows."""
    error = (F.double() - squared_gradient(Y, X, bounds)).abs()
    assert torch.isfinite(F).all()
    assert (error <= slack * squared_gradient_rounding(Y, X, bounds)).all()


def sink_mass(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool = True,
    lengths: list[int] | None = None,
    first: int = 1,
    slopes: Tensor | None = None,
    window: int | None = None,
) -> tuple[list[Tensor], float]:
    """First mass, entropy and column mean `[B, H, T]` by an explicit softmax, and the largest score in absolute value.

    q `[B, H, T, D]`, k `[B, H_kv, T, D]`; entropies in nats; what lies beyond a length is zero.
    """
    B, H, T, _ = q.shape
    first_mass, entropy, column_mean = (q.new_zeros(B, H, T, dtype=torch.float64) for _ in range(3))
    largest = 0.0
    for b, n in enumerate(lengths or [T] * B):
        at = torch.arange(n, device=q.device)
        back = at[:, None] - at
        for h in range(H if n else 0):
            score = q[b, h, :n].double() @ k[b, h * k.shape[1] // H, :n].double().T * scale
            if slopes is not None:
                score -= slopes[h].double() * back
            if causal:
                score[(back < 0) | (back >= (window or n))] = -math.inf
            largest = max(largest, score[score > -math.inf].abs().max().item())
            A = score.softmax(-1)
            first_mass[b, h, :n] = A[:, :first].sum(1)
            entropy[b, h, :n] = -torch.xlogy(A, A).sum(1)
            column_mean[b, h, :n] = A.sum(0) / (n - at if causal else n)
    return [first_mass, entropy, column_mean], largest


def rope_energy(
    x: Tensor, layout: str, width: int, lengths: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Sums over tokens of |z|² and |z| `[H, width / 2]` of each rotated pair z; x `[B, T, H, D]`."""
    rows = torch.cat([sequence[:n] for sequence, n in zip(x, lengths or [x.shape[1]] * len(x), strict=True)])
    rotated = rows.double()[..., :width]
    pairs = [
        (2 * p, 2 * p + 1) if layout == "interleaved" else (p, p + width // 2) for p in range(width // 2)
    ]
    norms = torch.stack([torch.hypot(rotated[..., i], rotated[..., j]) for i, j in pairs], -1)
    return norms.square().sum(0), norms.sum(0)


def largest(values: Tensor, k: int) -> Tensor:
    """Flat indices of the k largest: a stable sort of exact numbers by NumPy, value descending, then index."""
    return torch.from_numpy(
        np.argsort(-values.flatten().double().numpy(), kind="stable")[:k].astype(np.int64)
    )


def weight_sums(weight: Tensor) -> tuple[float, float]:
    """The exact sum of the entries and of their absolute values, rounded once to float64."""
    values = weight.double().flatten().tolist()
    return math.fsum(values), math.fsum(map(abs, values))


def mean_without(weight: Tensor, index: list[int]) -> Fraction:
    """Mean of the entries that `index` does not name, in rational arithmetic."""
    masked = set(index)
    kept = [Fraction(v) for i, v in enumerate(weight.flatten().double().tolist()) if i not in masked]
    return sum(kept, Fraction(0)) / len(kept)


def neighbours(value: float, dtype: torch.dtype) -> list[Fraction]:
    """Fractions of `value` in `dtype` and of the two numbers beside it, as far as they are finite."""
    at = torch.tensor(value, dtype=torch.float64).to(dtype)
    up, down = (torch.nextafter(at, torch.tensor(side, dtype=dtype)) for side in (math.inf, -math.inf))
    return [Fraction(float(x)) for x in (at, up, down) if torch.isfinite(x)]


def spacing(value: float, dtype: torch.dtype) -> float:
    """Distance from |value| in `dtype` to the next larger number."""
    at = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
    return float(torch.nextafter(at, torch.tensor(math.inf, dtype=dtype)) - at)
