"""`Experiment`: Fisher, masks, sweep and controls, from one config into one run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tomfisher import provenance
from tomfisher.evaluate.statistics import TEST
from tomfisher.models.load import (
    LoadedModel,
    dtype_name,
    fast_cpu_bf16,
    resolve_device,
    resolve_dtype,
)
from tomfisher.progress import note, progress_bar
from tomfisher.results.analysis import FILE as ANALYSIS
from tomfisher.results.analysis import chosen_kappa
from tomfisher.results.folder import CRITERIA, RunFolder
from tomfisher.results.interaction import FILE as INTERACTION
from tomfisher.results.power import too_few
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, TASK_CONTROL
from tomfisher.results.verdict import judge
from tomfisher.runtime import ranks
from tomfisher.runtime.rules import check_run, remembered
from tomfisher.runtime.scan import scan_of
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.studies import analysis, fisher_values, interaction
from tomfisher.studies.auto_stream import decided
from tomfisher.studies.claim import claimed, way_of_study
from tomfisher.studies.config import Config
from tomfisher.studies.diagonals import Diagonals
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.materials import Materials
from tomfisher.studies.measure import Measure, measured_of, perplexity_window, told_of
from tomfisher.studies.named_model import named_model
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.points import PlannedPoint, noun_of, planned_points, tested
from tomfisher.studies.saved_points import collected, save_point
from tomfisher.studies.stores import check_belongs, check_weights
from tomfisher.studies.study_masks import StudyMasks
from tomfisher.studies.task_texts import read_samples

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.fisher import FisherDiagonal
    from tomfisher.masks import SparseMask
    from tomfisher.perturbation import Perturbation, WeightSums

_KNOWN_WHEN_READ = ("weights_sha256", "content_sha256")  # of a streamed model's identity
_PLACES = ("output_path", "boundary", "max_memory")  # settings that say where something lies, or may


class Experiment:
    """The whole study of one config: every step is kept in the run folder and never done twice.

    Args:
        config: the settings, or a mapping of those that differ from the defaults.
        overwrite: delete an earlier study in the same folder first.
        say: called with one line per step; None prints to standard error when `run(progress=True)`.

    Example::

        results = tomfisher.Experiment({"model": "testbed-llama", "task": "testbed", "control": "testbed"}).run()
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any],
        overwrite: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config if isinstance(config, Config) else Config.from_dict(config)
        self.overwrite = overwrite
        config = self.config
        self.inputs = Inputs(config)
        self.device = resolve_device("cpu" if config.is_streamed else config.device)
        self.fisher_dtype = resolve_dtype(config.fisher_dtype, torch.device("cpu"))
        self.eval_dtype = eval_dtype(config.eval_dtype, self.device)
        self._say = say
        self._progress = True
        self._loaded: LoadedModel | None = None
        self._sums: WeightSums | None = None
        self._prepared: Measure | None = None

    @plain_torch()
    @remembered()
    def run(self, progress: bool = True) -> Results:
        """Do what is left to do and write `results.json`, `results.csv`, `verdict.txt` and the details.

        The details are `fisher-values.json`, unless `analysis_prompts` is 0 `analysis.json`, and with `interaction`
        `interaction.json`.

        In an initialised process group of `torch.distributed` every rank makes this call. Fisher diagonals, questions
        and text are shared out; the first rank writes the folder, which all have to see, and analyses alone.
        A study may be resumed by another number of ranks: answers and perplexities do not depend on it, and a store
        that is still to be taken does by rounding. Each store records its ranks.

        Args:
            progress: show bars on a terminal, and say each step.

        Returns:
            The results, also those of points that were measured earlier.

        Raises:
            ValueError: the run folder holds another study, an input is unusable, or a store is damaged.
            RankError: another rank has ended.
        """
        team = ranks.current()
        self._progress = progress and team.is_first
        with team.call("run"), claimed(self._decided(), self.overwrite) as folder:
            diagonals, masks = self._open(folder)
            if not folder.pinned():
                folder.pin(**self._circumstances())
            self._say_what_changed(folder)
            team.agree("the study's texts and dtypes", {**self.inputs.hashes(), **self._resolved()})
            folder.pin(data=self.inputs.hashes(), resolved=self._resolved())
            plans = planned_points(self.config)
            left = team.first(
                "what is left", lambda: [p.key for p in plans if folder.load_point(p.key) is None]
            )
            pending = [plan for plan in plans if plan.key in left]
            if pending:
                clusters, count = self.inputs.headline_clusters(), tested(self.config)
                if lacking := too_few(clusters, count, noun_of(self.config)):
                    self.say(lacking)
                self._measure(folder, pending, diagonals, masks)
            found: list[Results] = []
            told = team.first("the results", lambda: self._finish(folder, found, diagonals, masks))
            self._loaded = self._prepared = None
        return found[0] if found else Results.from_dict(told)

    def _decided(self) -> Config:
        """The config, streamed where "auto" has to; a study that was begun goes on as it was."""
        begun = None if self.overwrite else way_of_study(self.config.output_path)
        if begun is not None and self.config.stream == "auto":
            self.config = dataclasses.replace(self.config, stream=begun)
        else:
            taken = None in (self.config.task_store, self.config.control_store)
            self.config, why = decided(self.config, None if taken else self.eval_dtype)
            if why:
                self.say(why)
        self.device = torch.device("cpu") if self.config.is_streamed else self.device
        return self.config

    def _open(self, folder: RunFolder) -> tuple[Diagonals, StudyMasks]:
        """What gives the folder's Fisher diagonals and masks, each when it is first asked for."""
        model = partial(self._model, folder, "fisher", self.fisher_dtype)
        diagonals = Diagonals(self.config, self.inputs, folder, model, self.say, self._progress)

        def materials() -> Materials:
            samples = partial(read_samples, self.inputs, folder, self.say)
            return Materials(self.config, diagonals(), model, samples, folder.path / CRITERIA, self.say)

        return diagonals, StudyMasks(self.config, folder, materials, self.say)

    def _finish(
        self, folder: RunFolder, found: list[Results], diagonals: Diagonals, masks: StudyMasks
    ) -> dict[str, Any]:
        """Write the results and what describes them; they go into `found`, and come back as JSON."""
        results = collected(folder, planned_points(self.config), self._provenance(folder))
        results.save(folder.path)
        folder.write_text("verdict.txt", f"{judge(results)}\n")
        self._describe_values(folder, diagonals, masks)
        if self.config.analysis_prompts and self.config.is_streamed:
            self.say("no analysis: it looks into the layers, which needs the whole model in memory")
        elif self.config.analysis_prompts:
            self._analyze(folder, results, masks)
        if self.config.interaction:
            self._interact(folder, masks)
        found.append(results)
        return results.to_dict()

    def _measurement(self, loaded: LoadedModel) -> Measure:
        """The measurement of this model, which is asked about its questions and the analysis' prompts at once."""
        from tomfisher.analysis.collect import TOKENS_PER_BATCH

        if self._prepared is None or self._prepared.loaded is not loaded:
            self._prepared = Measure(self.config, self.inputs, loaded)
            choice, resident = self._prepared.choice, loaded.opened is None
            if choice is not None and self.config.analysis_prompts and resident:
                choice.check_fit(loaded.model)
                prompts = analysis.prompts_of(self.config, self.inputs, loaded)
                texts: list[Sequence[int] | Tensor] = [
                    *choice.sequences,
                    *prompts,
                    analysis.shown_in_maps(prompts),
                ]
                tokens = max(TOKENS_PER_BATCH, choice.batch_size * max(map(len, texts)))
                check_run(loaded.model, texts, tokens=tokens)
        return self._prepared

    def _measure(
        self, folder: RunFolder, pending: list[PlannedPoint], diagonals: Diagonals, masks: StudyMasks
    ) -> None:
        from tomfisher.perturbation import WeightSums

        masked = [plan for plan in pending if plan.mask != BASELINE]
        masks.rank([plan.rule.criterion for plan in masked])
        stores = diagonals() if masked else {}
        loaded = self._model(folder, "evaluation", self.eval_dtype)
        for which, F in stores.items():
            check_belongs(F.shapes, loaded.model, f"The {which} store")
        _check_weights(stores, loaded.identity)
        measure = self._measurement(loaded)
        self._sums = WeightSums()
        self.say(f"measuring {len(pending)} points, {measure.describe()}")
        if loaded.opened is not None:
            self._measure_streamed(folder, measure, pending, stores, masks)
            return
        for plan in progress_bar(pending, desc="points", unit="point", enabled=self._progress):
            with self._perturbed(folder, loaded.model, masks.saved(plan)) as nnz:
                scores, perplexity = measure()
            save_point(folder, plan, nnz, measure.rules, scores, perplexity)

    def _measure_streamed(
        self,
        folder: RunFolder,
        measure: Measure,
        pending: list[PlannedPoint],
        stores: Mapping[str, FisherDiagonal],
        masks: StudyMasks,
    ) -> None:
        """All points in one reading of the weights, or each rank's share of them in one of its own."""
        from tomfisher.perturbation import State

        config, fill = self.config, parse_fill(self.config.fill)
        states = [State(masks.saved(plan), fill, config.seed, config.compat) for plan in pending]
        team = ranks.current()
        own = team.share([1] * len(states))
        found = measure.in_states([states[i] for i in own]) if own else []
        identity = measure.loaded.identity_now()
        if own:
            _check_weights(stores, identity)
        folder.pin(read_weights={key: identity[key] for key in _KNOWN_WHEN_READ})
        told = team.merged("the points", len(states), dict(zip(own, map(told_of, found), strict=True)))
        for plan, each in zip(pending, map(measured_of, told), strict=True):
            if each.implementations:
                folder.pin(fill_implementations=each.implementations)
            save_point(folder, plan, each.nnz, measure.rules, *each.results)

    def _describe_values(self, folder: RunFolder, diagonals: Diagonals, masks: StudyMasks) -> None:
        """Write `fisher-values.json` where it is missing, if the stores are still there."""
        if fisher_values.is_whole(folder.path / fisher_values.FILE):
            return
        if all(store.is_dir() for store in diagonals.paths().values()):
            masks.describe()
        else:
            self.say(f"no {fisher_values.FILE}: a Fisher store is gone")

    def _analyze(self, folder: RunFolder, results: Results, study_masks: StudyMasks) -> None:
        """Write `analysis.json`, unless it is there and of the same masks and prompts."""
        kappa = chosen_kappa(results)
        masks = {
            which: study_masks.kept(PlannedPoint(which, kappa)) for which in (TASK_CONTROL, CONTROL_ONLY)
        }
        seeds = analysis.random_seeds(self.config, kappa)
        randoms = {seed: masks[TASK_CONTROL].random_like(seed) for seed in seeds}
        inputs = analysis.inputs_of(self.config, kappa, masks, randoms)
        if analysis.is_current(folder.path / ANALYSIS, inputs):
            return
        loaded = self._model(folder, "evaluation", self.eval_dtype)
        self._measurement(loaded)
        states = 1 + len(masks) + len(randoms)
        self.say(f"analysis at kappa {kappa:g}: {self.config.analysis_prompts} prompts in {states} states")
        perturbing = partial(self._perturb, loaded.model)
        analyze = analysis.StudyAnalysis(self.config, self.inputs, loaded, perturbing, self._progress)
        measured = analyze(kappa, masks, randoms)
        for part, reason in measured["unavailable"].items():
            self.say(f"no {part}: {reason}")
        _write_compact(folder, ANALYSIS, measured)

    def _interact(self, folder: RunFolder, study_masks: StudyMasks) -> None:
        """Write `interaction.json`, unless it is there and of the same masks."""
        plans = interaction.plans_of(self.config)
        masks = {plan.key: study_masks.kept(plan) for plan in plans if plan.seed is None}
        for plan in plans:
            if plan.seed is not None:
                own = dataclasses.replace(plan, mask=TASK_CONTROL, seed=None)
                masks[plan.key] = masks[own.key].random_like(plan.seed)
        if interaction.is_current(folder.path / INTERACTION, interaction.inputs_of(self.config, masks)):
            return
        loaded = self._model(folder, "fisher", self.fisher_dtype)
        samples = read_samples(self.inputs, folder, self.say, "task", loaded)
        self.say(f"interaction of the weights of {len(masks)} masks, on {len(samples)} task samples")
        found = interaction.measure(self.config, loaded, samples, plans, masks, self._progress)
        _write_compact(folder, INTERACTION, found)

    @contextlib.contextmanager
    def _perturbed(self, folder: RunFolder, model: Any, mask: SparseMask | None) -> Iterator[int]:
        """The model with a mask written into it, for the time of the block; yields the count."""
        if mask is None:
            yield 0
            return
        with self._perturb(model, mask) as perturbation:
            if perturbation.implementations:  # an empty mask runs nothing
                folder.pin(fill_implementations=perturbation.implementations)
            yield perturbation.nnz

    def _perturb(self, model: Any, mask: SparseMask) -> Perturbation:
        """The mask ready to be written into the model, with the study's fill."""
        from tomfisher.perturbation import perturb

        config = self.config
        fill = parse_fill(config.fill)
        return perturb(model, mask, fill=fill, seed=config.seed, compat=config.compat, sums=self._sums)

    def _model(self, folder: RunFolder, role: str, dtype: torch.dtype) -> LoadedModel:
        """The model in this dtype; the one in memory if it has it, else loaded again from its source.

        Loading again instead of converting keeps buffers such as rotary frequencies in float32.
        """
        config = self.config
        if self._loaded is None or self._loaded.identity["dtype"] != dtype_name(dtype):
            self._loaded = self._prepared = None
            doing = "opening" if config.is_streamed else "loading"
            self.say(f"{doing} {config.model} in {dtype_name(dtype)} on {self.device}")
            self._loaded = named_model(config, dtype, self.device)
            folder.pin(perplexity_window=perplexity_window(config, self._loaded.model))
            folder.pin(scan=scan_of(self._loaded.model))
        folder.pin(**{f"{role}_model": self._loaded.identity})
        return self._loaded

    def _circumstances(self) -> dict[str, Any]:
        """Of the process that begins the study; later ones complete it."""
        return {
            "command": provenance.command_line(),
            "started": provenance.now(),
            "versions": provenance.versions(),
            "machine": provenance.machine(self.device),
        }

    def _say_what_changed(self, folder: RunFolder) -> None:
        """Tell a user who resumes with other versions; the results name those that the study began with."""
        began, now = folder.pinned().get("versions", {}), provenance.versions()
        changed = [f"{name} {began.get(name)} -> {now[name]}" for name in now if began.get(name) != now[name]]
        if changed:
            self.say(f"versions changed since {folder.path} was begun: {', '.join(changed)}")

    def _resolved(self) -> dict[str, Any]:
        dtypes = {"fisher_dtype": dtype_name(self.fisher_dtype), "eval_dtype": dtype_name(self.eval_dtype)}
        return {"device": str(self.device), **dtypes}

    def _provenance(self, folder: RunFolder) -> dict[str, Any]:
        config, pinned = self.config, folder.pinned()
        return {
            "command": pinned["command"],
            "config": {key: value for key, value in config.to_dict().items() if key not in _PLACES},
            "versions": pinned["versions"],
            "machine": pinned["machine"],
            "model": pinned["evaluation_model"] | pinned.get("read_weights", {}),
            "data": {**pinned["data"], "names": {"task": config.task, "control": config.control}},
            "fisher": pinned["fisher"],
            "scan": pinned.get("scan"),
            "fill": {"kind": config.fill, "implementations": pinned.get("fill_implementations", {})},
            "evaluation": {
                "method": config.method,
                "chance": self.inputs.chance(),
                "test": TEST,
                "perplexity_window": pinned.get("perplexity_window", config.perplexity_window),
                **pinned["resolved"],
            },
            "rules": pinned.get("rules"),
            "seeds": {"study": config.seed, "random": [config.seed + i for i in range(config.random_seeds)]},
            "time": {"started": pinned["started"], "finished": provenance.now()},
        }

    def say(self, line: str) -> None:
        """Tell the user what is being done."""
        if not ranks.current().is_first:
            return
        if self._say is not None:
            self._say(line)
        elif self._progress:
            note(line)


def eval_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype to measure in; "auto" is bf16 on CUDA and on processors that are fast at it, else fp32."""
    if name == "auto" and device.type == "cpu" and fast_cpu_bf16():
        return torch.bfloat16
    return resolve_dtype(name, device)


def _check_weights(stores: Mapping[str, FisherDiagonal], identity: Mapping[str, Any]) -> None:
    for which, F in stores.items():
        check_weights(F.metadata.get("model", {}), identity, f"The {which} store")


def _write_compact(folder: RunFolder, name: str, content: Mapping[str, Any]) -> None:
    folder.write_text(name, json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n")
