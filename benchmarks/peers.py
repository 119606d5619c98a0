"""Other ways to the same Fisher diagonal of a whole model, each called as its documentation asks.

All of them take the same samples and the same loss (mean over a sample's supervised tokens, summed over samples),
differentiate the decoder's weight matrices only, and return the sum over samples of squared gradients.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tomfisher.fisher import select_parameters
from tomfisher.sample import Sample

Fisher = dict[str, Tensor]
Pass = Callable[[nn.Module, Sequence[Sample], int], Fisher]


def loop(model: nn.Module, samples: Sequence[Sample], batch: int = 1) -> Fisher:
    """The paper's way: one sample per backward pass, gradients squared by a hook, summed in `.grad`.

    Args:
        model: a transformers causal language model; squares and sums are in its dtype.
        samples: of any lengths.
        batch: not used.

    Returns:
        Parameter name to sum of squared gradients.
    """
    with _trainable(model) as selection:
        handles = [p.register_hook(torch.square) for p in selection.values()]
        try:
            for sample in samples:
                _losses(model, [sample]).sum().backward()
            return {name: p.grad for name, p in selection.items() if p.grad is not None}
        finally:
            for handle in handles:
                handle.remove()


def backpack(model: nn.Module, samples: Sequence[Sample], batch: int = 8) -> Fisher:
    """BackPACK's SumGradSquared, with opt-einsum: without it the einsum's intermediate result is enormous.

    Raises:
        ImportError: BackPACK or opt-einsum is missing.
    """
    _need("backpack", "backpack-for-pytorch")
    _need("opt_einsum", "opt-einsum")
    from backpack import backpack as active
    from backpack import extend
    from backpack.extensions import SumGradSquared

    with _trainable(model) as selection, _hooks_removed(model):
        for module in _linears(model, selection).values():
            extend(module)
        F: Fisher = {}
        for group in _batches(samples, batch):
            with active(SumGradSquared()):
                _losses(model, group).sum().backward()
            for name, p in selection.items():
                _add(F, name, p.sum_grad_squared)  # type: ignore[attr-defined]
                del p.sum_grad_squared  # type: ignore[attr-defined]
                p.grad = None
        return F


def opacus(model: nn.Module, samples: Sequence[Sample], batch: int = 8) -> Fisher:
    """Opacus' per-sample gradients (`GradSampleHooks`), squared and summed by us.

    Raises:
        ImportError: Opacus is missing.
    """
    _need("opacus", "opacus")
    from opacus.grad_sample import GradSampleHooks

    with _trainable(model) as selection, _hooks_removed(model):
        model.train()  # its hooks do nothing in evaluation mode; our models have no dropout
        hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
        try:
            F: Fisher = {}
            for group in _batches(samples, batch):
                _losses(model, group).sum().backward()
                for name, p in selection.items():
                    _add(F, name, p.grad_sample.square_().sum(0))  # type: ignore[attr-defined]
                    p.grad_sample = p.grad = None  # type: ignore[attr-defined]
            return F
        finally:
            hooks.cleanup()
            model.eval()


def vmap_grad(model: nn.Module, samples: Sequence[Sample], batch: int = 8) -> Fisher:
    """`torch.func.vmap(grad)` over the samples of a batch."""
    from torch.func import functional_call, grad, vmap

    with _trainable(model) as selection:
        weights = {name: p.detach() for name, p in selection.items()}

        def loss(weights: Fisher, ids: Tensor, labels: Tensor) -> Tensor:
            logits = functional_call(
                model, weights, (ids[None],), {"use_cache": False}, tie_weights=False
            ).logits
            return _mean_nll(logits, labels[None]).sum()

        F: Fisher = {}
        for group in _batches(samples, batch):
            ids, labels = _stacked(model, group)
            for name, g in vmap(grad(loss), (None, 0, 0))(weights, ids, labels).items():
                _add(F, name, g.square_().sum(0))
        return F


PASSES: dict[str, Pass] = {"loop": loop, "backpack": backpack, "opacus": opacus, "vmap": vmap_grad}


def _mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """`[B]`: mean negative log-likelihood of each sample's supervised tokens."""
    targets = labels[:, 1:]
    nll = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1)
        if logits.dtype in (torch.float16, torch.bfloat16)
        else logits[:, :-1].flatten(0, 1),
        targets.flatten(),
        ignore_index=-100,
        reduction="none",
    )
    return nll.view(targets.shape).sum(1) / (targets != -100).sum(1)


def _losses(model: nn.Module, group: Sequence[Sample]) -> Tensor:
    ids, labels = _stacked(model, group)
    return _mean_nll(model(input_ids=ids, use_cache=False).logits, labels)


def _stacked(model: nn.Module, group: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    return (
        torch.stack([s.input_ids for s in group]).to(device),
        torch.stack([s.labels for s in group]).to(device),
    )


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Batches of equally long samples: padding would be no fair task for the peers."""
    if len({len(s) for s in samples}) > 1:
        raise ValueError("The peers are given samples of one length; these differ.")
    return (samples[i : i + size] for i in range(0, len(samples), size))


def _add(F: Fisher, name: str, squares: Tensor) -> None:
    F[name] = F[name].add_(squares) if name in F else squares


@contextmanager
def _trainable(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The decoder's weight matrices, alone with `requires_grad`; everything as it was afterwards."""
    before = {p: p.requires_grad for p in model.parameters()}
    selection = select_parameters(model, "decoder-linear")
    try:
        for p in before:
            p.requires_grad_(False)
        for p in selection.values():
            p.requires_grad_(True)
        yield selection
    finally:
        for p, flag in before.items():
            p.requires_grad_(flag)
            p.grad = None


def _linears(model: nn.Module, selection: dict[str, nn.Parameter]) -> dict[str, nn.Module]:
    owners = {name.rpartition(".")[0] for name in selection}
    return {name: module for name, module in model.named_modules() if name in owners}


@contextmanager
def _hooks_removed(model: nn.Module) -> Iterator[None]:
    """Take away the forward and backward hooks that a peer leaves on modules, and the tensors it keeps there."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    before = {m: {kind: dict(getattr(m, kind)) for kind in kinds} for m in model.modules()}
    attributes = {m: set(vars(m)) for m in model.modules()}
    try:
        yield
    finally:
        for module, hooks in before.items():
            for kind, old in hooks.items():
                getattr(module, kind).clear()
                getattr(module, kind).update(old)
            for name in set(vars(module)) - attributes[module]:
                delattr(module, name)


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{package} is not installed. To compare with it: pip install 'tomfisher[bench]'.")
