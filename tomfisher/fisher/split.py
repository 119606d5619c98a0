"""What has to be settled before squares are taken of a model that is split over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tomfisher.fisher.flags import where
from tomfisher.fisher.probe import probe_samples
from tomfisher.fisher.stage import Stage
from tomfisher.runtime.batches import Batch
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.tensor_parallel import Split, styles_of
from tomfisher.sample import Sample

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}


@contextmanager
def tokens_stay(model: nn.Module, split: Split) -> Iterator[None]:
    """While the block runs, experts that are split over ranks see all tokens of a batch, in their order.

    transformers can send tokens to the ranks of their experts, where nothing tells any more which sample they are of;
    or have every rank run its own experts on all tokens and add the outputs ("all_reduce"), which gives the same. All
    ranks have the same batch here, so that the second way is there.

    Args:
        model: a model that is split over ranks.
        split: how.
    """
    names = [name for name, style in styles_of(model).items() if style == "ep_dispatch_experts"]
    if not names:
        yield
        return
    from transformers.distributed.expert_parallel import EpDispatchExpertsParallel

    before = {}
    try:
        for name in names:
            module = model.get_submodule(name)
            parameter: Any = next(p for p in module.parameters() if split.part(p) is not None)
            mesh = parameter.device_mesh
            before[module] = module.__dict__.pop("forward")
            EpDispatchExpertsParallel().install_forward(
                module, mesh, tp_mesh=mesh, ep_implementation="all_reduce"
            )
        yield
    finally:
        for module, forward in before.items():
            module.forward = forward


def check_replicated(stage: Stage, selection: Mapping[str, nn.Parameter], samples: list[Sample]) -> None:
    """Refuse parameters that every rank holds whole, but of whose gradient each has another one.

    The gradient of a short sample is compared over the ranks. Where transformers' plan says that each rank has a
    summand, it adds them up itself, in hooks that its modules set in the first forward with gradients; that goes ahead.

    Args:
        stage: what batches go through.
        selection: parameters of it, by name.
        samples: those of the run.

    Raises:
        ValueError: naming the parameters; or the model, split as it is, has no forward with gradients.
    """
    split = stage.split
    held = {name: p for name, p in selection.items() if split.shape(p) == tuple(p.shape)}
    sample = probe_samples(samples)[0]
    apart: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> None:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                own = split.local(gradient, parameter)
                mean = own.double()
                dist.all_reduce(mean)
                mean /= split.team.size
                tolerance = _TOLERANCE[parameter.dtype] * mean.abs().amax()
                apart[name] = (own - mean).abs().amax() > tolerance + 1e-12

        handles.append(held[name].register_post_accumulate_grad_hook(take))

    with frozen(stage.model, trainable=tuple(held.values())):
        try:
            batch = stage.batch([sample], [0])
            _first_forward(stage, batch)
            for name in held:
                watch(name)
            outputs = stage.forward(batch)
            stage.check(stage.per_sample(outputs, batch), [sample.name])
            stage.backward(outputs, batch)
        finally:
            for handle in handles:
                handle.remove()
    if differing := sorted(split.union("gradients that differ", where(apart))):
        raise ValueError(
            f"Every rank holds all of {', '.join(differing[:4])}{' ...' if differing[4:] else ''}, but has another "
            "gradient of it: the model's plan lacks the rule replicated_with_grad_allreduce for its module. Add it "
            "(tp_plan of DistributedConfig), or leave these parameters out (params)."
        )


def _first_forward(stage: Stage, batch: Batch) -> None:
    """`stage.forward` with gradients, with what autograd forbids in a model that is split said in words."""
    try:
        stage.forward(batch)
    except RuntimeError as error:
        if "modified inplace" not in str(error):
            raise
        raise ValueError(
            f"{type(stage.model).__name__} has no forward with gradients where transformers splits it over ranks, "
            f"which a Fisher diagonal needs: {' '.join(str(error).split())[:200]} Load it in one process."
        ) from error
