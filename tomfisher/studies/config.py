"""Every setting of a study in one dataclass that reads and writes YAML."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tomfisher import testbed, text_files
from tomfisher.masks import criteria
from tomfisher.near_miss import unknown
from tomfisher.studies.byte_sizes import bytes_of
from tomfisher.studies.presets import preset_values

HEADER = "# Re-run this study: tomfisher run --config config.yaml"
DEFAULT_TEXTS = {"task": "false-belief", "control": "python-reference"}
PERPLEXITY_WINDOW = 512  # where the model has a context that long
DTYPE_NAMES = ("auto", "fp32", "bf16", "fp16", "fp64")


def _setting(
    default: Any,
    help: str,
    kind: str | None = None,
    choices: tuple[str, ...] | None = None,
    nullable: bool = False,
    bare: str | None = None,
) -> Any:
    """A dataclass field with what the command line and the YAML reader need to know about it.

    `kind` is "str", "int", "float", "bool", "floats", "words", "auto or int" or "word"; without it, the default's
    type. A word is a text for which YAML may read true or false, such as yes and no. A nullable setting may be none.
    `bare` is the value of a flag without one.
    """
    kind = kind or type(default).__name__
    optional = nullable or default is None
    metadata = {"help": help, "kind": kind, "choices": choices, "nullable": optional, "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of one study; `model` is the only one without a default.

    A built-in testbed model knows only the small language it was trained on, so its task and control are in that
    language unless others are named.

    Every field is a command-line flag of the same name and a key of `config.yaml`.

    Raises:
        ValueError: a value is outside its range; the message names the field, the rule and the way out.
    """

    model: str = _setting("", "hub id, local folder, .gguf file or built-in name (tomfisher ls models)")
    task: str = _setting(
        "",
        "built-in task, a JSON/JSONL file, or FORMAT:FILE of published data (tomfisher ls tasks) "
        "[false-belief; a testbed model's own]",
    )
    control: str = _setting(
        "",
        "general text: built-in corpus, .txt, JSON/JSONL or datasets id (name:config:split) "
        "[python-reference; a testbed model's own]",
    )
    output_path: str = _setting("", "run folder [runs/MODEL-TASK]")
    n_task: int = _setting(100, "task samples in the Fisher diagonal")
    n_control: int = _setting(100, "control samples in the Fisher diagonal")
    control_length: int = _setting(128, "tokens per control sample")
    max_length: int | None = _setting(
        None, "cut task samples to this many tokens [the model's context]", kind="int"
    )
    supervise: Literal["answer", "last", "all"] = _setting(
        "answer", "supervised tokens of a task sample", choices=("answer", "last", "all")
    )
    labels: Literal["empirical", "sampled"] = _setting(
        "empirical", "labels of the Fisher loss", choices=("empirical", "sampled")
    )
    reduction: Literal["mean", "sum"] = _setting(
        "mean", "per-sample loss over its tokens", choices=("mean", "sum")
    )
    gap: str = _setting(
        "auto",
        "between prompt and answer: auto (a story's own, else one space where the writing has spaces), space, none, "
        "newline or punctuation",
    )
    bos: str = _setting(
        "auto",
        "begin-of-sequence token before questions, samples and windows of text; auto: as the tokenizer does",
        kind="word",
        choices=("auto", "yes", "no"),
    )
    chat_template: bool = _setting(
        False, "put every prompt as the user's turn of the tokenizer's chat template"
    )
    system_prompt: str | None = _setting(
        None, "with --chat_template: the text of the system's turn", kind="str"
    )
    params: str = _setting(
        "decoder-linear", "parameters: decoder-linear, attention-qk, all or comma-separated globs"
    )
    task_store: str | None = _setting(
        None, "use this Fisher store of the task instead of computing one", kind="str"
    )
    control_store: str | None = _setting(
        None, "use this Fisher store of the control instead of computing one", kind="str"
    )
    tokens_per_batch: str | int = _setting("auto", "tokens per Fisher batch, or auto", kind="auto or int")
    fisher_dtype: str = _setting("fp32", "weights' dtype while the Fisher is taken", choices=DTYPE_NAMES)
    eval_dtype: str = _setting(
        "auto", "weights' dtype while measuring; auto: bf16 on CUDA or a CPU fast at it", choices=DTYPE_NAMES
    )
    kappas: tuple[float, ...] = _setting(
        (1e-5, 2e-5, 5e-5, 1e-4, 1e-3), "fractions of a tensor's weights, comma-separated", kind="floats"
    )
    scope: Literal["tensor", "layer", "model"] = _setting(
        "tensor", "where the top fraction is taken", choices=("tensor", "layer", "model")
    )
    control_kappa: tuple[float, ...] | None = _setting(
        None,
        "fractions of the control's ranking that masks leave alone, comma-separated, every one with every kappa; the "
        "paper's rule (control_kappa = kappa) is always measured",
        kind="floats",
    )
    criterion: tuple[str, ...] | None = _setting(
        None,
        f"further rankings of the weights beside the Fisher diagonal, comma-separated: {', '.join(criteria.NAMES[1:])}",
        kind="words",
    )
    ratio_quantile: float = _setting(
        0.5, "criterion ratio: quantile of the control's positive Fisher values that is added to them"
    )
    fill: str = _setting("mean", "what masked weights become: mean, zero, noise, scale:FACTOR or a number")
    compat: str | None = _setting(
        None, "authors: the paper's thresholding and fill mean", kind="str", choices=("authors",)
    )
    random_seeds: int = _setting(5, "random masks per kappa")
    random_kappas: tuple[float, ...] | None = _setting(
        None, "kappas at which random masks are measured [all]", kind="floats"
    )
    limit: int | None = _setting(320, "evaluation questions; none: all", kind="int", nullable=True)
    method: str = _setting("choice", "how a question is answered", choices=("choice", "generate"))
    normalize: str = _setting(
        "total",
        "choice: compare total log-probabilities, or those per token, character or byte (lm-eval: acc, -, acc_norm, "
        "acc_bytes)",
        choices=("total", "token", "character", "byte"),
    )
    max_new_tokens: int | None = _setting(
        None, "generate: tokens per answer [the longest choice's and 3 more, at least 5]", kind="int"
    )
    temperature: float = _setting(0.0, "generate: sampling temperature, 0 is greedy")
    top_p: float = _setting(1.0, "generate: nucleus size")
    repetitions: int = _setting(1, "generate: answers per question")
    perplexity_tokens: int = _setting(8192, "tokens of the perplexity text")
    perplexity_window: int | None = _setting(
        None,
        "context window of the perplexity, tokens [512, or the model's context if that is less]",
        kind="int",
    )
    perplexity_stride: int | None = _setting(None, "step between windows, tokens [the window]", kind="int")
    analysis_prompts: int = _setting(64, "questions read by the analysis after the sweep; 0: no analysis")
    analysis_random_masks: int = _setting(
        3, "random masks in that analysis; at most the study's at that kappa, at least 1"
    )
    interaction: bool = _setting(
        False, "after the sweep: how far the weights of every mask act together, on the task's Fisher samples"
    )
    seed: int = _setting(0, "seed of samples, questions and random masks")
    stream: Literal["auto", "yes", "no"] = _setting(
        "auto",
        "read the model's layers from their files one after the other instead of holding it in memory, on the CPU; "
        "auto: where the model, and F if one is taken, do not fit into what is free",
        kind="word",
        choices=("auto", "yes", "no"),
        bare="yes",
    )
    max_memory: str | None = _setting(
        None, "with --stream auto: memory that a process may take, such as 16GB [what is free]", kind="str"
    )
    boundary: str = _setting(
        "auto",
        "with --stream: where hidden states between layers are kept: ram or a folder; auto: those of a Fisher diagonal "
        "beside its store, so that it goes on where it was interrupted, others in memory",
    )
    share_prefix: Literal["auto", "no"] = _setting(
        "auto",
        "choice: compute what questions begin with once where the model allows it; no: every question whole, with the "
        "rounding of --stream",
        kind="word",
        choices=("auto", "no"),
    )
    device: str | None = _setting(None, "cpu, cuda or cuda:N [cuda if there is one]", kind="str")
    batch_size: int | None = _setting(
        None, "sequences per evaluation batch [chosen by the evaluation]", kind="int"
    )
    trust_remote_code: bool = _setting(False, "let transformers run code that comes with the model")
    revision: str | None = _setting(None, "hub branch, tag or commit of the model", kind="str")

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


def coerce(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value from the command line or YAML as the field's kind; YAML reads 1e-5 as a text, for one.

    Raises:
        ValueError: the value is none of that kind.
    """
    kind = field.metadata["kind"]
    if field.metadata["nullable"] and value in (None, "none"):
        return None
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError):
        raise ValueError(f"{field.name} must be {_WORDS[kind]}, got {value!r}.") from None


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _read_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_str(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike, int, float)) or isinstance(value, bool):
        raise TypeError
    return str(value)


def _read_word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _read_str(value)


def _read_floats(value: Any) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        value = [value]
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(sorted({float(part) for part in parts if str(part).strip()}))


def _read_words(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _read_str,
    "int": _read_int,
    "float": float,
    "bool": _read_bool,
    "floats": _read_floats,
    "word": _read_word,
    "words": _read_words,
    "auto or int": lambda value: "auto" if value == "auto" else _read_int(value),
}
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "floats": "numbers such as 1e-5,1e-4",
    "word": "a word",
    "words": "words, comma-separated",
    "auto or int": "'auto' or a whole number",
}


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


def check_kappa(kappa: float, name: str = "kappa") -> float:
    """The value, if it lies strictly between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if not 0.0 < kappa < 1.0:
        note = " Kappa 0 is the baseline, which is always measured." if kappa == 0 else ""
        raise ValueError(
            f"{name} must lie strictly between 0 and 1 (a fraction such as 1e-4), got {kappa:g}.{note}"
        )
    return kappa


NAMED_PARAMS = ("decoder-linear", "attention-qk", "all")


def parse_params(text: str) -> str | list[str]:
    """The `params` setting as `fisher_diagonal` takes it: a name, or a list of glob patterns."""
    return text if text in NAMED_PARAMS else [part.strip() for part in text.split(",") if part.strip()]


def parse_fill(text: str | float) -> str | float:
    """The fill as `tomfisher.perturb` takes it: a word, "scale:FACTOR", or a number.

    Raises:
        ValueError: it is none of these.
    """
    name, _, factor = str(text).partition(":")
    if name in ("mean", "zero", "noise") and not factor:
        return name
    try:
        number = float(factor) if name == "scale" else float(text)
    except ValueError:
        raise ValueError(
            f"fill must be mean, zero, noise, scale:FACTOR (e.g. scale:0.5) or a number, got {text!r}."
        ) from None
    return f"scale:{factor}" if name == "scale" else number


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
