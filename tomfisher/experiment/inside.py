"""What happened inside the model: the analysis at the end of a study, and its file `analysis.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.experiment.config import Config, parse_fill
from tomfisher.experiment.inputs import Inputs
from tomfisher.experiment.results import CONTROL_ONLY, RANDOM, TASK_CONTROL, Results
from tomfisher.experiment.verdict import judge
from tomfisher.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.analysis import Analysis, MaskProfile
    from tomfisher.masks import SparseMask
    from tomfisher.models.load import LoadedModel

FILE = "analysis.json"
STATES = (TASK_CONTROL, CONTROL_ONLY, RANDOM)
MAP_HEADS = 2
MAP_TOKENS = 64
DIGITS = 5
MAP_DECIMALS = 4
DERIVED = ("norm_before_rotation", "energy")
FIXED = ("frequencies", "band", "attention_factor")
NAMELESS = {
    "heads": ("level", "rows", "population", "special", "p_pairs"),
    "layers": ("level", "head", "pairs"),
}


def chosen_kappa(results: Results) -> float:
    """The κ to look at: the verdict's, or without one that of the fall with the lowest p (ties: the largest κ).

    Where the headline accuracy falls at no κ, it is the largest.

    Args:
        results: a whole study.
    """
    kappa = judge(results).kappa
    if kappa is not None:
        return kappa
    headline = results.baseline.headline()
    points = [point for k in results.kappas for point in results.at(k, TASK_CONTROL)]
    falls = [p for p in points if p.accuracy(headline) < results.baseline.accuracy(headline)]
    if not falls:
        return results.kappas[-1]
    return min(falls, key=lambda p: (p.conditions[headline]["p_vs_baseline"], -p.kappa)).kappa


def inputs_of(config: Config, kappa: float, masks: Mapping[str, SparseMask]) -> dict[str, Any]:
    """What an analysis depends on beside the run folder's settings: equal values mean that it need not be redone."""
    return {
        "kappa": kappa,
        "analysis_prompts": config.analysis_prompts,
        "random_seed": config.seed,
        "masks": {which: mask.sha256 for which, mask in masks.items()},
    }


def is_current(file: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether a file holds an analysis of these inputs; a damaged or foreign one does not."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Inside:
    """Looks at one model as it is and in the perturbed states of a study.

    Args:
        config: the study.
        inputs: its texts.
        loaded: its model, unperturbed, and tokenizer.
        perturbing: gives the context manager that writes a mask into the model and takes it out again.
        progress: show a bar on a terminal.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        loaded: LoadedModel,
        perturbing: Callable[[SparseMask], AbstractContextManager[Any]],
        progress: bool = True,
    ) -> None:
        self.config = config
        self.loaded = loaded
        self._perturbing = perturbing
        self._progress = progress
        self._prompts = self._encode(inputs)

    def __call__(self, kappa: float, masks: Mapping[str, SparseMask]) -> dict[str, Any]:
        """Analyse every state.

        Args:
            kappa: of the masks.
            masks: "task-control", "control-only" and "random".

        Returns:
            The content of `analysis.json`, JSON-ready: numbers with five significant digits.
        """
        start = time.perf_counter()
        baseline = self._analyze()
        states, maps = self._states(baseline, masks)
        profile, random = (
            self._profile(masks[which], baseline, which == TASK_CONTROL) for which in (TASK_CONTROL, RANDOM)
        )
        found = {
            "prompts": len(self._prompts),
            "tokens": sum(map(len, self._prompts)),
            "baseline": _compact(baseline.to_dict()),
            "states": states,
            "profile": _slim(profile.to_dict()),
            "profile_random": _outline(random.to_dict()),
            "maps": maps,
            "unavailable": {**profile.unavailable, **baseline.unavailable},
        }
        return {
            "kappa": kappa,
            "inputs": inputs_of(self.config, kappa, masks),
            **rounded(found),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def _states(
        self, baseline: Analysis, masks: Mapping[str, SparseMask]
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Every perturbed state, and the maps of the heads that the task-control mask changes most."""
        states: dict[str, Any] = {}
        heads: list[tuple[int, int]] = []
        maps: dict[str, dict[tuple[int, int], Tensor]] = {}
        for which in progress_bar(STATES, desc="inside", unit="state", enabled=self._progress):
            with self._perturbing(masks[which]):
                after = self._analyze()
                states[which] = self._state(baseline, after, masks[which])
                if which == TASK_CONTROL:
                    heads = _most_changed(baseline, after)
                    maps[which] = self._maps(heads)
        maps["baseline"] = self._maps(heads)
        return states, self._named_maps(heads, maps)

    def _encode(self, inputs: Inputs) -> list[Tensor]:
        from tomfisher.models.structure import position_limit
        from tomfisher.tasks.encode import encode

        texts = [story.prompt for story in inputs.questions[: self.config.analysis_prompts]]
        length = position_limit(self.loaded.model)
        samples = encode(self.loaded.tokenizer, texts, supervise="all", max_length=length)
        return [sample.input_ids for sample in samples]

    def _analyze(self) -> Analysis:
        """Both parts; prompts that cannot be used are a reason like a model that lacks the part."""
        from tomfisher.analysis.analyze import PARTS, Analysis, analyze

        try:
            return analyze(self.loaded.model, self._prompts, progress=False)
        except ValueError as error:
            return Analysis({}, dict.fromkeys(PARTS, str(error)))

    def _state(self, before: Analysis, after: Analysis, mask: SparseMask) -> dict[str, Any]:
        from tomfisher.analysis.change import compare

        change = {
            part: _compact_change(compare(result, after.results[part]).to_dict())
            for part, result in before.results.items()
            if part in after.results
        }
        return {"nnz": mask.nnz, **_compact(after.to_dict(), FIXED), "change": change}

    def _profile(self, mask: SparseMask, baseline: Analysis, ranks: bool) -> MaskProfile:
        from tomfisher.analysis.profile import mask_profile

        config = self.config
        return mask_profile(
            mask,
            self.loaded.model,
            spectrum=baseline.results.get("rope"),
            fill=parse_fill(config.fill) if ranks else None,
            seed=config.seed,
            compat=config.compat,
        )

    def _maps(self, heads: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """Attention maps of the first prompt's first tokens, for the model as it is."""
        from tomfisher.analysis.sinks import attention_sinks

        if not heads:
            return {}
        prompt = self._prompts[0][:MAP_TOKENS]
        found = attention_sinks(self.loaded.model, [prompt], heads=heads, progress=False)
        return {head: maps[0].round(decimals=MAP_DECIMALS) for head, maps in found.maps.items()}

    def _named_maps(
        self, heads: Iterable[tuple[int, int]], maps: Mapping[str, Mapping[tuple[int, int], Tensor]]
    ) -> dict[str, Any]:
        from tomfisher.analysis.plain import plain

        tokens = [self.loaded.tokenizer.decode([i]) for i in self._prompts[0][:MAP_TOKENS].tolist()]
        return {
            f"{layer}.{head}": {
                state: plain(found[layer, head].round(decimals=MAP_DECIMALS)) for state, found in maps.items()
            }
            | {"tokens": tokens}
            for layer, head in heads
        }


def rounded(value: Any) -> Any:
    """Nested dicts and lists with every float cut to five significant digits, which halves the file."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _most_changed(before: Analysis, after: Analysis) -> list[tuple[int, int]]:
    """The heads whose attention to the first token changed most, the first of them first."""
    from tomfisher.analysis.change import compare

    if "sinks" not in before.results or "sinks" not in after.results:
        return []
    changes = compare(before.results["sinks"], after.results["sinks"]).largest(MAP_HEADS)
    return [(change.layer, change.head) for change in changes]


def _compact(analysis: dict[str, Any], fixed: Iterable[str] = ()) -> dict[str, Any]:
    """An analysis without what follows from the rest, nor what no perturbation changes ("fixed")."""
    if "rope" in analysis:
        layers = [_without(layer, fixed) for layer in analysis["rope"]["layers"]]
        for layer in layers:
            layer |= {part: _without(layer[part], DERIVED) for part in ("q", "k")}
        analysis["rope"] = {**analysis["rope"], "layers": layers}
    if "sinks" in analysis:
        analysis["sinks"] = _first_rates(_without(analysis["sinks"], ("maps",)))
    return analysis


def _compact_change(change: dict[str, Any]) -> dict[str, Any]:
    """A change without what follows from the norms of both states."""
    if "layers" in change:
        return _first_rates(change)
    return change | {part: [_without(layer, ("norm",)) for layer in change[part]] for part in ("q", "k")}


def _first_rates(sinks: dict[str, Any]) -> dict[str, Any]:
    """Sinks with the rate of the first token only, `[H, 1]`."""
    layers = [
        {**layer, "sink_rate": [rates[:1] for rates in layer["sink_rate"]]} for layer in sinks["layers"]
    ]
    return {**sinks, "layers": layers}


def _slim(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile whose tests do not repeat their level; matrices without the random ones, means of which are there."""
    tests = profile["enrichment"]
    if tests is not None:
        less = {level: [_without(test, names) for test in tests[level]] for level, names in NAMELESS.items()}
        profile = {**profile, "enrichment": {**tests, **less}}
    return {**profile, "matrices": [_without(matrix, ("random",)) for matrix in profile["matrices"]]}


def _outline(profile: dict[str, Any]) -> dict[str, Any]:
    """The counts of a profile, and its tests at the level of the model."""
    tests = profile["enrichment"]
    less = None if tests is None else {**tests, **{level: [] for level in NAMELESS}}
    return {**_without(profile, ("matrices", "sparsity", "unavailable")), "enrichment": less}


def _without(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
