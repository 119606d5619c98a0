"""`perturb`: overwrite masked weights in place, with an exact way back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.masks.store import some
from tomfisher.ops import MovedWeightError
from tomfisher.ops.dispatch import Impl, resolve
from tomfisher.perturbation import stack
from tomfisher.perturbation.fill import Fill, FillLike, Written, restore, write_fill
from tomfisher.perturbation.interrupt import deferred_interrupt
from tomfisher.perturbation.site import Site
from tomfisher.perturbation.standing import Changed, changed, describe, put_back, standing
from tomfisher.perturbation.sums import States, WeightSums
from tomfisher.perturbation.targets import named_tensors, resolve_targets
from tomfisher.runtime.torch_state import plain_torch


@dataclass(frozen=True)
class _Applied:
    """A write that can be undone, with the states of the targets around it and the bytes that were written."""

    site: Site
    written: list[Written]
    before: list[States]
    after: list[States]
    standing: list[Tensor]


class Perturbation:
    """A sparse write that can be applied and undone; as a context manager it is applied inside the block.

    Made by `perturb`. The memory it takes is that of the masked entries, never a copy of a weight.

    Attributes:
        mask: the entries it writes.
        fill: what it writes.
        nnz: number of entries written; those of tied weights count once.
        implementations: which implementation of each operation runs, keyed like "scatter_@cpu".
    """

    def __init__(
        self,
        target: nn.Module | Mapping[str, Tensor],
        mask: SparseMask,
        fill: Fill,
        seed: int,
        compat: str | None,
        impl: Impl,
        sums: WeightSums | None,
    ) -> None:
        self.mask = mask
        self.fill = fill
        self._target = target
        self._seed = seed
        self._compat = compat
        self._impl = impl
        self._given = sums
        self._sums = WeightSums() if sums is None else sums
        targets = resolve_targets(target, mask)
        self.nnz = sum(t.index.numel() for t in targets)
        # only there may what was made in inference mode be written to
        self._mode = torch.inference_mode if any(t.view.is_inference() for t in targets) else torch.no_grad
        by_mean = fill.kind == "mean" and compat is None
        self._by_table = by_mean
        used = ("weight_sums", "masked_fill_mean_", "scatter_") if by_mean else ("scatter_",)
        self.implementations = {
            f"{op}@{device.type}": resolve(op, impl, device)[0]
            for device in dict.fromkeys(t.view.device for t in targets)
            for op in used
        }
        self._site: Site | None = None
        self._log: _Applied | None = None

    def __repr__(self) -> str:
        state = "applied" if self.applied else "not applied"
        tensors = sum(count > 0 for count in self.mask.counts().values())
        return f"Perturbation(fill={str(self.fill)!r}, {self.nnz} entries in {tensors} tensors, {state})"

    @property
    def applied(self) -> bool:
        """Whether the weights are perturbed by this object now."""
        return self._log is not None

    def apply(self) -> Perturbation:
        """Write the fill: completely, or after an error or Ctrl-C on the way not at all.

        Returns:
            Itself.

        Raises:
            RuntimeError: it is applied already.
            TypeError: the model's tensors have become of an unsuitable kind since `perturb` was called.
            ValueError: a fill cannot be computed (NaN weights, a tensor masked entirely), or the model's
                tensors have become others.
        """
        if self.applied:
            raise RuntimeError(f"{self} cannot be applied twice. Call undo() first.")
        try:
            with plain_torch(), deferred_interrupt(), self._mode():
                self._write()
        except BaseException:
            if self.applied:  # a Ctrl-C that waited for the write
                self.undo()
            raise
        return self

    __enter__ = apply

    def _write(self) -> None:
        if self._given is None:  # what changed the weights since may have left their version counters alone
            self._sums = WeightSums()
        if self._site is not None and self._site.holds():
            try:
                return self._write_to(self._site)
            except MovedWeightError:
                pass  # the same tensors with other memory: look at everything again
        return self._write_to(Site(self._target, self.mask, self._impl))

    def _write_to(self, site: Site) -> None:
        before = [self._sums.states(place.group) for place in site.places]
        places = list(zip(site.places, before, strict=True))
        written = write_fill(self.fill, places, self._sums, self._seed, self._compat, self._impl)
        try:
            seen = [standing(place.entries) for place in site.places]
            stack.push(self, site.keys)
        except BaseException:
            restore(written, self._impl)
            raise
        after = [States(len(place.targets)) for place in site.places]
        for place, states in zip(site.places, after, strict=True):
            self._sums.mark_group(place.group, states)
        self._log = _Applied(site, written, before, after, seen)

    def undo(self) -> None:
        """Write the old values back, bit for bit, where still stands what was written. Ctrl-C waits until it is done.

        Raises:
            RuntimeError: it is not applied; or another perturbation of the same weights was applied later and
                must be undone first; or the weights were moved or converted in between, in which case nothing
                is written; or somebody else changed some of the entries: these are named and keep their values,
                all others are restored.
        """
        if found := self._undo():
            raise RuntimeError(describe(found, str(self)))

    def _undo(self) -> list[Changed]:
        """Restore, and give the entries that somebody else changed."""
        if self._log is None:
            raise RuntimeError(f"{self} cannot be undone: apply() it first.")
        log = self._log
        if later := stack.above(self, log.site.keys):
            raise RuntimeError(f"{self} cannot be undone yet: undo {later[0]} first, it was applied later.")
        if not self._by_table or not log.site.holds():
            self._refuse_moved(log.site)
        with plain_torch(), deferred_interrupt(), self._mode():
            found = self._changed(log)
            now = [self._sums.states(place.group) for place in log.site.places]
            try:
                restore(log.written, self._impl)
            except MovedWeightError as error:
                self._refuse_moved(log.site)
                label = log.site.places[0].targets[error.position].label
                raise RuntimeError(
                    f"{self} cannot be undone: {label} was given another dtype or layout since it was applied. "
                    "Give it back its own first."
                ) from error
            stack.remove(self)
            self._log = None
            for place, *states in zip(log.site.places, now, log.before, log.after, strict=True):
                self._sums.recall(place.group, *states)
            self._site = log.site if self._by_table and log.site.keep() else None
            put_back(found, self._impl)
        return found

    def _changed(self, log: _Applied) -> list[Changed]:
        """Entries that do not hold what was written; memory that was replaced is left to `restore` to refuse."""
        if not all(place.unmoved for place in log.site.places):
            return []
        pairs = zip(log.site.places, log.standing, strict=True)
        return [each for place, written in pairs for each in changed(place.entries, written)]

    def _refuse_moved(self, site: Site) -> None:
        """Weights whose memory was replaced, as by `model.to(...)`, cannot be reached any more."""
        if moved := site.moved(named_tensors(self._target)):
            raise RuntimeError(
                f"{self} cannot be undone: the memory of {some(moved)} was replaced since it was applied, by "
                "model.to(...) for example. Undo before moving or converting a model; load this one again."
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        found: list[Changed] = []
        try:
            if self.applied:
                found = self._undo()
        except KeyboardInterrupt:  # it arrived before the write began
            if self.applied:
                self._undo()
            raise
        if found:
            said = describe(found, str(self))
            if error is None:
                raise RuntimeError(said)
            warnings.warn(said, stacklevel=2)  # the block's own error is the one to be seen


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
            (see `WeightSums`). None: the weights are read whenever it is applied.

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
    return Perturbation(target, mask, parsed, seed, compat, impl, sums)
