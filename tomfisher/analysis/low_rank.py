"""Singular values of the change ΔW that a sparse perturbation makes: is it of low rank?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomfisher.analysis.spread import matrices
from tomfisher.masks import SparseMask
from tomfisher.ops.scatter import gather
from tomfisher.perturbation import perturb
from tomfisher.perturbation.fill import FillLike
from tomfisher.perturbation.targets import named_tensors

LEADING = 8
BLOCK = 4096


@dataclass(frozen=True)
class RankChange:
    """The change ΔW = perturbed - original of one matrix.

    Attributes:
        tensor: the weight's name; "NAME[e]" for the matrix of expert e.
        masked: number of masked entries.
        full: the largest rank that a matrix of this shape can have.
        norm: Frobenius norm of ΔW.
        singular: float64, descending, the singular values that are not zero.
    """

    tensor: str
    masked: int
    full: int
    norm: float
    singular: Tensor

    @property
    def rank(self) -> int:
        """Number of singular values above machine precision (float64) times the largest."""
        return len(self.singular)

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the normalised singular values (`effective_rank`)."""
        return effective_rank(self.singular)

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖_F² over the square of the largest singular value; 0 without a change."""
        return float((self.singular / self.singular[0]).square().sum()) if self.rank else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The ranks, and the first eight singular values relative to the largest."""
        leading = self.singular[:LEADING]
        return {
            "full": self.full,
            "norm": self.norm,
            "rank": self.rank,
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "spectrum": leading / leading[:1],
        }


def effective_rank(singular: Tensor) -> float:
    """exp(-Σ p_i ln p_i) with p_i = σ_i / Σ σ; 0 for no singular values.

    Args:
        singular: singular values, none negative.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality (EUSIPCO 2007).
    """
    share = singular[singular > 0].double()
    if not len(share):
        return 0.0
    share = share / share.sum()
    return float((-(share * share.log()).sum()).exp())


def change_ranks(
    model: Any,
    mask: SparseMask,
    fill: FillLike = "mean",
    seed: int = 0,
    compat: str | None = None,
    transposed: frozenset[str] = frozenset(),
) -> list[RankChange | str]:
    """Measure the change of every matrix that a perturbation makes; the weights are restored to the bit.

    Only the masked entries are read. The change's rows and columns without a masked entry add nothing, and blocks
    that share neither rows nor columns have their own singular values, so each connected block is decomposed alone,
    in float64: exact, and cheap for a sparse mask.

    Args:
        model: the module that the mask is of.
        mask: the entries.
        fill: see `tomfisher.perturb`.
        seed: for the fill "noise".
        compat: see `tomfisher.perturb`.
        transposed: weights that keep their outputs on the second axis.

    Returns:
        One `RankChange` for each matrix of the mask, or the reason why there is none: its fill cannot be computed (a
        weight masked entirely), or a connected block has more than 4096 rows and columns (which would take minutes).
    """
    change, failed = _changes(model, mask, fill, seed, compat)
    taken = dict.fromkeys(mask, 0)
    changes: list[RankChange | str] = []
    for label, rows, columns, shape in matrices(mask, transposed):
        name = label.partition("[")[0]
        if name in failed:
            changes.append(failed[name])
            continue
        values = change[name][taken[name] : taken[name] + len(rows)]
        taken[name] += len(rows)
        try:
            singular = singular_values(rows, columns, values, label)
        except ValueError as error:  # also a decomposition that does not converge
            changes.append(str(error))
        else:
            changes.append(RankChange(label, len(rows), min(shape), float(values.norm()), singular))
    return changes


def _changes(
    model: Any, mask: SparseMask, fill: FillLike, seed: int, compat: str | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The change of every masked entry, by tensor; and why some tensors have none."""
    tensors = {name: weight.detach() for name, weight in named_tensors(model).items() if name in mask}
    try:
        perturbation = perturb(model, mask, fill=fill, seed=seed, compat=compat)
        before = _values(tensors, mask)
        with perturbation:
            after = _values(tensors, mask)
    except (ValueError, TypeError) as error:
        if len(mask) == 1:
            return {}, {next(iter(mask)): str(error)}
        change: dict[str, Tensor] = {}
        failed: dict[str, str] = {}
        for name in mask:
            alone = SparseMask({name: mask[name]}, {name: mask.shapes[name]})
            own, why = _changes(model, alone, fill, seed, compat)
            change, failed = change | own, failed | why
        return change, failed
    return {name: after[name] - before[name] for name in mask}, {}


def singular_values(rows: Tensor, columns: Tensor, values: Tensor, label: str = "the matrix") -> Tensor:
    """The singular values, other than zero, of the matrix with these entries and zeros elsewhere.

    Args:
        rows: int64 `[k]`.
        columns: int64 `[k]`; no place occurs twice.
        values: `[k]`.
        label: the matrix, for the message.

    Returns:
        Float64, descending; those below machine precision times the largest are left out.

    Raises:
        ValueError: a connected block has more than 4096 rows and columns.
    """
    blocks: list[np.ndarray] = [np.zeros(0)]
    for r, c, v in _blocks(*(x.numpy() for x in (rows, columns, values.double()))):
        (height, r), (width, c) = (_compact(x) for x in (r, c))
        if min(height, width) > BLOCK:
            raise ValueError(
                f"The change of {label} is one block of {height} rows and {width} columns; singular values are taken "
                f"of up to {BLOCK}. Use a smaller kappa."
            )
        if min(height, width) == 1:
            blocks.append(np.array([np.linalg.norm(v)]))
            continue
        dense = np.zeros((height, width))
        dense[r, c] = v
        blocks.append(np.linalg.svd(dense, compute_uv=False))
    descending = np.sort(np.concatenate(blocks))[::-1]
    floor = np.finfo(np.float64).eps * max(len(descending), 1) * (descending[0] if len(descending) else 0.0)
    return torch.from_numpy(descending[descending > floor].copy())


def _blocks(rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Any:
    """Groups of entries that share no row and no column with any other group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(rows):
        return
    (height, r), (width, c) = _compact(rows), _compact(columns)
    size = height + width
    graph = coo_array((np.ones(len(r), dtype=np.int8), (r, c + height)), shape=(size, size))
    label = connected_components(graph, directed=False)[1][r]
    order = label.argsort(kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        yield rows[members], columns[members], values[members]


def _compact(numbers: np.ndarray) -> tuple[int, np.ndarray]:
    """How many different numbers there are, and each as its rank among them."""
    different, ranks = np.unique(numbers, return_inverse=True)
    return len(different), ranks


def _values(tensors: dict[str, Tensor], mask: SparseMask) -> dict[str, Tensor]:
    """The masked entries of every tensor, in the order of the mask, float64 on the CPU."""
    return {
        name: gather(weight, mask[name].to(weight.device)).double().cpu() for name, weight in tensors.items()
    }
