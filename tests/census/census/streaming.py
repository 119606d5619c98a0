"""One row of the streamed census: F layer by layer against F of the same model in memory.

The product's own streamed run, on a model whose weights are there all the time; that weights come and go is tested on
files, in `tests/models` and `tests/fisher`.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tomfisher
from census import configs, inputs
from census.checks import FISHER_NOISE, FISHER_TOLERANCE, PACKAGE, Row
from tomfisher.fisher.record import Asked
from tomfisher.fisher.streamed import SampleSet, stream_diagonals
from tomfisher.models.opened import decoder_layers

ASKED = Asked("decoder-linear", "empirical", "mean", "auto", "auto", 0, "ieee")
BITS, ROUNDING, REFUSED, WRONG = "the same bits", "within rounding", "refused", "wrong"
# every third architecture, and those whose layers share something or hand on more than one thing
STEP = 3
SUSPECTS = ("deepseek_v4", "dory", "gemma3n_text", "gemma4_text", "inkling2_loop_text", "zamba", "zamba2")


class Present:
    """A model in memory in the place of an opened one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = decoder_layers(model, "the model")
        self.traffic: dict[str, int] = {}
        inside = {id(p) for _, layer in self.layers for p in layer.parameters()}
        self.outer = [name for name, p in model.named_parameters() if id(p) not in inside]

    @contextmanager
    def loaded(self, names: Sequence[str]) -> Iterator[None]:
        """Nothing to do."""
        yield

    def load(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    def free(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    def prefetch(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    def identity(self) -> dict[str, Any]:
        """Nothing that is looked at."""
        return {}


def chosen() -> list[str]:
    """The architectures that CI looks at."""
    types = configs.model_types()
    return [name for number, name in enumerate(types) if number % STEP == 0 or name in SUSPECTS]


def streaming_row(model_type: str) -> Row:
    """What a streamed Fisher makes of an architecture, as JSON-ready values."""
    row: Row = {"type": model_type, "class": configs.class_name(model_type)}
    try:
        model = inputs.small_model(model_type)
    except inputs.NotBuilt as error:
        return row | {"built": False, "reason": str(error)}
    warnings.simplefilter("ignore")
    try:
        return row | {"built": True} | _compared(model)
    except Exception as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = isinstance(error, (ValueError, NotImplementedError)) and last.is_relative_to(PACKAGE)
        text = " ".join(str(error).split())
        if ours:
            return row | {"built": True, "verdict": REFUSED, "note": text}
        return row | {"built": True, "verdict": "crashed", "note": f"{type(error).__name__}: {text[:200]}"}


def _compared(model: nn.Module) -> Row:
    samples = inputs.samples()[2:]
    (streamed,) = stream_diagonals(Present(model), [SampleSet(samples)], ASKED, progress=False)
    resident = tomfisher.fisher_diagonal(model, samples, progress=False)
    if list(streamed) != list(resident):
        return {"verdict": WRONG, "note": "other parameters"}
    if other := [name for name in resident if streamed.methods[name] != resident.methods[name]]:
        return {"verdict": WRONG, "note": f"{other[0]}: {streamed.methods[other[0]]}"}
    largest = max(float(values.max()) for values in resident.values())
    differing, wrong = [], []
    for name, values in resident.items():
        if not torch.equal(streamed[name], values):
            error = float((streamed[name].double() - values.double()).abs().max())
            allowed = max(FISHER_TOLERANCE * float(values.max()), FISHER_NOISE * largest)
            (differing if error <= allowed else wrong).append(name)
    if wrong:
        return {"verdict": WRONG, "note": f"{len(wrong)} parameters, such as {wrong[0]}"}
    if not differing:
        return {"verdict": BITS, "note": ""}
    methods = sorted({resident.methods[name].partition(":")[0] for name in differing})
    return {"verdict": ROUNDING, "note": f"{' and '.join(methods)}"}
