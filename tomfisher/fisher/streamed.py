"""`fisher_diagonal` of an opened model: layer by layer, each store tensor written as its layer leaves."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.linear_maps import LinearMaps, coverage, linear_maps
from tomfisher.fisher.record import Asked, describe_run
from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.fisher.stage import WholeModel
from tomfisher.models.opened import OpenedModel
from tomfisher.progress import progress_bar
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import ordinary_ids
from tomfisher.runtime.gate import check_samples
from tomfisher.runtime.layerwise import Layers, UnsupportedLayers
from tomfisher.runtime.memory import token_budget
from tomfisher.sample import Sample, digest


def stream_diagonal(
    opened: OpenedModel,
    samples: list[Sample],
    asked: Asked,
    boundary: str | os.PathLike[str] = "ram",
    progress: bool = True,
) -> FisherDiagonal:
    """The sums of `fisher_diagonal`, with one decoder layer in memory at a time.

    Args:
        opened: from `open_model`.
        samples: token sequences with labels.
        asked: the settings.
        boundary: "ram", or the folder of a file for the hidden states between layers.
        progress: show a bar on a terminal.

    Raises:
        UnsupportedLayers: layers of this model cannot run one at a time, or the selection reaches outside of them.
    """
    model = opened.model
    boundaries = Boundaries(None if boundary == "ram" else boundary)
    layers = Layers(opened, boundaries)

    def outside() -> AbstractContextManager[None]:
        return opened.loaded(opened.outer)

    with outside():
        layers.learn(torch.tensor([ordinary_ids(model)[:8]]))
        with layers.recording():
            check_samples(model, samples)
        maps = _linear_maps(layers)
        selection = _selection(layers, asked.params, maps)
        budget = token_budget(asked.tokens_per_batch, model, device_of(model))
        stage = WholeModel(model, None, asked.labels, asked.reduction, asked.seed)
        run = LayerwiseRun(layers, outside, selection, samples, stage, budget, asked.impl, asked.precision)
        run.record()
    tokens = sum(map(len, samples))
    steps = tokens * (2 * len(layers.modules) - run.lowest)
    sums: dict[str, Tensor] = {}
    with progress_bar(total=steps, desc="Fisher, layer by layer", unit="token", enabled=progress) as bar:
        run.up(lambda _: bar.update(tokens))
        run.down(lambda _, F: sums.update(F), bar.update)
    taken = {name: method for each in run.runs for name, method in each.methods.describe().items()}
    result = FisherDiagonal(
        {name: sums[name] for name in selection},
        num_samples=len(samples),
        num_tokens=tokens,
        methods={name: taken[name] for name in selection},
        metadata=describe_run(
            asked,
            model,
            run.runs,
            run.rules,
            coverage(maps, taken),
            budget,
            opened.identity(),
            digest(samples),
        )
        | {
            "streamed": {
                "passes": layers.passes,
                "bytes_read": opened.bytes_read,
                "file_bytes": opened.file_bytes,
            }
        },
    )
    boundaries.close()
    return result


def _linear_maps(layers: Layers) -> LinearMaps:
    """The decoder's linear maps; where the model has to be asked, each layer is read once more."""
    with layers.on_demand():
        return linear_maps(layers.model)


def _selection(layers: Layers, params: Params, maps: LinearMaps) -> dict[str, nn.Parameter]:
    """The selected parameters, all of them of one layer each."""
    selection = select_parameters(layers.model, params, maps.weights)
    inside = {name for names in layers.parameters for name in names}
    if outside := [name for name in selection if name not in inside]:
        raise UnsupportedLayers(
            f"{outside[0]} and {len(outside) - 1} more of the selected parameters lie outside the decoder's layers, "
            "which a streamed Fisher does not reach. Select what the layers hold (params='decoder-linear'), or load "
            "the model whole."
        )
    return selection
