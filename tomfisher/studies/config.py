"""Every setting of a study in one dataclass that reads and writes YAML."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tomfisher import testbed, text_files
from tomfisher.masks import criteria
from tomfisher.near_miss import unknown
from tomfisher.studies.byte_sizes import bytes_of
from tomfisher.studies.parsing import check_kappa, parse_fill
from tomfisher.studies.presets import preset_values
from tomfisher.studies.setting import coerce, setting

HEADER = "# Re-run this study: tomfisher run --config config.yaml"
DEFAULT_TEXTS = {"task": "false-belief", "control": "python-reference"}
PERPLEXITY_WINDOW = 512  # where the model has a context that long
DTYPE_NAMES = ("auto", "fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True)
class Config:
    """The settings of one study; `model` is the only one without a default.

    A built-in testbed model knows only the small language it was trained on, so its task and control are in that
    language unless others are named.

    Every field is a command-line flag of the same name and a key of `config.yaml`.

    Raises:
        ValueError: a value is outside its range; the message names the field, the rule and the way out.
    """

    model: str = setting("", "hub id, local folder, .gguf file or built-in name (tomfisher ls models)")
    task: str = setting(
        "",
        "built-in task, a JSON/JSONL file, or FORMAT:FILE of published data (tomfisher ls tasks) "
        "[false-belief; a testbed model's own]",
    )
    control: str = setting(
        "",
        "general text: built-in corpus, .txt, JSON/JSONL or datasets id (name:config:split) "
        "[python-reference; a testbed model's own]",
    )
    output_path: str = setting("", "run folder [runs/MODEL-TASK]")
    n_task: int = setting(100, "task samples in the Fisher diagonal")
    n_control: int = setting(100, "control samples in the Fisher diagonal")
    control_length: int = setting(128, "tokens per control sample")
    max_length: int | None = setting(
        None, "cut task samples to this many tokens [the model's context]", kind="int"
    )
    supervise: Literal["answer", "last", "all"] = setting(
        "answer", "supervised tokens of a task sample", choices=("answer", "last", "all")
    )
    labels: Literal["empirical", "sampled"] = setting(
        "empirical", "labels of the Fisher loss", choices=("empirical", "sampled")
    )
    reduction: Literal["mean", "sum"] = setting(
        "mean", "per-sample loss over its tokens", choices=("mean", "sum")
    )
    gap: str = setting(
        "auto",
        "between prompt and answer: auto (a story's own, else one space where the writing has spaces), space, none, "
        "newline or punctuation",
    )
    bos: str = setting(
        "auto",
        "begin-of-sequence token before questions, samples and windows of text; auto: as the tokenizer does",
        kind="word",
        choices=("auto", "yes", "no"),
    )
    chat_template: bool = setting(
        False, "put every prompt as the user's turn of the tokenizer's chat template"
    )
    system_prompt: str | None = setting(
        None, "with --chat_template: the text of the system's turn", kind="str"
    )
    params: str = setting(
        "decoder-linear", "parameters: decoder-linear, attention-qk, all or comma-separated globs"
    )
    task_store: str | None = setting(
        None, "use this Fisher store of the task instead of computing one", kind="str"
    )
    control_store: str | None = setting(
        None, "use this Fisher store of the control instead of computing one", kind="str"
    )
    tokens_per_batch: str | int = setting("auto", "tokens per Fisher batch, or auto", kind="auto or int")
    fisher_dtype: str = setting("fp32", "weights' dtype while the Fisher is taken", choices=DTYPE_NAMES)
    eval_dtype: str = setting(
        "auto", "weights' dtype while measuring; auto: bf16 on CUDA or a CPU fast at it", choices=DTYPE_NAMES
    )
    kappas: tuple[float, ...] = setting(
        (1e-5, 2e-5, 5e-5, 1e-4, 1e-3), "fractions of a tensor's weights, comma-separated", kind="floats"
    )
    scope: Literal["tensor", "layer", "model"] = setting(
        "tensor", "where the top fraction is taken", choices=("tensor", "layer", "model")
    )
    control_kappa: tuple[float, ...] | None = setting(
        None,
        "fractions of the control's ranking that masks leave alone, comma-separated, every one with every kappa; the "
        "paper's rule (control_kappa = kappa) is always measured",
        kind="floats",
    )
    criterion: tuple[str, ...] | None = setting(
        None,
        f"further rankings of the weights beside the Fisher diagonal, comma-separated: {', '.join(criteria.NAMES[1:])}",
        kind="words",
    )
    ratio_quantile: float = setting(
        0.5, "criterion ratio: quantile of the control's positive Fisher values that is added to them"
    )
    fill: str = setting("mean", "what masked weights become: mean, zero, noise, scale:FACTOR or a number")
    compat: str | None = setting(
        None, "authors: the paper's thresholding and fill mean", kind="str", choices=("authors",)
    )
    random_seeds: int = setting(5, "random masks per kappa")
    random_kappas: tuple[float, ...] | None = setting(
        None, "kappas at which random masks are measured [all]", kind="floats"
    )
    limit: int | None = setting(320, "evaluation questions; none: all", kind="int", nullable=True)
    method: str = setting("choice", "how a question is answered", choices=("choice", "generate"))
    normalize: str = setting(
        "total",
        "choice: compare total log-probabilities, or those per token, character or byte (lm-eval: acc, -, acc_norm, "
        "acc_bytes)",
        choices=("total", "token", "character", "byte"),
    )
    max_new_tokens: int | None = setting(
        None, "generate: tokens per answer [the longest choice's and 3 more, at least 5]", kind="int"
    )
    temperature: float = setting(0.0, "generate: sampling temperature, 0 is greedy")
    top_p: float = setting(1.0, "generate: nucleus size")
    repetitions: int = setting(1, "generate: answers per question")
    perplexity_tokens: int = setting(8192, "tokens of the perplexity text")
    perplexity_window: int | None = setting(
        None,
        "context window of the perplexity, tokens [512, or the model's context if that is less]",
        kind="int",
    )
    perplexity_stride: int | None = setting(None, "step between windows, tokens [the window]", kind="int")
    analysis_prompts: int = setting(64, "questions read by the analysis after the sweep; 0: no analysis")
    analysis_random_masks: int = setting(
        3, "random masks in that analysis; at most the study's at that kappa, at least 1"
    )
    interaction: bool = setting(
        False, "after the sweep: how far the weights of every mask act together, on the task's Fisher samples"
    )
    seed: int = setting(0, "seed of samples, questions and random masks")
    stream: Literal["auto", "yes", "no"] = setting(
        "auto",
        "read the model's layers from their files one after the other instead of holding it in memory, on the CPU; "
        "auto: where the model, and F if one is taken, do not fit into what is free",
        kind="word",
        choices=("auto", "yes", "no"),
        bare="yes",
    )
    max_memory: str | None = setting(
        None, "with --stream auto: memory that a process may take, such as 16GB [what is free]", kind="str"
    )
    boundary: str = setting(
        "auto",
        "with --stream: where hidden states between layers are kept: ram or a folder; auto: those of a Fisher diagonal "
        "beside its store, so that it goes on where it was interrupted, others in memory",
    )
    share_prefix: Literal["auto", "no"] = setting(
        "auto",
        "choice: compute what questions begin with once where the model allows it; no: every question whole, with the "
        "rounding of --stream",
        kind="word",
        choices=("auto", "no"),
    )
    device: str | None = setting(None, "cpu, cuda or cuda:N [cuda if there is one]", kind="str")
    batch_size: int | None = setting(
        None, "sequences per evaluation batch [chosen by the evaluation]", kind="int"
    )
    trust_remote_code: bool = setting(False, "let transformers run code that comes with the model")
    revision: str | None = setting(None, "hub branch, tag or commit of the model", kind="str")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, coerce(field, getattr(self, field.name)))
        for name, text in (DEFAULT_TEXTS | testbed.texts_of(self.model)).items():
            object.__setattr__(self, name, getattr(self, name) or text)
        _check(self)
        if not self.output_path:
            object.__setattr__(self, "output_path", f"runs/{_slug(self.model)}-{_slug(self.task)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A config from keys and values, everything else at its default.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of range.
        """
        refuse_unknown(values)
        return cls(**values)

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, Any],
        config: str | os.PathLike[str] | None = None,
        preset: str | None = None,
    ) -> Config:
        """Merge the sources of settings: `given` (the command line) > YAML file > preset > defaults."""
        merged: dict[str, Any] = {}
        if preset is not None:
            merged |= preset_values(preset)
        if config is not None:
            merged |= read_yaml(config)
        return cls.from_dict(merged | dict(given))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @property
    def is_streamed(self) -> bool:
        """Whether the model's layers come and go."""
        return self.stream == "yes"

    @property
    def boundary_folder(self) -> Path | None:
        """Where hidden states go; None for the memory."""
        return None if self.boundary in ("auto", "ram") else Path(self.boundary).expanduser()

    def wording(self) -> dict[str, Any]:
        """How prompts are put, as `tomfisher.encode` and `tomfisher.evaluate` take it."""
        return {
            "gap": self.gap,
            "bos": self.bos,
            "chat_template": self.chat_template,
            "system": self.system_prompt,
        }

    def to_yaml(self) -> str:
        """The text of `config.yaml`; `Config.from_dict(yaml.safe_load(text))` gives an equal config."""
        body = yaml.safe_dump(self.to_dict(), default_flow_style=None, sort_keys=False, allow_unicode=True)
        return f"{HEADER}\n{body}"


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keys and values of a config file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, no mapping, a key given twice, or an unknown one.
    """
    file = Path(path)
    values = text_files.read_yaml(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold `key: value` lines, got {type(values).__name__}.")
    refuse_unknown(values, str(file))
    return values


def refuse_unknown(values: Mapping[str, Any], where: str = "config") -> None:
    """Raise ValueError for the first key that is no setting, naming the nearest one."""
    known = [field.name for field in dataclasses.fields(Config)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {unknown('setting', str(key), known)}")


def _check(config: Config) -> None:
    if not config.model:
        raise ValueError(
            "model is not given. Use --model with a hub id, a folder or a name of `tomfisher ls models`."
        )
    if not config.kappas:
        raise ValueError("kappas is empty. Give at least one fraction, e.g. --kappas 1e-5,1e-4.")
    for kappa in (*config.kappas, *(config.random_kappas or ())):
        check_kappa(kappa, "every kappa")
    for kappa in config.control_kappa or ():
        check_kappa(kappa, "every control_kappa")
    for name in config.criterion or ():
        criteria.get(name)
    if not 0.0 <= config.ratio_quantile <= 1.0:
        raise ValueError(f"ratio_quantile must lie from 0 to 1, got {config.ratio_quantile:g}.")
    missing = sorted(set(config.random_kappas or ()) - set(config.kappas))
    if missing:
        raise ValueError(f"random_kappas must be among kappas; {missing[0]:g} is not. Add it to kappas.")
    for field in dataclasses.fields(config):
        choices, value = field.metadata.get("choices"), getattr(config, field.name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}.")
    _check_counts(config)
    _check_wording(config)
    if config.max_memory is not None:
        _check_size("max_memory", config.max_memory)
    if config.is_streamed:
        _check_streamed(config)


def _check_size(name: str, text: str) -> None:
    try:
        bytes_of(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _check_wording(config: Config) -> None:
    """Refuse what `tomfisher.tasks.wording.Wording` does, in its words."""
    from tomfisher.tasks.wording import Wording

    Wording(**config.wording())


def _check_streamed(config: Config) -> None:
    """Refuse what needs the whole model in memory."""
    from tomfisher.evaluate.streamed import refuse_resident_ways

    refuse_resident_ways(config.method)
    if config.interaction:
        raise ValueError("interaction needs the whole model in memory; leave it or stream out.")
    for name in config.criterion or ():
        if not set(criteria.get(name).needs) <= set(criteria.OF_STORES):
            raise ValueError(
                f"The criterion {name} needs {' and '.join(criteria.get(name).needs)} of the whole model in memory, "
                "and stream reads one layer at a time. Leave one of the two out."
            )
    if config.device not in (None, "cpu"):
        raise ValueError(f"stream runs on the CPU, got device {config.device!r}. Leave one of the two out.")


def _check_counts(config: Config) -> None:
    positive = ["n_task", "n_control", "limit", "max_length", "max_new_tokens", "repetitions"]
    positive += ["perplexity_tokens", "perplexity_stride", "batch_size", "analysis_random_masks"]
    for name in positive:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    for name in ("control_length", "perplexity_window"):
        value = getattr(config, name)
        if value is not None and value < 2:
            raise ValueError(f"{name} must be at least 2 tokens (the first is never predicted).")
    for name in ("random_seeds", "analysis_prompts"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}.")
    window = config.perplexity_window or PERPLEXITY_WINDOW
    if config.perplexity_stride is not None and config.perplexity_stride > window:
        raise ValueError(
            f"perplexity_stride must be at most perplexity_window ({window}), "
            f"got {config.perplexity_stride}: tokens between the windows would not be scored."
        )
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise ValueError(
            f"temperature must be 0 or more and top_p in (0, 1], got {config.temperature} and {config.top_p}."
        )
    if config.compat is not None and (config.scope != "tensor" or parse_fill(config.fill) != "mean"):
        raise ValueError(
            "compat='authors' is the paper's selection per tensor with its mean; it goes with scope tensor and "
            f"fill mean, got {config.scope} and {config.fill}."
        )
    parse_fill(config.fill)


def _slug(text: str) -> str:
    """A folder-name part: the last path component without its suffix."""
    name = Path(text).name
    for suffix in (".gguf", ".jsonl", ".json", ".csv", ".txt"):
        name = name.removesuffix(suffix)
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "study"
