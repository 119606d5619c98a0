"""`perturb`: what is to be written where, before anything is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.ops.dispatch import Impl
from tomfisher.perturbation.fill import Fill, FillLike
from tomfisher.perturbation.session import Perturbation
from tomfisher.perturbation.sharded import ShardedPerturbation
from tomfisher.perturbation.sums import WeightSums
from tomfisher.perturbation.targets import named_tensors
from tomfisher.runtime.sharded import is_sharded, settle
from tomfisher.runtime.torch_state import plain_torch


@plain_torch()
def perturb(
    target: nn.Module | Mapping[str, Tensor],
    mask: SparseMask,
    fill: FillLike = "mean",
    seed: int = 0,
    compat: str | None = None,
    impl: Impl = "auto",
    sums: WeightSums | None = None,
) -> Perturbation:
    """Prepare an in-place overwrite of the masked weights; `with` applies it and undoes it to the bit.

    Example::

        with tomfisher.perturb(model, mask):    # or p = tomfisher.perturb(model, mask).apply(); p.undo()
            scores = tomfisher.evaluate.score(model, tokenizer, stories)

    The undo is exact after an exception or Ctrl-C inside the block too. It looks first: an entry that no longer holds
    what was written was changed by somebody else; it is named, in an error, or in a warning where the block itself
    failed, and keeps its value. Perturbations of the same weights nest: the last applied is the first undone. Weights
    that share memory (tied embeddings) are written once, at the union of their masked entries. A `Perturbation` that
    is dropped without `undo()` leaves its change for good.

    Where FSDP2 (`fully_shard`) or transformers' tensor parallelism has spread the weights over ranks, all of them make
    this call and apply it together: each writes the entries that it holds. Fills are of the whole tensor.

    Args:
        target: the model, or a mapping from names to tensors, of float16, bfloat16, float32 or float64.
        mask: the entries; its names and shapes must be the target's.
        fill: "mean": of the unmasked entries of the same tensor, float64 accumulation, rounded once.
            "zero", or a number: that value.
            "noise": independent normal draws with the mean and standard deviation of all entries of the same
            tensor, a function of `seed` and the tensor's name.
            ("scale", factor) or "scale:factor": each entry times the factor, computed in float64.
        seed: for "noise".
        compat: "authors" for the paper's mean, the sum of the unmasked entries divided by the number of ALL
            entries (masked ones count as zeros); float64 accumulation, rounded once to the weight's dtype.
        impl: "auto", "triton", "cpp" or "reference".
        sums: what is known of the weights, to share between perturbations: a mean then costs as much as there
            are masked entries, but writes that PyTorch does not count, as those of fused optimizers, are not noticed
            (see `WeightSums`). None: the weights are read whenever it is applied, as those that are spread over
            ranks always are.

    Returns:
        A `Perturbation`, not applied yet.

    Raises:
        NotImplementedError: `impl` does not exist for these weights' device.
        TypeError: mask or target is of another type, or a masked tensor is quantised or not floating-point.
        ValueError: the mask is of another model (names or shapes differ), a tensor is on the meta device, or
            fill or compat is unknown.
    """
    if not isinstance(mask, SparseMask):
        raise TypeError(f"mask must be a SparseMask, got {type(mask).__name__}. See tomfisher.top_fraction.")
    parsed = Fill.parse(fill)
    if compat not in (None, "authors"):
        raise ValueError(f"compat must be None or 'authors', got {compat!r}.")
    if compat == "authors" and parsed.kind != "mean":
        raise ValueError(f"compat='authors' is a way to take the mean, got fill={fill!r}. Use fill='mean'.")
    if isinstance(target, nn.Module):
        settle(target)
    tensors = named_tensors(target)
    if any(is_sharded(tensors.get(name)) for name in mask):
        return ShardedPerturbation(target, mask, parsed, seed, compat, impl)
    return Perturbation(target, mask, parsed, seed, compat, impl, sums)
