"""`analyze_model`: what happens inside a model, as it is and under a mask, and where the mask lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tomfisher.analysis.analyze import PARTS, Analysis, analyze, check_request
from tomfisher.analysis.change import SinkChange, SpectrumChange, compare
from tomfisher.analysis.interaction import Interaction, interaction
from tomfisher.analysis.jsonable import jsonable
from tomfisher.analysis.profile import MaskProfile, mask_profile
from tomfisher.models.load import LoadedModel
from tomfisher.near_miss import unknown
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.scan import scan_of

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.perturbation import Perturbation
    from tomfisher.perturbation.fill import FillLike
    from tomfisher.sample import Sample

PROFILE, INTERACTION = "profile", "interaction"


@dataclass(frozen=True)
class ModelAnalysis:
    """What was found in one model.

    Attributes:
        model: its identity.
        scan: how state-space layers ran.
        mask: the file of the mask, or None.
        parts: what was asked for, without the profile.
        baseline: the model as it is.
        masked: the model under the mask, if there is one and a part was asked for.
        change: of every part that both have.
        profile: where the mask lies, if that was asked for.
        interaction: how far its weights act together, if that was asked for.
    """

    model: dict[str, Any]
    scan: str | None
    mask: str | None
    parts: tuple[str, ...]
    baseline: Analysis
    masked: Analysis | None
    change: dict[str, SpectrumChange | SinkChange]
    profile: MaskProfile | None
    interaction: Interaction | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; states and profile that there are not are left out."""
        found = {"model": self.model, "scan": self.scan, "mask": self.mask}
        found["baseline"] = self.baseline.to_dict()
        if self.masked is not None:
            found["masked"] = self.masked.to_dict()
            found["change"] = {part: change.to_dict() for part, change in self.change.items()}
        if self.profile is not None:
            found[PROFILE] = self.profile.to_dict()
        if self.interaction is not None:
            found[INTERACTION] = jsonable(self.interaction.to_dict())
        return found


def analyze_model(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int] | Tensor],
    parts: Sequence[str],
    heads: Sequence[tuple[int, int]] = (),
    perturbation: Perturbation | None = None,
    mask_file: str | os.PathLike[str] | None = None,
    fill: FillLike = "mean",
    seed: int = 0,
    compat: str | None = None,
    samples: Sequence[Sample] = (),
) -> ModelAnalysis:
    """Analyse a model and, with a perturbation, analyse it again while that is applied.

    Args:
        loaded: the model.
        prompts: token ids, at least two each.
        parts: as `chosen_parts` gives them.
        heads: (layer, head) whose whole attention map of the first prompt is wanted.
        perturbation: of the model, not applied yet.
        mask_file: what its mask was read from, to record.
        fill: of the perturbation, for the profile.
        seed: likewise.
        compat: likewise.
        samples: for the interaction: what the loss is of.
    """
    measured = tuple(part for part in parts if part not in (PROFILE, INTERACTION))
    needed = dict.fromkeys([*measured, "rope"] if PROFILE in parts else measured)
    masked = None
    with remembered():
        baseline = analyze(loaded.model, prompts, list(needed), heads) if needed else Analysis({}, {})
        if perturbation is not None and measured:
            with perturbation:
                masked = analyze(loaded.model, prompts, measured, heads)
    profile = None
    if PROFILE in parts and perturbation is not None:
        spectrum = baseline.results.get("rope")
        profile = mask_profile(perturbation.mask, loaded.model, spectrum, fill=fill, seed=seed, compat=compat)
    together = None
    if INTERACTION in parts and perturbation is not None:
        together = interaction(loaded.model, samples, perturbation.mask, fill, seed, compat)
    return ModelAnalysis(
        loaded.identity,
        scan_of(loaded.model),
        None if mask_file is None else os.fspath(mask_file),
        measured,
        baseline,
        masked,
        _changes(baseline, masked),
        profile,
        together,
    )


def _changes(baseline: Analysis, masked: Analysis | None) -> dict[str, SpectrumChange | SinkChange]:
    found = {} if masked is None else masked.results
    return {part: compare(baseline.results[part], after) for part, after in found.items()}


def chosen_parts(
    asked: Sequence[str] | None, with_mask: bool, heads: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """The parts that were asked for, or all that there can be.

    Args:
        asked: of "rope", "sinks", "profile" and "interaction"; None asks for all but the last, which takes a pass with
            gradients.
        with_mask: whether there is a mask, which the last two are of.
        heads: (layer, head) whose maps are wanted.

    Raises:
        ValueError: no part, an unknown one, or one without what it needs.
    """
    known = [*PARTS, PROFILE, INTERACTION]
    parts = [*PARTS, *([PROFILE] if with_mask else [])] if asked is None else list(asked)
    if not parts:
        raise ValueError(f"No part to analyse. Parts: {', '.join(known)}.")
    for part in parts:
        if part not in known:
            raise ValueError(unknown("part", part, known))
    for part, says in (
        (PROFILE, "where a mask lies"),
        (INTERACTION, "how far a mask's weights act together"),
    ):
        if part in parts and not with_mask:
            raise ValueError(f"The part {part} says {says}. Give its file: --mask FILE.")
    check_request([part for part in parts if part in PARTS] or ["rope"], heads)
    return parts
