"""`fisher_diagonal` of an opened model: layer by layer, into memory or into a store that grows."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.linear_maps import LinearMaps, coverage, linear_maps
from tomfisher.fisher.record import Asked, Outcome, describe_run
from tomfisher.fisher.resume import Resumed
from tomfisher.fisher.run import Run
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
    boundary: str | os.PathLike[str] = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FisherDiagonal:
    """The sums of `fisher_diagonal`, with one decoder layer in memory at a time.

    Args:
        opened: from `open_model`.
        samples: token sequences with labels.
        asked: the settings.
        boundary: "ram", or the folder of a file for the hidden states between layers; "auto" is memory without `out`,
            and beside the store with it.
        out: the store, which is written as layers are done; None for a result in memory.
        progress: show a bar on a terminal.

    Raises:
        UnsupportedLayers: layers of this model cannot run one at a time, or the selection reaches outside of them.
    """
    model = opened.model
    boundaries = _boundaries(boundary, out)
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
        resumed = Resumed(run, boundaries, out, asked, opened, digest(samples))
        run.record()
        resumed.restore()
    tokens = sum(map(len, samples))
    total = tokens * (2 * len(layers.modules) - run.lowest)
    sums: dict[str, Tensor] = {}
    outcomes = resumed.outcomes

    def take(number: int, done: Run | None) -> None:
        outcome = None if done is None else Outcome.of(done)
        if outcome is not None:
            outcomes.append(outcome)
        squares = {} if done is None else done.F
        if out is None:
            sums.update(squares)
        resumed.down_done(number, squares, outcome)

    with (
        resumed,
        progress_bar(total=total, desc="Fisher, layer by layer", unit="token", enabled=progress) as bar,
    ):
        bar.update(tokens * resumed.steps_done)

        def layer_done(number: int) -> None:
            bar.update(tokens)
            resumed.up_done(number)

        while resumed.is_going_up and not run.up(layer_done, resumed.up_from):
            with outside():
                run.record()
            resumed.begin_again()
        resumed.head_done()
        run.down(take, bar.update, resumed.down_from)
        taken = {name: method for outcome in outcomes for name, method in outcome.methods.items()}
        methods = {name: taken[name] for name in selection}
        described = describe_run(
            asked,
            model,
            outcomes,
            run.rules,
            coverage(maps, taken),
            budget,
            opened.identity(),
            digest(samples),
        )
        read = {"passes": layers.passes, "bytes_read": opened.bytes_read, "file_bytes": opened.file_bytes}
        described["streamed"] = {**read, "resumed": resumed.steps_done > 0}
        if out is not None:
            resumed.finish(
                {"num_samples": len(samples), "num_tokens": tokens, **described, "methods": methods}
            )
    boundaries.remove()
    if out is not None:
        return FisherDiagonal.load(out, verify=False)
    return FisherDiagonal({name: sums[name] for name in selection}, len(samples), tokens, methods, described)


def _boundaries(boundary: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Boundaries:
    if boundary == "ram" or (boundary == "auto" and out is None):
        return Boundaries()
    if out is None:
        return Boundaries(boundary)
    store = Path(os.path.realpath(out))
    return Boundaries(store.parent if boundary == "auto" else boundary, f"{store.name}.hidden-states")


def _linear_maps(layers: Layers) -> LinearMaps:
    """The decoder's linear maps; where the model has to be asked, each layer is read once more."""
    with layers.on_demand():
        return linear_maps(layers.model)


def _selection(layers: Layers, params: Params, maps: LinearMaps) -> dict[str, nn.Parameter]:
    """The selected parameters, all of them in layers."""
    selection = select_parameters(layers.model, params, maps.weights)
    inside = {name for names in layers.parameters for name in names}
    if outside := [name for name in selection if name not in inside]:
        raise UnsupportedLayers(
            f"{outside[0]} and {len(outside) - 1} more of the selected parameters lie outside the decoder's layers, "
            "which a streamed Fisher does not reach. Select what the layers hold (params='decoder-linear'), or load "
            "the model whole."
        )
    return selection
