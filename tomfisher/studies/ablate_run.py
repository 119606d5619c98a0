"""`ablate_run`: the ablations of a finished study, with its model, mask, questions and text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomfisher import provenance
from tomfisher.interventions import Ablation, Internals, combinations, measure_internals, parse_all
from tomfisher.models.families import Architecture
from tomfisher.models.load import LoadedModel, load_model, resolve_device
from tomfisher.results.ablations import in_order_of
from tomfisher.results.folder import ABLATION_FILES, POINTS, RunFolder
from tomfisher.results.results import ABLATIONS, Results
from tomfisher.results.row import TASK_CONTROL, point_key
from tomfisher.results.rule import PAPER
from tomfisher.results.verdict import judge
from tomfisher.runtime.rules import remembered
from tomfisher.runtime.scan import scan_of
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.studies.ablation import ablate, known
from tomfisher.studies.config import Config
from tomfisher.studies.experiment import eval_dtype
from tomfisher.studies.inputs import Inputs
from tomfisher.studies.measure import Measure
from tomfisher.studies.parsing import parse_fill
from tomfisher.studies.prompts import prompt_ids
from tomfisher.studies.stores import check_belongs, check_weights

if TYPE_CHECKING:
    from tomfisher.masks import SparseMask

DEFAULT = (
    "full",
    "qk",
    "vo",
    "mlp",
    "dominant-rows",
    "other-rows",
    "scale-band:slow:0.5",
    "scale-band:dominant:0.5",
    "rotate-key:90",
    "scale-key:0.5",
    "off-sink:0.1",
    "scale-band:dominant:0.5+off-sink:0.1",
)
MIXER = "mixer"
PROMPTS = 64
FROM_FILE = "file"
INDIFFERENT = ("output_path", "kappas", "random_kappas", "random_seeds")  # settings that no point depends on


@plain_torch()
@remembered()
def ablate_run(
    run: str | Path,
    names: Sequence[str] | None = None,
    combine: int = 1,
    kappa: float | None = None,
    mask: str | Path | None = None,
    output_path: str | Path | None = None,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    """Ablate the task-control mask of a finished study and measure with the study's own settings.

    Dominant frequencies and mean queries come from up to 64 prompts of the study's Fisher pool, never from the
    questions. Finished points stay in the folder: the same call resumes where it stopped, and a call for other
    ablations adds them to those that are there. The answer holds all of them, and p is corrected over all.

    Args:
        run: folder of `tomfisher run`.
        names: ablations, see `parse`; None: `DEFAULT`, and "mixer" where the model has layers without attention.
        combine: also all combinations of up to this many of them.
        kappa: of the mask, chosen by the paper's rule; None: the mask that the study's verdict names.
        mask: a mask file instead.
        output_path: where `ablations.json` and `ablations.csv` go; None: `RUN/ablations`.
        overwrite: delete what is there first.
        settings: settings of the study to change, such as `{"limit": 80}`.
        progress: show a bar on a terminal.
        say: called with one line per step.

    Returns:
        What was found, as it was written.

    Raises:
        FileNotFoundError: the run folder, its results or the mask are not there.
        UnsupportedModel: none of the ablations can be done on this model.
        ValueError: the verdict names no κ and none is given, the folder holds ablations of something else, or an
            ablation that does not exist.
    """
    folder = Path(run).expanduser()
    wanted = None if names is None else combinations(parse_all(names), combine)
    config = _config(folder, settings or {})
    chosen, label = _mask(folder, kappa, mask)
    where = output_path or folder / "ablations"
    with _opened(where, overwrite) as kept:
        started = provenance.now()
        loaded = _model(folder, config, say)
        check_belongs(chosen.shapes, loaded.model, f"The mask {mask or folder}")
        inputs = Inputs(config)
        scan = scan_of(loaded.model)
        kept.pin(**_facts(config, chosen, label, loaded, inputs), scan=scan)
        architecture, _ = known(loaded.model)
        if wanted is None:
            wanted = combinations(_default(architecture), combine)
        internals = None if architecture is None else _internals(loaded, inputs)
        # a model with interventions does not take packed questions; all points are to round alike
        measure = Measure(config, inputs, loaded, pack=False)
        seeds = config.random_seeds
        say(f"ablations: {len(wanted)}; controls of each: {seeds}; {measure.describe()}")
        if finished := len(kept.points()):
            say(
                f"{finished} finished points of earlier calls are kept as they are; --overwrite measures them again"
            )
        ablations = ablate(
            loaded.model,
            chosen,
            measure,
            wanted,
            internals=internals,
            random_seeds=seeds,
            seed=config.seed,
            fill=parse_fill(config.fill),
            compat=config.compat,
            label=label,
            folder=kept,
            progress=progress,
        )
        origin = {**_provenance(config, chosen, loaded, inputs, started), "scan": scan, "packed": False}
        origin["rules"] = measure.rules
        result = in_order_of(replace(ablations, provenance=origin), _left_here(kept.path))
        result.save(kept.path, ABLATIONS)
    return result


@contextlib.contextmanager
def _opened(path: str | Path, overwrite: bool) -> Iterator[RunFolder]:
    """Lock a folder of ablations, making it if need be; an attempt without any result may be corrected.

    Raises:
        ValueError: it is a file, holds other things, or another process is working in it.
    """
    folder = RunFolder(path)
    if folder.path.is_dir() and (foreign := folder.foreign((*ABLATION_FILES, POINTS))):
        raise ValueError(
            f"{folder.path} is not a folder of ablations: it holds {', '.join(foreign[:4])}. Give another "
            "--output_path."
        )
    with folder.opened():
        if overwrite or not folder.points():
            folder.clear(ABLATION_FILES, (POINTS,), {})
        folder.remove_leftovers()
        yield folder


def _left_here(path: Path) -> Results | None:
    """What the last call left in a folder; None where there is nothing, or it is damaged."""
    try:
        return Results.load(path, ABLATIONS)
    except (FileNotFoundError, ValueError):
        return None


def _config(folder: Path, settings: Mapping[str, Any]) -> Config:
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has no config.yaml. Give the folder of a finished `tomfisher run`."
        )
    return Config.resolve({**settings, "output_path": str(folder)}, config=folder / "config.yaml")


def _mask(folder: Path, kappa: float | None, file: str | Path | None) -> tuple[SparseMask, str]:
    """The mask to ablate, and what it is called."""
    from tomfisher.masks import SparseMask

    if file is not None:
        if kappa is not None:
            raise ValueError("--kappa and --mask both name a mask. Give one of them.")
        return SparseMask.load(file), FROM_FILE
    results = Results.load(folder)
    rule = PAPER
    if kappa is None:
        verdict = judge(results)
        kappa, rule = verdict.kappa, verdict.rule
        if kappa is None:
            raise ValueError(
                f"The verdict of {folder} names no kappa. Give --kappa, one of "
                f"{', '.join(f'{k:g}' for k in results.kappas)}, or a --mask file."
            )
    path = folder / "masks" / f"{point_key(TASK_CONTROL, kappa, rule=rule)}.safetensors"
    if not path.is_file():
        of = "" if rule == PAPER else f" ({rule})"
        raise ValueError(
            f"{folder} has no mask at kappa {kappa:g}{of}. Its kappas: {', '.join(f'{k:g}' for k in results.kappas)}."
        )
    return SparseMask.load(path), TASK_CONTROL


def _model(folder: Path, config: Config, say: Callable[[str], None]) -> LoadedModel:
    """The study's model, in the dtype that it was measured in; refused when its weights have changed since."""
    device = resolve_device(config.device)
    say(f"loading {config.model}")
    dtype = eval_dtype(config.eval_dtype, device)
    loaded = load_model(config.model, dtype, device, config.trust_remote_code, config.revision)
    said = RunFolder(folder).pinned().get("evaluation_model", {})
    check_weights(said, loaded.identity, f"The study in {folder}")
    return loaded


def _internals(loaded: LoadedModel, inputs: Inputs) -> Internals:
    """Of the first prompts of the Fisher pool."""
    texts = list(dict.fromkeys(story.prompt for story in inputs.task_stories))[:PROMPTS]
    config = inputs.config
    return measure_internals(loaded.model, prompt_ids(loaded, texts, config.max_length, **config.wording()))


def _default(architecture: Architecture | None) -> list[Ablation]:
    has_mixer = architecture is not None and any(layer.attention is None for layer in architecture.layers)
    return parse_all([*DEFAULT, MIXER] if has_mixer else DEFAULT)


def _facts(
    config: Config, mask: SparseMask, label: str, loaded: LoadedModel, inputs: Inputs
) -> dict[str, Any]:
    """What every point depends on."""
    settings = {key: value for key, value in config.to_dict().items() if key not in INDIFFERENT}
    return {
        "settings": settings,
        "mask": {"sha256": mask.sha256, "nnz": mask.nnz, "kappa": mask.kappa, "label": label},
        "model": loaded.identity,
        "data": inputs.hashes(),
    }


def _provenance(
    config: Config, mask: SparseMask, loaded: LoadedModel, inputs: Inputs, started: str
) -> dict[str, Any]:
    return {
        "command": provenance.command_line(),
        "config": {key: value for key, value in config.to_dict().items() if key != "output_path"},
        "versions": provenance.versions(),
        "machine": provenance.machine(resolve_device(config.device)),
        "model": loaded.identity,
        "mask": {**mask.describe(), "sha256": mask.sha256},
        "data": inputs.hashes(),
        "internals": {"prompts": PROMPTS, "pool": "fisher"},
        "time": {"started": started, "finished": provenance.now()},
    }
