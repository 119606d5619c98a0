"""How each parameter is made from stored tensors: transformers' own renaming and conversion, kept for later."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models.checkpoint import Checkpoint
from tomfisher.models.loading_report import first_of
from tomfisher.models.rewritten import Writes


@dataclass(frozen=True)
class Recipe:
    """Parameters that are made together, by one conversion of stored tensors.

    Args:
        first: the parameter by whose name transformers knows the conversion.
        sources: stored names in transformers' order, each with the conversion's pattern for it.
        dtype: what stored tensors are cast to before the conversion; None where it unpacks them.
        converter: transformers' conversion; None where the tensor is taken as it is.
    """

    first: str
    sources: tuple[tuple[str, str], ...]
    dtype: torch.dtype | None = None
    converter: Any = None

    @property
    def unpacks(self) -> bool:
        """Whether the conversion makes numbers of quantised weights, whose codes no cast may change."""
        return any(getattr(step, "hf_quantizer", None) for step in getattr(self.converter, "operations", ()))

    def make(self, checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
        """Read the stored tensors, cast and convert them: parameter name to value."""
        read = {name: checkpoint.read(name) for name, _ in self.sources}
        cast = read if self.dtype is None else {name: value.to(self.dtype) for name, value in read.items()}
        return self.converted(cast, model)

    def converted(self, stored: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
        """What the conversion makes of the stored tensors, which are dropped from `stored` as they are taken."""
        if self.converter is None:
            return {self.first: stored.pop(self.sources[0][0])}
        converter = copy.deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.first, name, pattern, _taker(stored.pop(name)))
        made = converter.convert(self.first, model=model, config=model.config, hf_quantizer=None)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass
class Plan:
    """What `from_pretrained` would have read.

    Args:
        checkpoint: the files.
        recipes: name of each parameter or buffer to how it is made; those made together share one recipe.
        dequantised: how the stored weights are quantised, where transformers makes numbers of them.
        rewritten: parameters that the model's own code writes to after a load.
    """

    checkpoint: Checkpoint
    recipes: dict[str, Recipe] = field(default_factory=dict)
    dequantised: str | None = None
    rewritten: set[str] = field(default_factory=set)


@contextlib.contextmanager
def headers_only() -> Iterator[list[Plan]]:
    """Inside the block, `from_pretrained` in this thread reads no weights: its parameters stay on the device meta.

    Everything else is as ever: config, class, dtypes, attention, tied weights, buffers that are computed, the report
    of what is missing. Only the step that reads the files is replaced, by one that runs it on tensors without values.

    Yields:
        A list that gets the plan of each `from_pretrained`.
    """
    from transformers import PreTrainedModel

    plans: list[Plan] = []
    writes = Writes()
    own = threading.get_ident()
    before = PreTrainedModel._load_pretrained_model

    def load(model: Any, state_dict: Any, files: Any, settings: Any, *rest: Any, **options: Any) -> Any:
        if threading.get_ident() != own:
            return before(model, state_dict, files, settings, *rest, **options)
        plan, report = _planned(model, files, settings)
        plans.append(plan)
        writes.watch(dict(model.named_parameters()))
        plan.rewritten = writes.names
        return report, None

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        with writes:
            yield plans
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(before)


def _planned(model: Any, files: list[str] | None, settings: Any) -> tuple[Plan, Any]:
    from transformers.core_model_loading import convert_and_load_state_dict_in_model

    method = _dequantised(settings.hf_quantizer)
    if pickles := [file for file in files or [] if not file.endswith(".safetensors")]:
        raise ValueError(
            f"its weights are in {first_of([Path(file).name for file in pickles])}, which can only be read as a whole. "
            "Convert it to safetensors first: load it once and call save_pretrained."
        )
    index = (settings.sharded_metadata or {}).get("weight_map")
    checkpoint = Checkpoint(files or [], index)
    recipes = _recipes(model, checkpoint, settings.weight_mapping or [])
    stored = {name: _Unread(span.shape, span.dtype) for name, span in checkpoint.spans.items()}
    on_meta = dataclasses.replace(settings, device_map={"": "meta"})
    report, _ = convert_and_load_state_dict_in_model(model, stored, on_meta)
    # what is computed rather than read is computed on the CPU, parameters that no file holds are not made up
    places = {"": "cpu"} | {name: "meta" for name, _ in model.named_parameters()}
    object.__setattr__(settings, "device_map", places)  # frozen, and the caller's own for its next step
    plan = Plan(checkpoint, dequantised=method)
    if report.conversion_errors:  # from_pretrained raises them
        return plan, report
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for recipe in recipes:
        known = dataclasses.replace(recipe, dtype=None if recipe.unpacks else dtypes[recipe.first])
        empty = {name: stored[name].to(dtype=known.dtype) for name, _ in known.sources}
        plan.recipes |= {name: known for name in known.converted(empty, model) if name in dtypes}
    return plan, report


def _dequantised(quantizer: Any) -> str | None:
    """The method of quantised weights that are dequantised as they are read; None where they are plain numbers.

    Raises:
        ValueError: transformers keeps them packed.
    """
    if quantizer is None:
        return None
    settings = quantizer.quantization_config
    method = str(getattr(settings.quant_method, "value", settings.quant_method))
    if not (quantizer.pre_quantized and getattr(settings, "dequantize", False)):
        raise ValueError(
            f"its weights are quantised ({method}), and transformers keeps them packed here. Save a dequantised copy, "
            "with model.dequantize() and save_pretrained, or use the model's unquantised weights."
        )
    return method


def _recipes(model: Any, checkpoint: Checkpoint, mapping: list[Any]) -> list[Recipe]:
    """Stored tensors by the parameter whose name transformers gives them."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    by_pattern = {pattern: step for step in converters for pattern in step.source_patterns}
    own, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(checkpoint.spans, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, pattern = rename_source_key(name, [], [], prefix, own)
        if target in own:
            sources.setdefault(target, []).append((name, pattern or ""))
    return [
        Recipe(target, tuple(parts), converter=by_pattern.get(parts[0][1]))
        for target, parts in sources.items()
    ]


class _Unread:
    """A stored tensor as transformers asks for it, which stays on the device meta wherever it is sent."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, key: Any) -> _Unread:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def _taker(value: Tensor) -> Any:
    """A call that gives the tensor once and keeps nothing, as conversions take what is read when it is needed."""
    held = [value]
    return held.pop
