"""The analysis at the end of a study: the model as it is and under its masks, into `analysis.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher.progress import progress_bar
from tomfisher.results.analysis import PARTS, means
from tomfisher.results.row import CONTROL_ONLY, RANDOM, TASK_CONTROL
from tomfisher.studies.config import Config
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.prompts import prompt_ids
from tomfisher.text_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.analysis import Analysis, MaskProfile
    from tomfisher.masks import SparseMask
    from tomfisher.models.load import LoadedModel

FORMAT = 2
MASKS = (TASK_CONTROL, CONTROL_ONLY)
MAP_HEADS = 2
MAP_TOKENS = 64
DIGITS = 5
MAP_DECIMALS = 4
DERIVED = ("norm_before_rotation", "energy")
FIXED = ("frequencies", "band", "attention_factor")
NAMELESS = {
    "heads": ("level", "rows", "population", "special"),
    "layers": ("level", "head", "pairs"),
}


def random_seeds(config: Config, kappa: float) -> list[int]:
    """The seeds of the random masks to analyse: the first ones of the study's at this κ, at least one.

    Args:
        config: the study; `analysis_random_masks` is how many at most.
        kappa: of the masks.
    """
    with_randoms = config.random_kappas is None or kappa in config.random_kappas
    there = config.random_seeds if with_randoms else 0
    return [config.seed + i for i in range(max(1, min(config.analysis_random_masks, there)))]


def inputs_of(
    config: Config, kappa: float, masks: Mapping[str, SparseMask], randoms: Mapping[int, SparseMask]
) -> dict[str, Any]:
    """What an analysis depends on besides the run folder's settings: equal values mean that it need not be redone."""
    return {
        "format": FORMAT,
        "kappa": kappa,
        "analysis_prompts": config.analysis_prompts,
        "random_seeds": list(randoms),
        "masks": {which: mask.sha256 for which, mask in masks.items()},
    }


def is_current(file: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether a file holds an analysis of these inputs; a damaged or foreign one does not."""
    try:
        return bool(read_json(file)["inputs"] == inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prompts_of(config: Config, inputs: Inputs, loaded: LoadedModel) -> list[Tensor]:
    """Token ids of the questions that the analysis reads, cut to what the model has positions for."""
    texts = [story.prompt for story in inputs.questions[: config.analysis_prompts]]
    return prompt_ids(loaded, texts, **config.wording())


def shown_in_maps(prompts: Sequence[Tensor]) -> Tensor:
    """The part of the first prompt whose attention is drawn."""
    return prompts[0][:MAP_TOKENS]


class StudyAnalysis:
    """Analyses one model as it is and in the perturbed states of a study.

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
        self._prompts = prompts_of(config, inputs, loaded)

    def __call__(
        self, kappa: float, masks: Mapping[str, SparseMask], randoms: Mapping[int, SparseMask]
    ) -> dict[str, Any]:
        """Analyse every state.

        Args:
            kappa: of the masks.
            masks: "task-control" and "control-only".
            randoms: random masks by seed, at least one; the first of them is the state "random". Of each there is
                a row of means in `randoms`, and of all the least and the most in `random_range`.

        Returns:
            The content of `analysis.json`, JSON-ready: numbers with five significant digits.
        """
        start = time.perf_counter()
        first = next(iter(randoms.values()))
        baseline = self._analyze()
        before = _compact(baseline.to_dict())
        states, maps = self._states(baseline, masks, randoms)
        rows = [
            {"seed": seed, "nnz": mask.nnz, **means(before, states.pop(_of_seed(seed)))}
            for seed, mask in randoms.items()
        ]
        profile, random = (
            self._profile(mask, baseline, ranks)
            for mask, ranks in ((masks[TASK_CONTROL], True), (first, False))
        )
        measured = {
            "prompts": len(self._prompts),
            "tokens": sum(map(len, self._prompts)),
            "baseline": before,
            "states": states,
            "randoms": rows,
            "random_range": _ranges([{part: row[part] for part in PARTS if part in row} for row in rows]),
            "profile": _slim(profile.to_dict()),
            "profile_random": _outline(random.to_dict()),
            "maps": maps,
            "unavailable": {**profile.unavailable, **baseline.unavailable},
        }
        return {
            "kappa": kappa,
            "inputs": inputs_of(self.config, kappa, masks, randoms),
            **rounded(measured),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def _states(
        self, baseline: Analysis, masks: Mapping[str, SparseMask], randoms: Mapping[int, SparseMask]
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Every perturbed state, and the maps of the heads that the task-control mask changes most.

        "random" is the state of the first random mask, which is also there under its seed like the others.
        """
        states: dict[str, Any] = {}
        heads: list[tuple[int, int]] = []
        maps: dict[str, dict[tuple[int, int], Tensor]] = {}
        every = {which: masks[which] for which in MASKS}
        every |= {_of_seed(seed): mask for seed, mask in randoms.items()}
        for which in progress_bar(list(every), desc="analysis", unit="state", enabled=self._progress):
            with self._perturbing(every[which]):
                after = self._analyze()
                states[which] = self._state(baseline, after, every[which])
                if which == TASK_CONTROL:
                    heads = _most_changed(baseline, after)
                    maps[which] = self._maps(heads)
        maps["baseline"] = self._maps(heads)
        states[RANDOM] = states[_of_seed(next(iter(randoms)))]
        return states, self._named_maps(heads, maps)

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
        prompt = shown_in_maps(self._prompts)
        sinks = attention_sinks(self.loaded.model, [prompt], heads=heads, progress=False)
        return {head: maps[0].round(decimals=MAP_DECIMALS) for head, maps in sinks.maps.items()}

    def _named_maps(
        self, heads: Iterable[tuple[int, int]], maps: Mapping[str, Mapping[tuple[int, int], Tensor]]
    ) -> dict[str, Any]:
        from tomfisher.analysis.jsonable import jsonable

        tokens = [self.loaded.tokenizer.decode([i]) for i in shown_in_maps(self._prompts).tolist()]
        return {
            f"{layer}.{head}": {
                state: jsonable(states[layer, head].round(decimals=MAP_DECIMALS))
                for state, states in maps.items()
            }
            | {"tokens": tokens}
            for layer, head in heads
        }


def _ranges(rows: Sequence[Any]) -> Any:
    """Least and most of equal places of nested dicts; None where no row knows a value."""
    if isinstance(rows[0], dict):
        return {name: _ranges([row[name] for row in rows if name in row]) for name in rows[0]}
    known = [value for value in rows if value is not None]
    return [min(known), max(known)] if known else None


def _of_seed(seed: int) -> str:
    return f"{RANDOM}-seed{seed}"


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
