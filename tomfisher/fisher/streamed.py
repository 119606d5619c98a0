"""`fisher_diagonal` of an opened model: layer by layer, into memory or into a store that grows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tomfisher import ops
from tomfisher.fisher.diagonal import FisherDiagonal
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.fisher.linear_maps import LinearMaps, coverage, linear_maps
from tomfisher.fisher.outer_stages import outer_of
from tomfisher.fisher.part import Part
from tomfisher.fisher.record import Asked, describe_run
from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.fisher.stage import WholeModel
from tomfisher.fisher.together import agree, agree_on_weights, merged, methods_of, what_ran
from tomfisher.models.opened import OpenedModel
from tomfisher.models.sharded import ShardedModel
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples
from tomfisher.runtime.layer_calls import UnsupportedLayers
from tomfisher.runtime.layer_guard import examine_layers
from tomfisher.runtime.layerwise import Layers
from tomfisher.runtime.memory import token_budget
from tomfisher.runtime.rules import weights_kept
from tomfisher.sample import Sample, digest


@dataclass
class SampleSet:
    """Samples of one Fisher diagonal.

    Attributes:
        samples: token sequences with labels.
        out: the store, which is written as layers are done; None for a result in memory.
        facts: added to what the result says of itself.
    """

    samples: list[Sample]
    out: str | os.PathLike[str] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def stream_diagonals(
    opened: OpenedModel | ShardedModel,
    sets: Sequence[SampleSet],
    asked: Asked,
    boundary: str | os.PathLike[str] = "auto",
    progress: bool = True,
) -> list[FisherDiagonal]:
    """The sums of `fisher_diagonal` for several sets of samples, with one decoder layer in memory at a time.

    Each of several ranks reads every layer, for its share of the samples, and writes its rows of F into the stores,
    which all have to see.

    Args:
        opened: from `open_model`, or a model whose weights are spread over the ranks, inside `resting`.
        sets: whose layers are read together.
        asked: the settings.
        boundary: "ram", or the folder of a file for the hidden states between layers; "auto" is memory for results in
            memory, and beside its store for one with a store.
        progress: show a bar on a terminal.

    Returns:
        One for each set, in order.

    Raises:
        UnsupportedLayers: layers of this model cannot run one at a time, or a selected parameter is used in several.
        NotImplementedError: the implementation asked for does not exist here.
    """
    model, team = opened.model, ranks.current()
    layers = Layers(opened, Boundaries())
    budget = token_budget(asked.tokens_per_batch, model, device_of(model))
    stage = WholeModel(model, None, asked.labels, asked.reduction, asked.seed)
    with ExitStack() as stack:
        stack.callback(opened.free, opened.outer)
        opened.load(opened.outer)
        examine_layers(layers, gradients=True)
        with layers.recording():
            for each in sets:
                check_samples(model, each.samples)
        maps = _linear_maps(layers)
        selection = _selection(layers, asked.params, maps)
        ops.resolve(
            "squared_gradient_", asked.impl, device_of(model)
        )  # one that is missing stops the run here
        outer = outer_of(layers, selection)
        parts = []
        for each in sets:
            data, own = digest(each.samples), team.share([len(sample) for sample in each.samples])
            agree(team, asked, selection, opened.identity(), data)
            boundaries = _boundaries(boundary, each.out, team.rank)
            stack.callback(boundaries.close)
            run = LayerwiseRun(
                layers,
                boundaries,
                selection,
                each.samples,
                stage,
                budget,
                asked.impl,
                asked.precision,
                outer,
                own,
            )
            parts.append(stack.enter_context(Part(run, each.out, asked, opened, data, team)))
            run.record()
            parts[-1].restore()
        ends = bool(outer.after) + bool(outer.before)
        steps = 2 * len(layers.modules) - parts[0].run.lowest + ends
        total, shown = sum(part.num_tokens for part in parts) * steps, progress and team.is_first
        with progress_bar(total=total, desc="Fisher, layer by layer", unit="token", enabled=shown) as bar:
            _up(layers, parts, bar.update)
            agree_on_weights(team, opened.identity())
            _after(layers, parts, bar.update)
            _down(layers, parts, bar.update)
            _before(layers, parts, bar.update)
        read = {"passes": layers.passes, **opened.traffic}
        kind = "sharded" if isinstance(opened, ShardedModel) else "streamed"
        results = []
        for part, each in zip(parts, sets, strict=True):
            ran = team.exchange("what ran", what_ran(part.outcomes, part.run.own, each.samples))
            taken = methods_of(ran)
            described = describe_run(
                asked,
                model,
                part.outcomes,
                part.run.rules,
                coverage(maps, taken),
                budget,
                opened.identity(),
                part.data,
            )
            went = {kind: {**read, "resumed": part.is_resumed}}
            facts = {**merged(described, ran), **went, **each.facts}
            results.append(part.finish(facts, {name: taken[name] for name in selection}))
    return results


def _up(layers: Layers, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """All forwards, and the gradients that enter the last layer; what is outside the layers leaves meanwhile."""
    opened, last = layers.opened, len(layers.modules) - 1
    while going := [part for part in parts if not part.is_turned]:
        start = min(part.up_from for part in going)

        def done(number: int, going: Sequence[Part] = going) -> None:
            for part in going:
                part.up_done(number)
                advance(part.num_tokens)
            if number == 0:
                opened.free(opened.outer)
            if number == last:
                opened.load(opened.outer)

        if start > 0:
            opened.free(opened.outer)
        lead = going[0].run.short_loss if start == 0 else None
        short_loss = layers.forward(
            [call for part in going for call in part.run.calls], keep=True, done=done, start=start, lead=lead
        )
        if start > last:
            opened.load(opened.outer)
        for part in going:
            part.turn(short_loss if part is going[0] else None)


def _after(layers: Layers, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """The squares of what comes after the layers; what is outside of them and not needed any more leaves."""
    for part in parts:
        if part.down_from == len(layers.modules):
            part.down_done(part.down_from, part.run.after(advance))
    outer = layers.opened.outer
    layers.opened.free([name for name in outer if name not in parts[0].run.outer.needed])


def _down(layers: Layers, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """The squares of every layer, from the last to the first with selected parameters."""
    lowest = parts[0].run.lowest
    for number in range(max(part.down_from for part in parts), lowest - 1, -1):
        following = number - 1 if number > lowest else -1
        with layers.on(number, following), weights_kept(layers.modules[number]):
            for part in parts:
                if part.down_from >= number:
                    part.down_done(number, part.run.down(number, advance))


def _before(layers: Layers, parts: Sequence[Part], advance: Callable[[int], object]) -> None:
    """The squares of what comes before the layers; it has its weights since the way up."""
    outer = parts[0].run.outer
    if outer.before:
        with layers.opened.loaded(outer.needed):
            for part in parts:
                if part.down_from >= -1:
                    part.down_done(-1, part.run.before(advance))


def _boundaries(
    boundary: str | os.PathLike[str], out: str | os.PathLike[str] | None, rank: int
) -> Boundaries:
    if boundary == "ram" or (boundary == "auto" and out is None):
        return Boundaries()
    if out is None:
        return Boundaries(boundary)
    store = Path(os.path.realpath(out))
    store.parent.mkdir(parents=True, exist_ok=True)
    name = f"{store.name}.hidden-states" + (f".rank-{rank}" if rank else "")
    return Boundaries(store.parent if boundary == "auto" else boundary, name)


def _linear_maps(layers: Layers) -> LinearMaps:
    """The decoder's linear maps; where the model has to be asked, it is with made-up weights."""
    with layers.made_up():
        return linear_maps(layers.model)


def _selection(layers: Layers, params: Params, maps: LinearMaps) -> dict[str, nn.Parameter]:
    """The selected parameters, each of them in one layer or outside of all."""
    selection = select_parameters(layers.model, params, maps.weights)
    if shared := _shared(layers, selection):
        name, other = next(iter(shared.items()))
        raise UnsupportedLayers(
            f"{name} and {len(shared) - 1} more of the selected parameters are used elsewhere too, as {other}. "
            "The square is of the sum of what a sample gives at all places, which a streamed Fisher never has in "
            "memory at once. Select others, or load the model whole."
        )
    return selection


def _shared(layers: Layers, selection: dict[str, nn.Parameter]) -> dict[str, str]:
    """Of every selected parameter that does not belong to one layer alone, another name."""
    home = [f"{name}." for name, _ in layers.opened.layers]
    names: dict[int, list[str]] = {}
    for name, parameter in layers.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for name, parameter in selection.items():
        layers_of = {next((n for n in home if other.startswith(n)), "") for other in names[id(parameter)]}
        if len(layers_of) > 1:
            found[name] = next(other for other in names[id(parameter)] if other != name)
    return found
