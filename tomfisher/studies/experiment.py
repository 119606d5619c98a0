"""`Experiment`: Fisher, masks, sweep and controls, from one config into one run folder."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tomfisher import provenance
from tomfisher.evaluate.records import Scores
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
from tomfisher.results.conditions import by_clusters
from tomfisher.results.folder import RunFolder
from tomfisher.results.power import too_few
from tomfisher.results.results import Results
from tomfisher.results.row import BASELINE, CONTROL_ONLY, RANDOM, TASK_CONTROL, Row
from tomfisher.results.verdict import judge
from tomfisher.runtime import ranks
from tomfisher.runtime.gate import check_samples
from tomfisher.runtime.memory import token_budget
from tomfisher.runtime.rules import check_run, remembered, way_of
from tomfisher.runtime.scan import scan_of
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.studies import analysis, fisher_values
from tomfisher.studies.claim import claimed
from tomfisher.studies.config import Config, parse_fill
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.measure import Measure, perplexity_window
from tomfisher.studies.named_model import named_model
from tomfisher.studies.points import PlannedPoint, planned_points
from tomfisher.studies.saved_points import save_point
from tomfisher.studies.stores import check_belongs, check_pair, check_weights, open_own, open_store

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.fisher import FisherDiagonal
    from tomfisher.masks import Ranking, SparseMask
    from tomfisher.perturbation import Perturbation, WeightSums
    from tomfisher.sample import Sample

_KNOWN_WHEN_READ = ("weights_sha256", "content_sha256")  # of a streamed model's identity
_PLACES = ("output_path", "boundary")  # settings that say where something lies
NAMED_PARAMS = ("decoder-linear", "attention-qk", "all")


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
        self._stores: tuple[FisherDiagonal, FisherDiagonal] | None = None
        self._samples: dict[str, list[Sample]] = {}
        self._sums: WeightSums | None = None
        self._prepared: Measure | None = None

    @plain_torch()
    @remembered()
    def run(self, progress: bool = True) -> Results:
        """Do what is left to do and write `results.json`, `results.csv`, `verdict.txt` and the details.

        The details are `fisher-values.json` and, unless `analysis_prompts` is 0, `analysis.json`.

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
        if self.config.is_streamed and team.size > 1:
            raise ValueError(
                f"A streamed study runs in one process, but there are {team.size} ranks. Start it without torchrun, or "
                "without --stream."
            )
        with team.call("run"), claimed(self.config, self.overwrite) as folder:
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
                if lacking := too_few(self.inputs.headline_clusters(), len(self.config.kappas)):
                    self.say(lacking)
                self._measure(folder, pending)
            found: list[Results] = []
            told = team.first("the results", lambda: self._finish(folder, found))
            self._loaded = self._prepared = None
        return found[0] if found else Results.from_dict(told)

    def _finish(self, folder: RunFolder, found: list[Results]) -> dict[str, Any]:
        """Write the results and what describes them; they go into `found`, and come back as JSON."""
        results = self._collect(folder)
        results.save(folder.path)
        folder.write_text("verdict.txt", f"{judge(results)}\n")
        self._describe_values(folder)
        if self.config.analysis_prompts and self.config.is_streamed:
            self.say("no analysis: it looks into the layers, which needs the whole model in memory")
        elif self.config.analysis_prompts:
            self._analyze(folder, results)
        found.append(results)
        return results.to_dict()

    @plain_torch()
    def fisher(self, folder: RunFolder) -> tuple[FisherDiagonal, FisherDiagonal]:
        """The Fisher diagonals of task and control, from the config's stores or the run folder's."""
        if self._stores is not None:
            return self._stores
        self._encode_samples(folder)
        if self.config.is_streamed and self._samples:
            self._stream(folder)
        diagonals = []
        for which, given in (("task", self.config.task_store), ("control", self.config.control_store)):
            if given is not None:
                diagonals.append(open_store(Path(given).expanduser()))
                continue
            diagonals.append(open_own(folder.store_path(which), partial(self._compute, folder, which)))
        check_pair(*diagonals)
        self._stores = diagonals[0], diagonals[1]
        folder.pin(fisher={"task": _said(diagonals[0]), "control": _said(diagonals[1])})
        return self._stores

    def _encode_samples(self, folder: RunFolder) -> None:
        """Make the samples of every Fisher diagonal that is still to be taken, before the first of them is.

        The model is asked about both sets at once, also where one of them is done: what it says is then the same.
        """
        given = {"task": self.config.task_store, "control": self.config.control_store}
        own = [which for which in given if not given[which]]
        if ranks.current().first(
            "a look at the stores", lambda: all(folder.store_path(w).exists() for w in own)
        ):
            return
        loaded = self._model(folder, "fisher", self.fisher_dtype)
        for which in own:
            self._samples[which] = self.inputs.samples(which, loaded)
            check_samples(loaded.model, self._samples[which])
        if loaded.opened is not None:  # asked in the same reading as the Fisher diagonal is taken
            return
        self.say("asking the model about the rules that its numbers rest on")
        texts = (sample.input_ids for samples in self._samples.values() for sample in samples)
        budget = token_budget(self.config.tokens_per_batch, loaded.model, self.device)
        check_run(loaded.model, texts, tokens=budget)

    def _stream(self, folder: RunFolder) -> None:
        """The stores that are not there yet, from one pair of readings of the weights."""
        from tomfisher.fisher.record import Asked
        from tomfisher.fisher.streamed import SampleSet, stream_diagonals

        config = self.config
        loaded = self._model(folder, "fisher", self.fisher_dtype)
        hashes = self.inputs.hashes()
        sets = {
            which: SampleSet(samples, folder.store_path(which), {"texts_sha256": hashes[which]})
            for which, samples in self._samples.items()
            if not folder.store_path(which).exists()
        }
        self.say(
            f"Fisher diagonal of {' and '.join(f'{len(s.samples)} {w} samples' for w, s in sets.items())}"
        )
        asked = Asked(
            parse_params(config.params),
            config.labels,
            config.reduction,
            config.tokens_per_batch,
            "auto",
            config.seed,
            "ieee",
        )
        stream_diagonals(loaded.opened, list(sets.values()), asked, config.boundary, self._progress)
        self._samples.clear()

    def _compute(self, folder: RunFolder, which: str) -> FisherDiagonal:
        from tomfisher.fisher import fisher_diagonal

        config = self.config
        loaded = self._model(folder, "fisher", self.fisher_dtype)
        samples = self._samples.pop(which)
        self.say(f"Fisher diagonal of {len(samples)} {which} samples")
        F = fisher_diagonal(
            loaded.model,
            samples,
            params=parse_params(config.params),
            labels=config.labels,
            reduction=config.reduction,
            tokens_per_batch=config.tokens_per_batch,
            progress=self._progress,
            seed=config.seed,
        )
        F.metadata.update(model=loaded.identity_now(), texts_sha256=self.inputs.hashes()[which])
        return F

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

    def _measure(self, folder: RunFolder, pending: list[PlannedPoint]) -> None:
        from tomfisher.perturbation import WeightSums

        rankings = self._rankings(folder) if any(plan.mask != BASELINE for plan in pending) else None
        loaded = self._model(folder, "evaluation", self.eval_dtype)
        if rankings is not None:
            for which, ranking in zip(("task", "control"), rankings, strict=True):
                check_belongs(ranking.shapes, loaded.model, f"The {which} store")
            self._check_weights(folder, loaded.identity)
        measure = self._measurement(loaded)
        self._sums = WeightSums()
        self.say(f"measuring {len(pending)} points, {measure.describe()}")
        if loaded.opened is not None:
            self._measure_streamed(folder, measure, pending, rankings)
            return
        for plan in progress_bar(pending, desc="points", unit="point", enabled=self._progress):
            with self._perturbed(folder, loaded.model, plan, rankings) as nnz:
                scores, perplexity = measure()
            save_point(folder, plan, nnz, measure.rules, scores, perplexity)

    def _measure_streamed(
        self,
        folder: RunFolder,
        measure: Measure,
        pending: list[PlannedPoint],
        rankings: tuple[Ranking, Ranking] | None,
    ) -> None:
        """All points in one reading of the weights."""
        from tomfisher.perturbation import State

        config, fill = self.config, parse_fill(self.config.fill)
        masks = [self._point_mask(folder, plan, rankings) for plan in pending]
        states = [State(mask, fill, config.seed, config.compat) for mask in masks]
        found = measure.in_states(states)
        loaded = measure.loaded
        identity = loaded.identity_now()
        if rankings is not None:
            self._check_weights(folder, identity)
        folder.pin(read_weights={key: identity[key] for key in _KNOWN_WHEN_READ})
        for plan, each in zip(pending, found, strict=True):
            if each.implementations:
                folder.pin(fill_implementations=each.implementations)
            save_point(folder, plan, each.nnz, measure.rules, *each.results)

    def _check_weights(self, folder: RunFolder, identity: Mapping[str, Any]) -> None:
        for which, F in zip(("task", "control"), self.fisher(folder), strict=True):
            check_weights(F.metadata.get("model", {}), identity, f"The {which} store")

    def _rankings(self, folder: RunFolder) -> tuple[Ranking, Ranking]:
        from tomfisher.masks import rank

        config = self.config
        task, control = self.fisher(folder)
        self.say(f"ranking {len(task)} tensors at kappa {max(config.kappas):g}")
        kappa, scope, compat = max(config.kappas), config.scope, config.compat
        rankings = {
            which: rank(F, kappa, scope, compat, thresholds=())
            for which, F in (("task", task), ("control", control))
        }
        _write_compact(folder, fisher_values.FILE, fisher_values.described(rankings, config.kappas))
        return rankings["task"], rankings["control"]

    def _describe_values(self, folder: RunFolder) -> None:
        """Write `fisher-values.json` where it is missing, if the stores are still there."""
        if fisher_values.is_whole(folder.path / fisher_values.FILE):
            return
        given = {"task": self.config.task_store, "control": self.config.control_store}
        stores = [
            Path(path).expanduser() if path else folder.store_path(which) for which, path in given.items()
        ]
        if all(store.is_dir() for store in stores):
            self._rankings(folder)
        else:
            self.say(f"no {fisher_values.FILE}: a Fisher store is gone")

    def _analyze(self, folder: RunFolder, results: Results) -> None:
        """Write `analysis.json`, unless it is there and of the same masks and prompts."""
        kappa = chosen_kappa(results)
        masks = {which: self._kept_mask(folder, which, kappa) for which in (TASK_CONTROL, CONTROL_ONLY)}
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

    def _kept_mask(self, folder: RunFolder, which: str, kappa: float) -> SparseMask:
        """The mask that the folder keeps; made again where its file is gone or damaged."""
        from tomfisher.masks import SparseMask

        plan = PlannedPoint(which, kappa)
        file = folder.mask_path(plan.key)
        try:
            return SparseMask.load(file)
        except (FileNotFoundError, ValueError):
            mask = self._mask(plan, *self._rankings(folder))
            mask.save(file)
            return mask

    @contextlib.contextmanager
    def _perturbed(
        self, folder: RunFolder, model: Any, plan: PlannedPoint, rankings: tuple[Ranking, Ranking] | None
    ) -> Iterator[int]:
        """The model with the plan's mask written into it, for the time of the block; yields the count."""
        mask = self._point_mask(folder, plan, rankings)
        if mask is None:
            yield 0
            return
        with self._perturb(model, mask) as perturbation:
            if perturbation.implementations:  # an empty mask runs nothing
                folder.pin(fill_implementations=perturbation.implementations)
            yield perturbation.nnz

    def _point_mask(
        self, folder: RunFolder, plan: PlannedPoint, rankings: tuple[Ranking, Ranking] | None
    ) -> SparseMask | None:
        """The plan's mask, saved in the folder unless it is a random one; None for the baseline."""
        if plan.mask == BASELINE or rankings is None:
            return None
        mask = self._mask(plan, *rankings)
        if plan.mask != RANDOM and folder.writes:
            mask.save(folder.mask_path(plan.key))
        if mask.nnz == 0:
            self.say(f"the {plan.mask} mask at kappa {plan.kappa:g} is empty: nothing is perturbed")
        return mask

    def _perturb(self, model: Any, mask: SparseMask) -> Perturbation:
        """The mask ready to be written into the model, with the study's fill."""
        from tomfisher.perturbation import perturb

        config = self.config
        fill = parse_fill(config.fill)
        return perturb(model, mask, fill=fill, seed=config.seed, compat=config.compat, sums=self._sums)

    def _mask(self, plan: PlannedPoint, task: Ranking, control: Ranking) -> SparseMask:
        top_task, top_control = task.mask(plan.kappa), control.mask(plan.kappa)
        if plan.mask == CONTROL_ONLY:
            return top_control - top_task
        mask = top_task - top_control
        return mask if plan.seed is None else mask.random_like(plan.seed)

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

    def _collect(self, folder: RunFolder) -> Results:
        rows: list[Row] = []
        baseline: Scores | None = None
        for plan in planned_points(self.config):
            saved = folder.load_point(plan.key)
            if saved is None:
                raise ValueError(f"Point {plan.key} vanished from {folder.path}. Run the same command again.")
            scores = Scores.from_dict(saved[1])
            rows += by_clusters(saved[0], scores, baseline)
            baseline = scores if baseline is None else baseline
        return Results(tuple(rows), self._provenance(folder))

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


def parse_params(text: str) -> str | list[str]:
    """The `params` setting as `fisher_diagonal` takes it: a name, or a list of glob patterns."""
    return text if text in NAMED_PARAMS else [part.strip() for part in text.split(",") if part.strip()]


def eval_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype to measure in; "auto" is bf16 on CUDA and on processors that are fast at it, else fp32."""
    if name == "auto" and device.type == "cpu" and fast_cpu_bf16():
        return torch.bfloat16
    return resolve_dtype(name, device)


def _write_compact(folder: RunFolder, name: str, content: Mapping[str, Any]) -> None:
    folder.write_text(name, json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n")


def _said(F: FisherDiagonal) -> dict[str, Any]:
    """What a result records about a Fisher diagonal."""
    methods = Counter(method.partition(":")[0] for method in F.methods.values())
    return {
        "definition": dict(F.definition),
        "num_samples": F.num_samples,
        "num_tokens": F.num_tokens,
        "methods": dict(methods),
        "implementations": F.implementations,
        "data_sha256": F.metadata.get("data_sha256"),
        "rules": way_of(F.metadata.get("rules")),
    }
