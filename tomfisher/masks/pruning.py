"""Pruning: the entries that a loss misses least, and masks in the form of `torch.nn.utils.prune`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import prune

from tomfisher.masks.criteria import Known, get
from tomfisher.masks.fraction import checked_kappa, count
from tomfisher.masks.sparse_mask import SparseMask
from tomfisher.masks.store import some
from tomfisher.ops import topk
from tomfisher.progress import progress_bar
from tomfisher.runtime.structure import owners_of
from tomfisher.runtime.torch_state import plain_torch


@plain_torch()
def pruning_mask(
    F: Mapping[str, Tensor], weights: Mapping[str, Tensor], sparsity: float, progress: bool = True
) -> SparseMask:
    """The fraction of each tensor's entries with the smallest F·w², which optimal brain damage sets to zero.

    Setting weight i to 0 changes the loss by F_i w_i² / 2, to second order and with F in place of the Hessian. Of
    equal ones the lower flat index comes first, so that weights that no sample reached go before all others. One
    tensor is held at a time; a Fisher store and the weights of `safetensors.safe_open` stay on the disk.

    Args:
        F: a Fisher diagonal, `[d_out, d_in]` or of any shape, by parameter name.
        weights: of the same names and shapes, such as `dict(model.named_parameters())`.
        sparsity: fraction that is pruned, between 0 and 1.
        progress: show a bar.

    Returns:
        The entries to prune. `mask.dense(name)` is True where a weight goes; `prune_with_torch` takes the whole.

    Raises:
        TypeError: `sparsity` is no number.
        ValueError: `sparsity` is not in (0, 1), weights are missing or of other shapes, or F or a weight is NaN or
            infinite.

    Source:
        LeCun, Denker and Solla, Optimal Brain Damage (NIPS 1989).
    """
    checked_kappa(sparsity, "sparsity")
    if missing := [name for name in F if name not in weights]:
        raise ValueError(f"weights must name every tensor of F, they lack {some(missing)}.")
    indices, shapes = {}, {}
    for name in progress_bar(F, total=len(F), desc="Pruning mask", unit="tensor", enabled=progress):
        fisher, weight = F[name].detach().cpu(), weights[name].detach().cpu()
        if fisher.shape != weight.shape:
            raise ValueError(
                f"{name} is {tuple(fisher.shape)} in F and {tuple(weight.shape)} in the weights. Give F of this model."
            )
        score = get("obd")(Known(fisher=fisher, weight=weight))
        if not bool(score.isfinite().all()):
            raise ValueError(
                f"F or the weights of {name} hold NaN or infinity. Make F again of a sound model."
            )
        indices[name] = topk(-score, count(sparsity, score.numel())).indices.sort().values
        shapes[name] = tuple(score.shape)
    parents = [{"operation": "pruning_mask", "sparsity": sparsity, "criterion": "obd"}]
    return SparseMask(indices, shapes, sparsity, "tensor", parents)


def prune_with_torch(model: nn.Module, mask: SparseMask) -> list[tuple[nn.Module, str]]:
    """Prune the entries of a mask with `torch.nn.utils.prune`, which keeps them zero through training.

    Each pruned parameter becomes `<name>_orig` of its module, beside the buffer `<name>_mask`, which is 1 where a
    weight is kept. `prune.remove(module, name)` makes the zeros permanent.

    Args:
        model: whose modules get hooks.
        mask: the entries to prune.

    Returns:
        Module and parameter name of each pruned tensor, as the functions of `torch.nn.utils.prune` take them.

    Raises:
        ValueError: the model lacks a tensor of the mask or has it in another shape, or several modules share one.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wrong = [name for name in mask if name not in parameters or parameters[name].shape != mask.shapes[name]]
    if wrong:
        raise ValueError(f"The mask is of another model: {some(wrong)} are not there, or have another shape.")
    owners = owners_of(model)
    shared = [name for name in mask if len(owners[id(parameters[name])]) > 1]
    if shared:
        raise ValueError(
            f"Several modules share {some(shared)}, which torch.nn.utils.prune cannot prune in all of them. Restrict "
            "the mask to the others."
        )
    pruned = []
    for name in mask:
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        prune.custom_from_mask(module, own, ~mask.dense(name).to(parameters[name].device))
        pruned.append((module, own))
    return pruned
